"""Cells, fixed point, keys and shares: what both sides of secure aggregation compute."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.supernet.boxes import pieces, window
from superfednas.wire.flat import arrays_of
from superfednas.wire.order import SpaceOptions
from superfednas.wire.secure.cells import FEW, Cell, Rule, cells_of, view, within
from superfednas.wire.secure.fixed import clipped, from_fixed, scale_of, to_fixed
from superfednas.wire.secure.keys import (
    KeyProblem,
    Secrets,
    add_mask,
    check_public,
    check_signature,
    pair_key,
    restore,
    signature,
    split,
)
from superfednas.wire.secure.parties import Parties, Party, statement

clips = st.floats(1e-6, 1e6)


@st.composite
def windows(draw):
    """Draw a tensor's shape, and windows of it that several clients hold; some roll over."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    held = {}
    for who in range(draw(st.integers(1, 6))):
        sides = [window(draw(st.integers(1, n)), n, draw(st.integers(0, n))) for n in shape]
        if draw(st.booleans()):
            held[who] = {"w": tuple(sides)}
    return shape, held


@settings(max_examples=150, deadline=None)
@given(drawn=windows())
def test_cells_hold_every_number_once_with_just_its_holders(drawn) -> None:
    shape, held = drawn
    counted = np.zeros(shape, int)
    holders = {who: np.zeros(shape, bool) for who in range(6)}
    for who, boxes in held.items():
        for outer, _ in pieces(boxes["w"]):
            holders[who][view(outer)] = True
    for cell in cells_of({"w": shape}, held):
        counted[view(cell.place)] += 1
        for who, inside in holders.items():
            assert (inside[view(cell.place)] == (who in cell.holders)).all()
    assert (counted == np.any(list(holders.values()), axis=0)).all()


@settings(max_examples=150, deadline=None)
@given(drawn=windows())
def test_a_cell_lies_in_a_subnet_where_its_numbers_do(drawn) -> None:
    shape, held = drawn
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    for who, boxes in held.items():
        sides = [sum(b - a for a, b in side) for side in boxes["w"]]
        subnet = np.zeros(sides, int)
        for outer, inner in pieces(boxes["w"]):
            subnet[view(inner)] = numbers[view(outer)]
        for cell in cells_of({"w": shape}, held):
            if who in cell.holders:
                here = subnet[view(within(cell, boxes["w"]))]
                assert (here == numbers[view(cell.place)]).all()


@given(
    clip=clips,
    count=st.integers(3, 1000),
    shares=st.lists(st.floats(-1, 1), min_size=1, max_size=20),
)
def test_no_sum_of_clipped_numbers_wraps_and_each_is_off_by_half_a_step(
    clip, count, shares
) -> None:
    scale = scale_of(clip, count)
    numbers = clip * np.array(shares)
    assert (np.abs(from_fixed(to_fixed(numbers, scale), scale) - numbers) <= 0.5 / scale).all()
    extreme = to_fixed(np.array([clip, -clip]), scale)
    sums = from_fixed((extreme.astype(np.uint64) * count).astype(np.uint32), scale)
    assert np.abs(sums - count * np.array([clip, -clip])).max() <= count / scale


@settings(max_examples=40)
@given(clip=clips, change=st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1))
def test_a_change_is_clipped_in_length_alone(clip, change) -> None:
    numbers = np.array(change)
    found = clipped(numbers, clip)
    assert np.linalg.norm(found) <= clip * (1 + 1e-9)
    if np.linalg.norm(numbers) <= clip:
        assert (found == numbers).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_a_change_without_a_length_is_none(bad: float) -> None:
    assert not clipped(np.array([1.0, bad]), 1.0).any()


@given(seed=st.integers(0, 99), threshold=st.integers(2, 6), extra=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_threshold_shares_restore_and_fewer_or_false_ones_do_not(seed, threshold, extra) -> None:
    random = np.random.default_rng(seed)
    secret, clients = os.urandom(16), threshold + extra
    shares = dict(enumerate(split(secret, threshold, clients)))
    some = {int(k): shares[int(k)] for k in random.permutation(clients)[:threshold]}
    assert restore(some, threshold, secret.__eq__) == secret
    del some[next(iter(some))]
    assert restore(some, threshold, secret.__eq__) is None
    false = shares | {0: os.urandom(16)}
    assert restore(false, threshold, secret.__eq__) == (secret if extra else None)


def test_two_clients_agree_on_a_key_and_a_third_on_another() -> None:
    (one, _), (two, _), (three, _) = (Secrets.fresh() for _ in range(3))
    key = pair_key(one.seed, two.public, b"a")
    assert key == pair_key(two.seed, one.public, b"a")
    others = {pair_key(one.seed, two.public, b"b"), pair_key(three.seed, two.public, b"a")}
    assert key not in others and len(others) == 2


def test_masks_cancel_and_differ_with_the_key() -> None:
    parts = [np.zeros((2, 3), np.uint32), np.zeros((), np.uint32)]
    add_mask(parts, bytes(32))
    masked = [part.copy() for part in parts]
    assert all(part.all() for part in masked)
    add_mask(parts, bytes(32), subtract=True)
    assert not any(part.any() for part in parts)
    add_mask(parts, bytes(31) + b"1")
    assert (parts[0] != masked[0]).all()


def test_what_is_sealed_opens_for_whom_it_is_meant_about_what_it_was() -> None:
    (one, _), (two, _), (three, _) = (Secrets.fresh() for _ in range(3))
    sealed = one.seal(b"text", two.public, b"round 1")
    assert two.unseal(sealed, one.public, b"round 1") == b"text"
    spoilt = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for who, text, by, about in (
        (three, sealed, one, b"round 1"),
        (two, sealed, three, b"round 1"),
        (two, sealed, one, b"round 2"),
        (two, spoilt, one, b"round 1"),
        (two, b"", one, b"round 1"),
    ):
        with pytest.raises(KeyProblem):
            who.unseal(text, by.public, about)


@pytest.mark.parametrize("keys", [b"", bytes(64), bytes(63), b"\1" + bytes(63)])
def test_keys_with_which_nothing_can_be_agreed_are_refused(keys: bytes) -> None:
    with pytest.raises(KeyProblem):
        check_public(keys)


@pytest.mark.parametrize("form", ["OpenSSH", "PKCS8"])
def test_only_the_nodes_own_key_signs_for_it(form: str, tmp_path) -> None:
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            getattr(serialization.PrivateFormat, form),
            serialization.NoEncryption(),
        )
        (tmp_path / f"{name}.key").write_bytes(private)
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        (tmp_path / f"{name}.pub").write_bytes(public + b"\n")
    text = statement(1, "a", "00")
    signed = signature(text, tmp_path / "mine.key")
    check_signature(text, signed, tmp_path / "mine.pub")
    for words, by, of in (
        (statement(2, "a", "00"), signed, "mine"),
        (statement(1, "b", "00"), signed, "mine"),
        (text, signed, "other"),
        (text, b"", "mine"),
        (text, signed, "nobody"),
    ):
        with pytest.raises(KeyProblem):
            check_signature(words, by, tmp_path / f"{of}.pub")
    with pytest.raises(KeyProblem):
        signature(text, tmp_path / "mine.pub")


@settings(max_examples=30, deadline=None)
@given(count=st.integers(3, 200))
def test_two_answers_about_one_client_cannot_both_have_enough_shares(count: int) -> None:
    parties = Parties(
        1, 1.0, False, SpaceOptions(), tuple(Party(str(k), "", 0, 1.0, "") for k in range(count))
    )
    assert count >= parties.threshold > 2 * count / 3
    assert parties == Parties.read(parties.text())
    assert parties.digest == Parties.read(parties.text()).digest


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    few=st.booleans(),
    gone=st.sets(st.integers(0, 11), max_size=4),
)
def test_what_is_released_has_enough_survivors_or_none(sizes, few, gone) -> None:
    rule = Rule(1 if few else FEW, 4)
    cells = [Cell("w", (), tuple(range(size))) for size in sizes]
    survivors = set(range(12)) - gone
    tiers = rule.released(cells, survivors)
    for cell in cells:
        left = len(survivors & set(cell.holders))
        assert (rule.tier(cell) is None) == (len(cell.holders) < rule.least)
        if rule.tier(cell) in tiers:
            assert left == 0 or left >= rule.least
    assert gone or tiers == {rule.tier(cell) for cell in cells} - {None}


def test_arrays_are_views_of_the_flat_one() -> None:
    flat = np.zeros(7, np.uint32)
    found = arrays_of(flat, {"a": (2, 3), "b": ()})
    found["a"][1, 2], found["b"][...] = 5, 6
    assert flat.tolist() == [0, 0, 0, 0, 0, 5, 6]
