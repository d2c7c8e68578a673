"""Robust averages: laws, a slow dense oracle with masked arrays, and hand-computed values."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.average.robust import (
    FEW,
    MULTIPLE,
    RobustAverage,
    cells,
    clip_factors,
    trimmed,
)
from superfednas.supernet import Architecture, extract
from superfednas.supernet.boxes import Placement
from tests.support.updates import (
    ARCHS,
    SPACE,
    Fold,
    Update,
    boxed_clients,
    positions,
    random_update,
    same_bits,
)

torch.set_num_threads(1)
RULES = ("trimmed-mean", "median", "clip")
rules = st.sampled_from(RULES)


def merged(state: Update, folds: Sequence[Fold], rule: str, share: float = 0.2) -> Update:
    average = RobustAverage(state, rule, share)
    for number, (update, weight, boxes) in enumerate(folds):
        average.add(update, weight, boxes, str(number))
    return average.result()


def dense(
    state: Update, update: Update, boxes: Mapping[str, Placement]
) -> dict[str, np.ma.MaskedArray]:
    """Lay a subnet into arrays of the supernet's shape, masked where it has nothing."""
    found = {}
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        values = np.ma.array(np.zeros(shape), mask=np.ones(shape, bool))
        if name in boxes:
            values[np.ix_(*positions(boxes[name]))] = update[name].double().numpy()
        found[name] = values
    return found


def oracle(state: Update, folds: Sequence[Fold], rule: str, share: float) -> dict[str, np.ndarray]:
    """Merge one scalar after the other."""
    folds = [fold for fold in folds if fold[1]]
    sent = {name: tensor.double().numpy() for name, tensor in state.items()}
    replies = [dense(state, update, boxes) for update, _, boxes in folds]
    lengths = [np.sqrt(sum(float(((r[n] - sent[n]) ** 2).sum() or 0) for n in r)) for r in replies]
    limit = MULTIPLE * sorted(lengths)[(len(lengths) - 1) // 2] if lengths else 0.0
    result = {name: values.copy() for name, values in sent.items()}
    for name, kept in sent.items():
        for place in np.ndindex(kept.shape):
            holders = [k for k, r in enumerate(replies) if not np.ma.getmaskarray(r[name])[place]]
            if not holders:
                continue
            found = [float(replies[k][name][place]) for k in holders]
            if rule == "clip" or len(found) < 3:
                scaled = [
                    kept[place] + (value - kept[place]) * min(1, limit / max(lengths[k], 1e-300))
                    for k, value in zip(holders, found, strict=True)
                ]
                result[name][place] = np.mean(scaled)
            elif rule == "median":
                result[name][place] = np.median(found)
            else:
                cut = min(max(1, int(np.ceil(share * len(found) - 1e-9))), (len(found) - 1) // 2)
                result[name][place] = np.mean(sorted(found)[cut : len(found) - cut])
    return result


def covering(state: Update, folds: Sequence[Fold]) -> dict[str, np.ndarray]:
    counts = {name: np.zeros(tuple(tensor.shape), int) for name, tensor in state.items()}
    for _, weight, boxes in folds:
        for name, placement in boxes.items():
            counts[name][np.ix_(*positions(placement))] += weight > 0
    return counts


def everywhere(state: Update, seeds: Sequence[int]) -> list[Fold]:
    """Give full-size random updates."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    boxes = {name: tuple(((0, size),) for size in shape) for name, shape in shapes.items()}
    return [(random_update(shapes, seed), 1.0, boxes) for seed in seeds]


# Laws


@settings(max_examples=40, deadline=None)
@given(
    case=boxed_clients(),
    rule=rules,
    share=st.sampled_from([0.1, 0.2, 0.34, 0.5]),
    scales=st.lists(st.sampled_from([1.0, 1.0, 20.0]), min_size=5, max_size=5),
)
def test_any_boxes_merge_as_the_oracle_says(
    case: tuple[Update, list[Fold]], rule: str, share: float, scales: list[float]
) -> None:
    state, folds = case
    folds = [
        ({name: scale * tensor for name, tensor in update.items()}, weight, boxes)
        for scale, (update, weight, boxes) in zip(scales, folds, strict=False)
    ]
    before = {name: tensor.clone() for name, tensor in state.items()}
    result = merged(state, folds, rule, share)
    expected = oracle(state, folds, rule, share)
    for name, tensor in result.items():
        assert tensor.dtype == state[name].dtype
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-6, atol=1e-6)
    assert same_bits(state, before)


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients(), rule=rules, data=st.data())
def test_the_order_of_replies_does_not_matter(
    case: tuple[Update, list[Fold]], rule: str, data: st.DataObject
) -> None:
    state, folds = case
    shuffled = data.draw(st.permutations(folds))
    assert same_bits(merged(state, folds, rule), merged(state, shuffled, rule))


@settings(max_examples=25, deadline=None)
@given(
    archs=st.lists(ARCHS, min_size=1, max_size=6),
    rule=rules,
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_replies_that_agree_are_the_result(
    archs: list[Architecture], rule: str, seed: int, data: st.DataObject
) -> None:
    state = SPACE.init(0)
    noise = random_update(SPACE.shapes(SPACE.largest), seed)
    target = {name: tensor + 0.01 * noise[name] for name, tensor in state.items()}
    # The widest comes often enough to be the median, so that no one is clipped.
    widest = max(archs, key=SPACE.params)
    folds = [(extract(target, SPACE.boxes(a)), 1.0, SPACE.boxes(a)) for a in archs]
    folds += [(extract(target, SPACE.boxes(widest)), 1.0, SPACE.boxes(widest))] * (len(archs) + 1)
    result = merged(state, data.draw(st.permutations(folds)), rule)
    for update, _, boxes in folds:
        assert same_bits(extract(result, boxes), update)


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients(), rule=rules)
def test_what_nobody_covers_is_kept(case: tuple[Update, list[Fold]], rule: str) -> None:
    state, folds = case
    result, counts = merged(state, folds, rule), covering(state, folds)
    for name, tensor in result.items():
        nobody = counts[name] == 0
        assert np.array_equal(tensor.numpy()[nobody], state[name].numpy()[nobody])


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients(), rule=st.sampled_from(["trimmed-mean", "median"]))
def test_cells_of_fewer_than_three_replies_are_clipped(
    case: tuple[Update, list[Fold]], rule: str
) -> None:
    state, folds = case
    result, clipped = merged(state, folds, rule), merged(state, folds, "clip")
    counts = covering(state, folds)
    for name, tensor in result.items():
        few = counts[name] < FEW
        assert np.array_equal(tensor.numpy()[few], clipped[name].numpy()[few])


@settings(max_examples=40, deadline=None)
@given(
    rule=st.sampled_from(["trimmed-mean", "median"]),
    attack=st.floats(-(2.0**100), 2.0**100, width=32),
    seed=st.integers(0, 2**20),
    where=st.integers(0, 4),
)
def test_one_attacker_of_five_cannot_leave_the_range_of_the_others(
    rule: str, attack: float, seed: int, where: int
) -> None:
    state = {"w": torch.zeros(3, 4), "b": torch.zeros(3)}
    honest = everywhere(state, range(seed, seed + 4))
    false = {name: torch.full(tuple(t.shape), attack) for name, t in state.items()}
    folds = [*honest[:where], (false, 1.0, honest[0][2]), *honest[where:]]
    result = merged(state, folds, rule)
    for name, tensor in result.items():
        values = torch.stack([update[name] for update, _, _ in honest])
        assert (values.amin(0) <= tensor).all() and (tensor <= values.amax(0)).all()


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients(), scale=st.sampled_from([1.0, 1e3, 1e15]), rule=rules)
def test_no_clipped_change_is_longer_than_the_limit(
    case: tuple[Update, list[Fold]], scale: float, rule: str
) -> None:
    # A lone reply has no one to be compared with: two or more.
    state, folds = case
    folds = [(update, 1.0, boxes) for update, _, boxes in folds]
    update, weight, boxes = folds[0]
    long = {name: tensor * scale for name, tensor in update.items()}
    lengths = [
        float(np.sqrt(sum(((dense(state, u, b)[n] - state[n].numpy()) ** 2).sum() or 0 for n in b)))
        for u, _, b in [(long, weight, boxes), *folds[1:]]
    ]
    factors = clip_factors(lengths)
    limit = MULTIPLE * sorted(lengths)[(len(lengths) - 1) // 2]
    for length, factor in zip(lengths, factors, strict=True):
        assert 0 <= factor <= 1
        assert length * factor <= limit * (1 + 1e-12)
        assert factor == 1 or length > limit


def test_without_outliers_clipping_is_the_plain_average() -> None:
    state = SPACE.init(0)
    plain, clip = OverlapAverage(state), RobustAverage(state, "clip")
    for number, arch in enumerate([SPACE.largest, SPACE.smallest, SPACE.largest]):
        boxes = SPACE.boxes(arch)
        noise = random_update(SPACE.shapes(arch), number)
        length = float(np.sqrt(sum(float(t.square().sum()) for t in noise.values())))
        part = extract(state, boxes)
        update = {name: part[name] + noise[name] / length for name in part}
        for average in (plain, clip):
            average.add(update, 1.0, boxes)
    found = clip.result()
    for name, tensor in plain.result().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    assert clip.verdicts == {}


# Examples


def test_overlapping_slices_by_hand() -> None:
    # Elements 0 and 1 lie in five replies, 2 in three, 3 in one (the longest), 4 in none.
    state = {"w": torch.tensor([0.0, 0.0, 0.0, 0.0, 7.0])}
    replies = [[1.0, 2.0], [3.0, 0.0], [2.0, 4.0, 6.0], [5.0, 1.0, 3.0], [100.0, -50.0, -9.0, 40.0]]

    def by(rule: str) -> tuple[list[float], dict[str, str]]:
        average = RobustAverage(state, rule)
        for number, values in enumerate(replies):
            average.add({"w": torch.tensor(values)}, 1.0, client=str(number))
        return average.result()["w"].tolist(), average.verdicts

    # Lengths: √5, 3, √56, √35, √(10000 + 2500 + 81 + 1600); their median is √35.
    factor = 2 * 35**0.5 / 14181**0.5
    alone = pytest.approx(40 * factor)
    said = f"its change was clipped to {factor:.0%}"
    few = {"4": f"{said} where fewer than 3 replies meet"}
    assert by("median") == ([3.0, 1.0, 3.0, alone, 7.0], few)
    third = (0 + 1 + 2) / 3
    assert by("trimmed-mean") == ([pytest.approx((2 + 3 + 5) / 3), third, 3.0, alone, 7.0], few)
    values, verdicts = by("clip")
    assert values == [
        pytest.approx((1 + 3 + 2 + 5 + 100 * factor) / 5),
        pytest.approx((2 + 0 + 4 + 1 - 50 * factor) / 5),
        pytest.approx((6 + 3 - 9 * factor) / 3),
        alone,
        7.0,
    ]
    assert verdicts == {"4": said}


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_three_replies_are_compared_as_they_came(rule: str) -> None:
    # Clipped, the long one would be (0.4, 4.0): the middle of the first element.
    average = RobustAverage({"w": torch.zeros(2)}, rule)
    for values in ([-1.0], [2.0], [100.0, 1000.0]):
        average.add({"w": torch.tensor(values)}, 1.0)
    assert average.result()["w"].tolist() == [2.0, pytest.approx(4.0, rel=0.01)]


def test_sums_that_lose_digits_do_not_depend_on_the_order() -> None:
    # In doubles 2⁶⁰ + 1 − 2⁶⁰ is 0, and 2⁶⁰ − 2⁶⁰ + 1 is 1.
    found = set()
    for values in itertools.permutations((2.0**60, 1.0, -(2.0**60))):
        average = RobustAverage({"w": torch.zeros(1)}, "clip")
        for value in values:
            average.add({"w": torch.tensor([value])}, 1.0)
        found.add(average.result()["w"].item())
    assert len(found) == 1


def test_of_four_replies_the_median_is_the_mean_of_the_middle_two() -> None:
    state = {"w": torch.zeros(1)}
    folds = everywhere(state, range(4))
    for (update, _, _), value in zip(folds, (9.0, 1.0, 2.0, 4.0), strict=True):
        update["w"][0] = value
    assert merged(state, folds, "median")["w"].tolist() == [(2 + 4) / 2]


@pytest.mark.parametrize(
    ("count", "share", "cut"),
    [
        (3, 0.2, 1),
        (4, 0.2, 1),
        (5, 0.2, 1),
        (6, 0.2, 2),
        (10, 0.2, 2),
        (15, 0.2, 3),
        (100, 0.07, 7),
        (10, 0.01, 1),
        (4, 0.5, 1),
        (10, 0.5, 4),
        (9, 0.4, 4),
    ],
)
def test_how_many_are_cut_from_either_end(count: int, share: float, cut: int) -> None:
    assert trimmed(count, "trimmed-mean", share) == cut
    assert trimmed(count, "median", share) == (count - 1) // 2


def test_of_two_replies_the_shorter_sets_the_limit() -> None:
    assert clip_factors([]) == []
    assert clip_factors([5.0]) == [1.0]
    assert clip_factors([1.0, 10.0]) == [1.0, MULTIPLE * 1 / 10]
    assert clip_factors([0.0, 10.0, 0.0]) == [1.0, 0.0, 1.0]


def test_weights_buy_nothing_but_zero_is_absent() -> None:
    state = {"w": torch.zeros(4)}
    folds = everywhere(state, range(5))
    heavy = [(update, 10.0**k, boxes) for k, (update, _, boxes) in enumerate(folds)]
    ghost = ({"w": torch.full((4,), 1e9)}, 0.0, folds[0][2])
    for rule in RULES:
        assert same_bits(merged(state, folds, rule), merged(state, [*heavy, ghost], rule))


def test_tensors_without_dimensions_and_half_precision_merge() -> None:
    average = RobustAverage({"s": torch.tensor(9.0)}, "median")
    for value in (1.0, 2.5, 4.0):
        average.add({"s": torch.tensor(value, dtype=torch.bfloat16)}, 1.0)
    result = average.result()["s"]
    assert (result.shape, result.dtype, float(result)) == ((), torch.float32, 2.5)


def test_without_replies_the_state_is_kept() -> None:
    state = {"w": torch.ones(2)}
    assert same_bits(RobustAverage(state, "median").result(), state)


@pytest.mark.parametrize("shape", [(), (5,), (3, 0), (7, 6, 2)])
def test_large_cells_are_merged_in_blocks(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superfednas.server.average.robust._BLOCK", 24)
    box = tuple(slice(0, size) for size in shape)
    seen = np.zeros(shape, int)
    for cell in cells(shape, [box]):
        assert seen[cell].size <= 24
        seen[cell] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("update", [{"v": torch.ones(1)}, {"w": torch.ones(3)}])
def test_an_error_holds_nothing(update: Update) -> None:
    average = RobustAverage({"w": torch.zeros(2)}, "median")
    with pytest.raises(ValueError, match=r"'v'|'w'"):
        average.add(update, 1.0)
    with pytest.raises(ValueError, match="weight"):
        average.add({"w": torch.ones(2)}, -1.0)
    assert average.result()["w"].tolist() == [0.0, 0.0]
