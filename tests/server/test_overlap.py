"""Overlap-aware averaging: laws, a slow oracle beside the cell grid, and hand-computed values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.server.assign.weights import round_weights
from superfednas.server.average.overlap import OverlapAverage
from superfednas.supernet import Architecture, extract
from tests.support.updates import (
    ARCHS,
    GENES,
    SPACE,
    WEIGHTS,
    Fold,
    Update,
    bits,
    boxed_clients,
    positions,
    random_update,
    same_bits,
)

torch.set_num_threads(1)
EPSILON = float(np.finfo(np.float32).eps)


def oracle(state: Update, folds: Sequence[Fold]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Sum and count every element in float64, one after another; None where nobody was."""
    sums = {name: np.zeros(tuple(tensor.shape)) for name, tensor in state.items()}
    counts = {name: np.zeros(tuple(tensor.shape)) for name, tensor in state.items()}
    for update, weight, boxes in folds:
        for name, placement in boxes.items():
            where = positions(placement)
            values = update[name].double().numpy()
            for index in np.ndindex(values.shape):
                outer = tuple(where[d][i] for d, i in enumerate(index))
                sums[name][outer] += weight * values[index]
                counts[name][outer] += weight
    mean = {}
    for name, tensor in state.items():
        kept = tensor.double().numpy()
        mean[name] = np.where(counts[name] > 0, sums[name] / np.maximum(counts[name], 1e-300), kept)
    return mean, counts


def agree_with_oracle(state: Update, folds: Sequence[Fold]) -> None:
    before = {name: tensor.clone() for name, tensor in state.items()}
    average = OverlapAverage(state)
    for update, weight, boxes in folds:
        average.add(update, weight, boxes)
    result = average.result()
    expected, counts = oracle(state, folds)
    for name in state:
        largest = max(
            [float(state[name].abs().max())]
            + [float(u[name].abs().max()) for u, _, _ in folds if name in u and u[name].numel()]
        )
        # One rounding of the difference, one of the product and one of the sum a client.
        tolerance = 3 * len(folds) * EPSILON * largest
        assert np.abs(result[name].double().numpy() - expected[name]).max() <= tolerance
        nobody = counts[name] == 0
        assert np.array_equal(bits(result[name])[nobody], bits(before[name])[nobody])
    assert same_bits(state, before)


# Laws


@settings(max_examples=30, deadline=None)
@given(clients=st.lists(st.tuples(ARCHS, WEIGHTS), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_merging_what_was_extracted_changes_nothing(
    clients: list[tuple[Architecture, float]], seed: int
) -> None:
    state = SPACE.init(seed)
    average = OverlapAverage(state)
    for arch, weight in clients:
        average.add(extract(state, SPACE.boxes(arch)), weight, SPACE.boxes(arch))
    result = average.result()
    assert list(result) == list(state)
    for name, tensor in result.items():
        assert torch.equal(tensor, state[name])


@settings(max_examples=15, deadline=None)
@given(arch=ARCHS, seed=st.integers(0, 2**31))
def test_one_client_of_weight_one_is_copied_bit_for_bit(arch: Architecture, seed: int) -> None:
    state = SPACE.init(0)
    update = random_update(SPACE.shapes(arch), seed)
    average = OverlapAverage(state)
    average.add(update, 1.0)
    merged = average.result()
    assert same_bits(extract(merged, SPACE.shapes(arch)), update)
    for name, tensor in merged.items():
        outside = torch.ones(tensor.shape, dtype=torch.bool)
        if name in update:
            outside[tuple(slice(size) for size in update[name].shape)] = False
        assert torch.equal(tensor[outside], state[name][outside])


@settings(max_examples=8, deadline=None)
@given(
    archs=st.lists(ARCHS, min_size=1, max_size=4),
    weights=st.lists(WEIGHTS, min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_subnets_average_as_the_oracle_says(
    archs: list[Architecture], weights: list[float], seed: int
) -> None:
    folds = [
        (random_update(SPACE.shapes(arch), seed + k), weight, SPACE.boxes(arch))
        for k, (arch, weight) in enumerate(zip(archs, weights, strict=False))
    ]
    agree_with_oracle(SPACE.init(1), folds)


@settings(max_examples=120, deadline=None)
@given(case=boxed_clients())
def test_any_boxes_average_as_the_oracle_says(case: tuple[Update, list[Fold]]) -> None:
    agree_with_oracle(*case)


@settings(max_examples=15, deadline=None)
@given(
    beta=st.floats(1e-6, 1),
    others=st.lists(GENES, min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_what_only_the_largest_covers_takes_its_value_whatever_beta(
    beta: float, others: list[tuple[int, ...]], seed: int
) -> None:
    # Depth 0 everywhere and half width: the largest is alone in every second block.
    chosen = {"top": SPACE.largest}
    for k, genes in enumerate(others):
        chosen[str(k)] = SPACE.decode((0, 0, *genes[2:]))
    weights = round_weights(chosen, ["top"], beta)
    updates = {
        name: random_update(SPACE.shapes(arch), seed + k)
        for k, (name, arch) in enumerate(chosen.items())
    }
    average = OverlapAverage(SPACE.init(0))
    for name in reversed(chosen):
        average.add(updates[name], weights[name])
    alone = [name for name in updates["top"] if name.split(".")[2:3] == ["1"]]
    assert len(alone) == 2 * 6
    result = average.result()
    for name in alone:
        assert np.array_equal(bits(result[name]), bits(updates["top"][name]))
    shared = "head.bias"
    by_hand = sum(weights[name] * updates[name][shared].double() for name in chosen)
    tolerance = 3 * len(chosen) * EPSILON * 5
    assert (result[shared] - by_hand).abs().max() <= tolerance


@settings(max_examples=15, deadline=None)
@given(case=boxed_clients(), where=st.integers(0, 5))
def test_weight_zero_is_absent(case: tuple[Update, list[Fold]], where: int) -> None:
    state, folds = case
    with_ghost, without = OverlapAverage(state), OverlapAverage(state)
    ghost = {name: torch.full(tuple(t.shape), float("nan")) for name, t in state.items()}
    for k, (update, weight, boxes) in enumerate(folds):
        if k == where:
            with_ghost.add(ghost, 0.0)
        with_ghost.add(update, weight, boxes)
        without.add(update, weight, boxes)
    assert same_bits(with_ghost.result(), without.result())


@settings(max_examples=15, deadline=None)
@given(case=boxed_clients())
def test_state_and_updates_are_never_written_to(case: tuple[Update, list[Fold]]) -> None:
    state, folds = case
    copies = [{name: t.clone() for name, t in update.items()} for update, _, _ in folds]
    before = {name: t.clone() for name, t in state.items()}
    average = OverlapAverage(state)
    for update, weight, boxes in folds:
        average.add(update, weight, boxes)
    for tensor in average.result().values():
        tensor.fill_(7)
    assert same_bits(state, before)
    for (update, _, _), copy in zip(folds, copies, strict=True):
        assert same_bits(update, copy)


def test_the_scale_of_the_weights_does_not_matter() -> None:
    for scale in (1e-200, 1e-30, 1e30, 1e200):
        average = OverlapAverage({"w": torch.zeros(2)})
        average.add({"w": torch.tensor([1.0, 2.0])}, 3 * scale)
        average.add({"w": torch.tensor([5.0])}, scale)
        assert average.result()["w"].tolist() == [(3 * 1 + 1 * 5) / 4, 2.0]


# Examples


def test_three_elements_by_hand() -> None:
    state = {"w": torch.tensor([10.0, 20.0, 30.0, 40.0])}
    average = OverlapAverage(state)
    average.add({"w": torch.tensor([1.0, 2.0, 3.0])}, 0.75)
    average.add({"w": torch.tensor([5.0])}, 0.25)
    expected = [(0.75 * 1 + 0.25 * 5) / (0.75 + 0.25), 0.75 * 2 / 0.75, 3.0, 40.0]
    assert average.result()["w"].tolist() == expected


def test_two_intervals_by_hand() -> None:
    average = OverlapAverage({"w": torch.tensor([10.0, 20.0, 30.0])})
    average.add({"w": torch.tensor([1.0, 2.0])}, 1.0, {"w": [[(2, 3), (0, 1)]]})
    average.add({"w": torch.tensor([4.0, 6.0])}, 3.0, {"w": [[(0, 2)]]})
    assert average.result()["w"].tolist() == [(1 * 2 + 3 * 4) / 4, 6.0, 1.0]


def test_numpy_arrays_are_accepted() -> None:
    state, values = {"w": torch.zeros(2, 3)}, np.arange(6, dtype=np.float32).reshape(2, 3)
    average = OverlapAverage(state)
    average.add({"w": values}, 2.0)
    assert np.array_equal(average.result()["w"].numpy(), values)
    average.add({"w": values.T[:2, :2]}, 2.0)
    expected = values.copy()
    expected[:2, :2] = (values[:2, :2] + values.T[:2, :2]) / 2
    assert np.array_equal(average.result()["w"].numpy(), expected)


def test_half_precision_updates_fold_into_single_precision() -> None:
    average = OverlapAverage({"w": torch.zeros(2)})
    half = torch.tensor([0.1, 1000.5], dtype=torch.float16)
    average.add({"w": half}, 1.0)
    average.add({"w": torch.tensor([0.25], dtype=torch.float64)}, 1.0)
    result = average.result()["w"]
    assert result.dtype == torch.float32
    assert float(result[0]) == np.float32((float(half[0]) + 0.25) / 2)
    assert float(result[1]) == float(half[1])


def test_tensors_without_dimensions_average() -> None:
    average = OverlapAverage({"scale": torch.tensor(9.0), "other": torch.tensor(8.0)})
    average.add({"scale": torch.tensor(1.0)}, 0.25)
    average.add({"scale": torch.tensor(3.0)}, 0.75)
    result = average.result()
    assert result["scale"].shape == ()
    assert float(result["scale"]) == 0.25 * 1 + 0.75 * 3
    assert float(result["other"]) == 8.0


def test_empty_boxes_cover_nothing() -> None:
    average = OverlapAverage({"w": torch.tensor([1.0, 2.0])})
    average.add({"w": torch.empty(0)}, 1.0, {"w": [[(1, 1)]]})
    average.add({"w": torch.empty(0)}, 1.0)
    assert average.result()["w"].tolist() == [1.0, 2.0]


# Errors

PLAIN = {"a": torch.ones(2), "b": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("update", "weight", "boxes", "named"),
    [
        (PLAIN, -0.5, None, "weight = -0.5"),
        (PLAIN, float("nan"), None, "weight = nan"),
        (PLAIN, float("inf"), None, "weight = inf"),
        (PLAIN | {"c": torch.ones(1)}, 1.0, None, "'c'"),
        (PLAIN | {"b": torch.ones(2, 4)}, 1.0, None, "'b'"),
        (PLAIN | {"b": torch.ones(4)}, 1.0, None, "'b'"),
        (PLAIN | {"b": torch.tensor(1.0)}, 1.0, None, "'b'"),
        (PLAIN, 1.0, {"a": (2,)}, "same names"),
        ({"a": torch.ones(2)}, 1.0, {"a": (2,), "b": (2, 2)}, "same names"),
        (PLAIN, 1.0, {"a": (2,), "c": (2, 2)}, "'c'"),
        (PLAIN, 1.0, {"a": (2,), "b": (3, 2)}, "'b'"),
        (PLAIN, 1.0, {"a": (2,), "b": [[(2, 4)], [(0, 2)]]}, "'b'"),
        (PLAIN, 1.0, {"a": (2,), "b": [[(-1, 1)], [(0, 2)]]}, "'b'"),
    ],
)
def test_an_error_names_its_cause_and_leaves_the_average_unchanged(
    update: Update, weight: float, boxes: Mapping[str, Any] | None, named: str
) -> None:
    state = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.arange(9.0).reshape(3, 3)}
    disturbed, calm = OverlapAverage(state), OverlapAverage(state)
    first, last = random_update({"a": (3,), "b": (2, 3)}, 1), random_update({"a": (2,)}, 2)
    for average in (disturbed, calm):
        average.add(first, 0.3)
    with pytest.raises(ValueError, match=named):
        disturbed.add(update, weight, boxes)
    for average in (disturbed, calm):
        average.add(last, 0.7)
    assert same_bits(disturbed.result(), calm.result())


@pytest.mark.parametrize(
    "view",
    [lambda array: array[::-1], lambda array: array.astype(">f4")],
    ids=["reversed", "big-endian"],
)
def test_arrays_that_torch_cannot_view_are_folded_or_change_nothing(view: Any) -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(3)}
    values = np.array([1, 2, 3], np.float32)
    average = OverlapAverage(state)
    try:
        average.add({"a": np.ones(2, np.float32), "b": view(values)}, 1.0)
    except ValueError:
        assert same_bits(average.result(), state)
    else:
        assert average.result()["b"].tolist() == view(values).tolist()
        assert average.result()["a"].tolist() == [1.0, 1.0]


def test_cells_stay_few() -> None:
    # A grid grows with the distinct edges of the boxes, never with the tensor or the clients.
    average = OverlapAverage({"w": torch.zeros(64, 64)})
    for width, height in itertools.product((8, 16, 64), repeat=2):
        for _ in range(4):
            average.add({"w": torch.ones(width, height)}, 1.0)
    assert average._grids["w"].weights.shape == (3, 3)
    # Cell (0, 0) lies in all 9 boxes, the corner cell only in the full one.
    assert average._grids["w"].weights[0, 0] == 4 * 9
    assert average._grids["w"].weights[2, 2] == 4
