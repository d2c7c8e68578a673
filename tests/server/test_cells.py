"""Replies folded together, tile by tile, give the bits of one after the other."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.server.average.threads
from superfednas.server.average.cells import rows
from superfednas.server.average.overlap import TOGETHER, Given, OverlapAverage
from superfednas.server.average.robust import RobustAverage
from superfednas.supernet import State
from tests.support.updates import Fold, boxed_clients, random_update, same_bits


@pytest.fixture(params=[1, 3, 1 << 20], scope="module")
def tile(request: pytest.FixtureRequest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superfednas.server.average.threads, "_TILE", request.param)
        patch.setattr(superfednas.server.average.threads, "_WORTH", request.param)
        yield request.param


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(case=boxed_clients(), again=st.integers(1, 12))
def test_together_is_one_after_the_other(
    tile: int, case: tuple[State, list[Fold]], again: int
) -> None:
    """Also of more than eight, which takes a second pass, and where boxes are joined."""
    state, first = case
    folds = [
        (random_update({n: tuple(t.shape) for n, t in update.items()}, seed), weight, boxes)
        for seed, (update, weight, boxes) in enumerate(first * again)
    ]
    together, single = OverlapAverage(state), OverlapAverage(state)
    together.add_all(Given(*fold) for fold in folds)
    for update, weight, boxes in folds:
        single.add(update, weight, boxes)
    assert same_bits(together.result(), single.result())


def test_formats_and_scalars_are_folded_together_too(tile: int) -> None:
    state = {"half": torch.zeros(9, 2), "one": torch.tensor(0.0), "none": torch.zeros(0, 3)}
    generator = torch.Generator().manual_seed(0)
    updates = [
        {
            "half": torch.randn(9, 2, generator=generator).to(torch.bfloat16),
            "one": torch.randn((), generator=generator),
            "none": torch.zeros(0, 3),
        }
        for _ in range(3)
    ]
    together, single = OverlapAverage(state), OverlapAverage(state)
    together.add_all(Given(update, 1.0 + k) for k, update in enumerate(updates))
    for k, update in enumerate(updates):
        single.add(update, 1.0 + k)
    assert same_bits(together.result(), single.result())


def test_robust_averages_take_several_as_one_after_the_other() -> None:
    state = {"w": torch.zeros(3)}
    together, single = RobustAverage(state, "median"), RobustAverage(state, "median")
    updates = [{"w": torch.tensor([k, -k, k * k], dtype=torch.float32)} for k in range(5)]
    together.add_all(Given(update, 1.0, None, str(k)) for k, update in enumerate(updates))
    for k, update in enumerate(updates):
        single.add(update, 1.0, client=str(k))
    assert same_bits(together.result(), single.result())
    assert together.result()["w"].tolist() == [2.0, -2.0, 4.0]


def test_no_more_than_eight_are_asked_for_before_they_are_folded() -> None:
    """Replies that wait on the disk are read one pass at a time."""
    average = OverlapAverage({"w": torch.zeros(2)})
    asked = 0

    def replies():
        nonlocal asked
        for k in range(2 * TOGETHER + 1):
            folded = int(average._grids["w"].weights.sum())
            assert asked - folded < TOGETHER
            asked += 1
            yield Given({"w": torch.full((2,), float(k))}, 1.0)

    average.add_all(replies())
    assert asked == 17 and average.result()["w"].tolist() == pytest.approx([8.0, 8.0])


def test_of_eight_with_a_bad_one_none_is_folded() -> None:
    state = {"w": torch.ones(2)}
    average = OverlapAverage(state)
    good, bad = Given({"w": torch.zeros(2)}, 1.0), Given({"w": torch.zeros(3)}, 1.0)
    with pytest.raises(ValueError, match="does not fit"):
        average.add_all([good, bad])
    assert same_bits(average.result(), state)


@given(
    start=st.integers(0, 5),
    length=st.integers(0, 5),
    offset=st.integers(0, 3),
    low=st.integers(0, 10),
    height=st.integers(1, 10),
)
def test_rows_of_a_cell_by_trying_every_row(
    start: int, length: int, offset: int, low: int, height: int
) -> None:
    cell, within = (slice(start, start + length),), (slice(offset, offset + length),)
    found = rows(cell, within, low, low + height)
    pairs = [(start + k, offset + k) for k in range(length) if low <= start + k < low + height]
    if found is None:
        assert not pairs
        return
    outer, inner = (list(range(20))[part[0]] for part in found)
    assert list(zip(outer, inner, strict=True)) == pairs


@pytest.mark.parametrize(("cell", "within"), [((), ()), ((slice(None), slice(1, 2)),) * 2])
def test_rows_of_what_nothing_cuts_along_the_first_dimension(cell, within) -> None:
    whole = np.arange(12).reshape(6, 2)
    parts = [rows(cell, within, low, low + 2) for low in range(0, 6, 2)]
    assert all(found is not None for found in parts)
    seen = [whole[outer].tolist() for outer, _ in parts]  # type: ignore[misc]
    expected = whole[:, 1:2] if cell else whole
    assert list(itertools.chain(*seen)) == expected.tolist()
