"""Histories: laws, a slow oracle, values by hand, and two colluding nodes among ten."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.common.settings import Scalar
from superfednas.records.checkpoint import Checkpoint
from superfednas.records.folder import RunFolder
from superfednas.server.average.history import (
    DECAY,
    FAR,
    FORGET,
    HEARD,
    Histories,
    HistoryAverage,
    deviations,
    stand_out,
)
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.average.robust import MULTIPLE, RobustAverage, clip_factors
from superfednas.supernet.boxes import Placement
from tests.server.test_strategy import Interrupted, Interrupting
from tests.support.rows import lines
from tests.support.training import full_run, same, timeless
from tests.support.updates import (
    Fold,
    Update,
    boxed_clients,
    positions,
    random_update,
    same_bits,
)

torch.set_num_threads(1)
WIDE = {"w": (40, 30), "b": (40,)}


def merged(
    state: Update, folds: Sequence[Fold], histories: Histories | None = None
) -> tuple[Update, HistoryAverage]:
    average = HistoryAverage(state, histories or Histories())
    for number, (update, weight, boxes) in enumerate(folds):
        average.add(update, weight, boxes, f"c{number}")
    return average.result(), average


def everywhere(update: Update, boxes: dict[str, Placement] | None = None) -> Fold:
    shapes = {name: tuple(tensor.shape) for name, tensor in update.items()}
    return update, 1.0, boxes or {n: tuple(((0, s),) for s in shape) for n, shape in shapes.items()}


# Laws


@settings(max_examples=60, deadline=None)
@given(case=boxed_clients())
def test_where_nobody_is_named_it_is_the_plain_average(case: tuple[Update, list[Fold]]) -> None:
    state, folds = case
    folds = [(update, 1.0, boxes) for update, _, boxes in folds]
    found, average = merged(state, folds)
    if average.verdicts:
        return
    plain = OverlapAverage(state)
    for update, weight, boxes in folds:
        plain.add(update, weight, boxes)
    for name, tensor in plain.result().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients(), data=st.data())
def test_the_order_of_replies_does_not_matter_nor_later(
    case: tuple[Update, list[Fold]], data: st.DataObject
) -> None:
    state, folds = case
    named = [(f"c{k}", fold) for k, fold in enumerate(folds)]
    results = []
    for order in (named, data.draw(st.permutations(named))):
        histories, now = Histories(), state
        for _ in range(2):
            average = HistoryAverage(now, histories)
            for client, (update, weight, boxes) in order:
                average.add(update, weight, boxes, client)
            now = average.result()
        results.append((now, histories.momenta))
    (first, one), (second, two) = results
    assert same_bits(first, second) and one.keys() == two.keys()
    assert all(same_bits(one[client], two[client]) for client in one)


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients())
def test_what_nobody_covers_is_kept_and_the_state_is_not_written_to(
    case: tuple[Update, list[Fold]],
) -> None:
    state, folds = case
    before = {name: tensor.clone() for name, tensor in state.items()}
    result, _ = merged(state, folds)
    assert same_bits(state, before)
    for name, tensor in result.items():
        covered = np.zeros(tuple(tensor.shape), bool)
        for _, weight, boxes in folds:
            if name in boxes and weight:
                covered[np.ix_(*positions(boxes[name]))] = True
        assert np.array_equal(tensor.numpy()[~covered], state[name].numpy()[~covered])


@settings(max_examples=60, deadline=None)
@given(
    attack=st.floats(-(2.0**120), 2.0**120, width=32),
    seed=st.integers(0, 2**20),
    rounds=st.integers(1, 7),
)
def test_one_attacker_of_any_size_moves_a_cell_by_a_bounded_length(
    attack: float, seed: int, rounds: int
) -> None:
    state = {"w": torch.zeros(3, 4), "b": torch.zeros(3)}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    histories = Histories()
    for number in range(rounds):
        honest = [random_update(shapes, seed + 4 * number + k) for k in range(4)]
        false = {name: torch.full(shape, attack) for name, shape in shapes.items()}
        folds = [everywhere(update) for update in (*honest, false)]
        result, average = merged(state, folds, histories)
        kept = [int(reply.client[1:]) for reply in average._held]
        norms = [norm(update) for update in (*honest, false)]
        factors = clip_factors([norms[k] for k in kept])
        moved = {
            name: tensor.double()
            - sum(f * honest[k][name].double() for f, k in zip(factors, kept, strict=True) if k < 4)
            / len(kept)
            for name, tensor in result.items()
        }
        assert norm(moved) <= MULTIPLE * max(norms[:4]) / len(kept) * (1 + 1e-6) + 1e-6
    assert all(
        t.isfinite().all() for momentum in histories.momenta.values() for t in momentum.values()
    )


def norm(update: Update) -> float:
    return float(np.sqrt(sum(float(t.double().square().sum()) for t in update.values())))


@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(boxed_clients(), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_momenta_and_agreement_as_the_oracle_says(
    rounds: list[tuple[Update, list[Fold]]], seed: int
) -> None:
    # One number after the other; later rounds have the first one's state, where it fits.
    state, histories = rounds[0][0], Histories()
    known: dict[tuple[str, str, tuple[int, ...]], float] = {}
    for _, folds in rounds:
        fitting = [
            (update, 1.0, boxes)
            for update, _, boxes in folds
            if all(
                name in state
                and len(placement) == state[name].ndim
                and all(p[-1][1] <= s for p, s in zip(placement, state[name].shape, strict=True))
                and all(
                    e <= s for p, s in zip(placement, state[name].shape, strict=True) for _, e in p
                )
                for name, placement in boxes.items()
            )
        ]
        average = HistoryAverage(state, histories)
        for k, (update, weight, boxes) in enumerate(fitting):
            average.add(update, weight, boxes, f"c{k}")
        held = list(average._held)
        factors = clip_factors([reply.length for reply in held])
        places: dict[tuple[str, tuple[int, ...]], dict[int, float]] = {}
        for k, (update, _, boxes) in enumerate(fitting):
            for name, placement in boxes.items():
                where = positions(placement)
                for index in np.ndindex(tuple(update[name].shape)):
                    place = tuple(row[i] for row, i in zip(where, index, strict=True))
                    change = factors[k] * (float(update[name][index]) - float(state[name][place]))
                    key = (f"c{k}", name, place)
                    new = DECAY * known[key] + (1 - DECAY) * change if key in known else change
                    known[key] = float(np.float32(new))
                    places.setdefault((name, place), {})[k] = known[key]
        average.result()
        for (client, name, place), value in known.items():
            assert float(histories.momenta[client][name][place]) == pytest.approx(
                value, rel=1e-5, abs=1e-7
            )
        products, squares = np.zeros((len(held),) * 2), np.zeros((len(held),) * 2)
        for of in places.values():
            if len(of) >= 3:
                middle = float(np.median(list(of.values())))
                for i, x in of.items():
                    for j, y in of.items():
                        products[i, j] += (x - middle) * (y - middle)
                        squares[i, j] += (x - middle) ** 2
        momenta = [histories.momenta[reply.client] for reply in held]
        agreement, _ = deviations(held, momenta, state)
        lengths = np.sqrt(squares * squares.T)
        expected = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 1e-12)
        np.testing.assert_allclose(agreement[lengths > 1e-12], expected[lengths > 1e-12], atol=1e-4)


# Values by hand


def test_a_momentum_by_hand() -> None:
    histories, state = Histories(), {"w": torch.tensor([1.0, 1.0, 1.0])}
    for values in ([2.0], [4.0, 5.0]):  # changes 1, then 3 and 4
        average = HistoryAverage(state, histories)
        average.add({"w": torch.tensor(values)}, 1.0, client="a")
        average.result()
    found = histories.momenta["a"]["w"]
    assert found[:2].tolist() == [pytest.approx(DECAY * 1 + (1 - DECAY) * 3), 4.0]
    assert found[2].isnan() and histories.replies == {"a": 2}


def test_deviations_by_hand() -> None:
    # Medians: 0 and 1. Deviations: (-1, 0), (0, -1), (0, 0), (2, 2); their squares 1, 1, 0, 8.
    average = HistoryAverage({"w": torch.zeros(3)}, Histories())
    rows = ([-1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [2.0, 3.0, 9.0])
    for number, row in enumerate(rows):
        average.add({"w": torch.tensor(row)}, 1.0, client=str(number))
    momenta = [{"w": torch.tensor([*row, *[torch.nan] * (3 - len(row))])} for row in rows]
    agreement, distance = deviations(average._held, momenta, {"w": torch.zeros(3)})
    against = -2 / 8**0.5
    assert agreement[0].tolist() == [1.0, 0.0, 0.0, pytest.approx(against)]
    assert agreement[1, 3] == pytest.approx(against) and agreement[2].tolist() == [0.0] * 4
    # The lower median of the lengths is 1.
    assert distance.tolist() == [1.0, 1.0, 0.0, pytest.approx(8**0.5)]


def test_the_worst_are_left_out_and_fewer_than_half() -> None:
    apart = np.eye(5)
    assert stand_out(apart, np.array([1, 1, 1, 1, FAR])) == {}
    assert stand_out(apart, np.array([1, 1, 2, 1, 3])) == {4: None, 2: None}
    assert stand_out(apart, np.array([4, 1, 2, 1, 3])) == {0: None, 4: None}
    pairs = apart.copy()
    pairs[1, 0] = pairs[0, 1] = 0.7
    pairs[3, 2] = pairs[2, 3] = 0.9
    assert stand_out(pairs, np.ones(5)) == {3: 2, 2: 3}
    assert stand_out(pairs[:4, :4], np.ones(4)) == {}
    assert stand_out(np.ones((2, 2)), np.array([9.0, 9.0])) == {}


def test_distance_is_judged_from_the_fifth_reply_on() -> None:
    state = {name: torch.zeros(shape) for name, shape in WIDE.items()}
    histories, said = Histories(), []
    for number in range(HEARD + 1):
        folds = [everywhere(random_update(WIDE, 10 * number + k)) for k in range(5)]
        long = {name: 1.9 * tensor for name, tensor in random_update(WIDE, 7777).items()}
        _, average = merged(state, [*folds, everywhere(long)], histories)
        said.append(sorted(average.verdicts))
    assert said == [[]] * (HEARD - 1) + [["c5"]] * 2


def test_who_is_silent_for_long_is_forgotten() -> None:
    histories = Histories()
    state = {"w": torch.zeros(1)}
    for number in range(FORGET + 2):
        average = HistoryAverage(state, histories)
        for client in ("a", "b")[: 1 if number else 2]:
            average.add({"w": torch.ones(1)}, 1.0, client=client)
        average.result()
        assert ("b" in histories.momenta) == (number <= FORGET)
    assert histories.replies == {"a": FORGET + 2} and histories.silent == {"a": 0}


# The checkpoint


def test_histories_survive_a_checkpoint() -> None:
    state = {name: torch.zeros(shape) for name, shape in WIDE.items()}
    histories = Histories()
    merged(state, [everywhere(random_update(WIDE, k)) for k in range(3)], histories)
    other = Histories()
    other.restore(json.loads(json.dumps(histories.state())))
    other.recall(histories.tensors(), state)
    assert other.state() == histories.state()
    assert all(same_bits(other.momenta[c], histories.momenta[c]) for c in histories.momenta)
    with pytest.raises(ValueError):
        other.recall(histories.tensors()[:2], state)
    with pytest.raises(ValueError):
        other.recall(histories.tensors(), {"w": state["w"], "b": torch.zeros(3)})


def test_a_file_gives_back_what_is_remembered(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path / "run"), {}, "resnet-tiny")
    state = random_update(WIDE, 0)
    momenta = ({"w": torch.tensor([[torch.nan, 1.0]])}, {}, random_update(WIDE, 1))
    run.checkpoint(Checkpoint(1, state, {}, {"m0": random_update(WIDE, 2)}, momenta), keep=1)
    point = run.latest()
    assert same(point.state, state) and set(point.beside) == {"m0"}
    assert [same_bits(a, b) for a, b in zip(point.remembered, momenta, strict=True)] == [True] * 3


@pytest.mark.slow
def test_a_resumed_run_remembers_the_histories_to_the_bit(tmp_path: Path) -> None:
    values: dict[str, Scalar] = {"rounds": 4, "averaging": "history"}
    unbroken = full_run(tmp_path / "unbroken", values)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        full_run(folder, values, progress=Interrupting(4))
    point = RunFolder.open(folder).latest()
    assert len(point.remembered) == len(
        point.memory["averaging"]["histories"]["supernet"]["replies"]
    )
    resumed = full_run(folder, {"resume": str(folder)})
    assert same(resumed.weights()[0], unbroken.weights()[0])
    assert timeless(lines(resumed.rows())) == timeless(lines(unbroken.rows()))
    one, two = resumed.latest(), unbroken.latest()
    assert one.memory == two.memory and len(one.remembered) == len(two.remembered) > 0
    for a, b in zip(one.remembered, two.remembered, strict=True):
        assert same_bits(a, b)


# Collusion


def slices(update: Update, rows: int) -> Fold:
    """Cut a subnet of so many rows."""
    boxes = {"w": (((0, rows),), ((0, 30),)), "b": (((0, rows),),)}
    return {name: tensor[:rows] for name, tensor in update.items()}, 1.0, boxes


def honest_changes(number: int, count: int = 8) -> list[Update]:
    """Give a common part, a part of each client's own, and noise of four times the common part."""
    common = random_update(WIDE, 1)
    found = []
    for k in range(count):
        own, noise = random_update(WIDE, 100 + k), random_update(WIDE, 1000 * number + k)
        found.append({name: common[name] + 2 * own[name] + 4 * noise[name] for name in WIDE})
    return found


@pytest.mark.attack
@pytest.mark.parametrize("z", [0.5, 1.5])
def test_two_that_collude_within_the_spread_are_named_from_the_first_round_on(z: float) -> None:
    # Subnets have half of the rows or more, another number each round.
    state = {name: torch.zeros(shape) for name, shape in WIDE.items()}
    histories = Histories()
    for number in range(8):
        honest = honest_changes(number)
        together = {n: torch.stack([update[n] for update in honest]) for n in WIDE}
        false = {n: t.mean(0) - z * t.std(0, correction=0) for n, t in together.items()}
        rows = np.random.default_rng(number).integers(20, 41, 10)
        rows[-1] = 40
        trimmed, history = RobustAverage(state, "trimmed-mean"), HistoryAverage(state, histories)
        for average in (trimmed, history):
            for k, update in enumerate([*honest, false, false]):
                average.add(*slices(update, int(rows[k])), client=str(k))
        by_trimmed, by_history = trimmed.result(), history.result()
        assert set(history.verdicts) == {"8", "9"}
        assert not {"8", "9"} & trimmed.verdicts.keys()
        plain = OverlapAverage(state)
        for k, update in enumerate(honest):
            plain.add(*slices(update, int(rows[k])))
        truth = plain.result()
        apart = [norm({n: found[n] - truth[n] for n in WIDE}) for found in (by_history, by_trimmed)]
        assert apart[0] < 1e-4 * norm(truth) < 0.1 * norm(truth) < apart[1]


@pytest.mark.attack
def test_two_that_each_turn_a_part_of_their_own_change_are_not_seen() -> None:
    # The page of results says so: less than honest clients differ, and each in another direction.
    state = {name: torch.zeros(shape) for name, shape in WIDE.items()}
    histories = Histories()
    for number in range(12):
        changes = honest_changes(number, 10)
        mean = {n: torch.stack([update[n] for update in changes]).mean(0) for n in WIDE}
        false = [{n: update[n] - 2 * mean[n] for n in WIDE} for update in changes[8:]]
        folds = [everywhere(update) for update in [*changes[:8], *false]]
        _, average = merged(state, folds, histories)
        assert not average.verdicts
