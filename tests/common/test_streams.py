"""Streams: each named one is its own, and the same for ever."""

import hashlib
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.common.streams import Purpose, name_key, stream, torch_stream
from tests.support.strategies import seeds

purposes = st.sampled_from(Purpose)
names = st.text(max_size=8)
rounds = st.integers(0, 2**20)
Key = tuple[int, Purpose, int, str]
keys = st.tuples(seeds, purposes, rounds, names)


def draws(key: Key) -> list[int]:
    seed, purpose, round_, name = key
    return stream(seed, purpose, round=round_, name=name).integers(2**63, size=4).tolist()


def torch_draws(key: Key) -> list[int]:
    seed, purpose, round_, name = key
    generator = torch_stream(seed, purpose, round=round_, name=name)
    return torch.randint(2**62, (4,), generator=generator).tolist()


@settings(max_examples=100, deadline=None)
@given(first=keys, second=keys)
def test_same_key_same_draws_and_another_key_others(first: Key, second: Key) -> None:
    for draw in (draws, torch_draws):
        assert draw(first) == draw(first)
        assert (draw(first) == draw(second)) == (first == second)


@settings(max_examples=50, deadline=None)
@given(key=keys, part=st.integers(0, 3))
def test_every_part_of_the_key_matters(key: Key, part: int) -> None:
    seed, purpose, round_, name = key
    others = (
        (seed + 1, purpose, round_, name),
        (seed, Purpose((purpose + 1) % len(Purpose)), round_, name),
        (seed, purpose, round_ + 1, name),
        (seed, purpose, round_, name + "'"),
    )
    assert not set(draws(key)) & set(draws(others[part]))
    assert not set(torch_draws(key)) & set(torch_draws(others[part]))


def test_the_parts_of_a_key_do_not_change_places() -> None:
    found = [
        tuple(draws((seed, Purpose(purpose), round_, name)))
        for seed, purpose, round_ in itertools.product(range(4), range(4), range(4))
        for name in ("", "0", "1")
    ]
    assert len(set(found)) == len(found) == 4**3 * 3


@settings(max_examples=20, deadline=None)
@given(wanted=st.lists(keys, min_size=2, max_size=5, unique=True), data=st.data())
def test_order_of_drawing_does_not_matter(wanted: list[Key], data: st.DataObject) -> None:
    one_by_one = {key: draws(key) for key in wanted}
    generators = {
        key: stream(key[0], key[1], round=key[2], name=key[3])
        for key in data.draw(st.permutations(wanted))
    }
    interleaved: dict[Key, list[int]] = {key: [] for key in wanted}
    for _ in range(4):
        for key in data.draw(st.permutations(wanted)):
            interleaved[key].append(int(generators[key].integers(2**63)))
    assert interleaved == one_by_one


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    draws((0, Purpose.INIT, 0, ""))
    torch_draws((0, Purpose.INIT, 0, ""))
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


# Known answers: a change here makes every run another run.


def test_purposes_keep_their_numbers() -> None:
    known = ["INIT", "SAMPLE_CLIENTS", "ASSIGN", "LOCAL_ORDER", "AUGMENT", "PARTITION", "SPLIT"]
    assert [purpose.name for purpose in Purpose][: len(known)] == known
    assert [int(purpose) for purpose in Purpose] == list(range(len(Purpose)))


def test_name_keys() -> None:
    assert name_key("") == 0xE3B0C44298FC1C14 >> 1  # SHA-256 of nothing
    first = hashlib.sha256("küche".encode()).hexdigest()[:16]
    assert name_key("küche") == int(first, 16) // 2


def test_known_stream() -> None:
    generator = stream(0, Purpose.ASSIGN, round=1, name="kitchen")
    same = np.random.SeedSequence(0, spawn_key=(2, 1, name_key("kitchen")))
    assert isinstance(generator.bit_generator, np.random.PCG64)
    assert np.random.PCG64(same).state == generator.bit_generator.state
    assert generator.bit_generator.random_raw(2).tolist() == [
        1073129829134091213,
        15134161358722017942,
    ]


def test_known_torch_stream() -> None:
    generator = torch_stream(0, Purpose.LOCAL_ORDER, round=1, name="kitchen")
    assert generator.device.type == "cpu"
    assert torch.randperm(8, generator=generator).tolist() == [3, 2, 1, 0, 4, 7, 5, 6]


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError):
        stream(-1, Purpose.INIT)
