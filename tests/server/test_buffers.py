"""The average's buffers over several rounds: reused, and nothing of an earlier round shows."""

import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Message
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.records.folder
import superfednas.server.average.overlap
import superfednas.server.round.fold
from superfednas.client.app import app as client_app
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.checkpoint import Checkpoint
from superfednas.records.folder import RunFolder
from superfednas.records.tensors import read_tensors
from superfednas.server.average.choose import Averaging
from superfednas.server.average.overlap import Aggregation, OverlapAverage, blank
from superfednas.server.round.check import Expected, Reply, check_reply
from superfednas.server.round.encode import Outgoing
from superfednas.server.round.orders import SUPERNET
from superfednas.server.settings import check_settings
from superfednas.server.strategy import SupernetStrategy
from superfednas.supernet import State, extract
from superfednas.supernet.boxes import resolve, shapes_of
from superfednas.wire.flat import WIRE_DTYPES, pack
from tests.server.test_overlap import EPSILON, oracle
from tests.support.training import Quiet, full_run, node_configs, ready, same, train
from tests.support.updates import SPACE, Fold, bits, boxed_clients, random_update, same_bits


def averaging(rule: str = "maxnet") -> Averaging:
    return Averaging(check_settings({"averaging": rule}))


def opened(kept: Averaging, state: State) -> Aggregation:
    return kept.open({SUPERNET: state})[SUPERNET]


def addresses(state: State) -> list[int]:
    return [tensor.data_ptr() for tensor in state.values()]


def poisoned(state: State) -> State:
    return {name: torch.full_like(tensor, float("nan")) for name, tensor in state.items()}


@st.composite
def rounds(draw: st.DrawFn) -> tuple[State, list[tuple[list[Fold], bool]]]:
    """A state, and for every round its replies and whether its result is asked for."""
    state, first = draw(boxed_clients())
    many = [(first, draw(st.booleans()))]
    for number in range(draw(st.integers(1, 4))):
        folds = []
        for update, weight, boxes in draw(st.permutations(first)):
            if draw(st.booleans()):
                shapes = {name: tuple(tensor.shape) for name, tensor in update.items()}
                folds.append((random_update(shapes, number), weight, boxes))
        many.append((folds, draw(st.booleans())))
    return state, many


@settings(max_examples=80, deadline=None)
@given(case=rounds(), adopted=st.booleans())
def test_buffers_that_are_reused_change_no_bit(
    case: tuple[State, list[tuple[list[Fold], bool]]], adopted: bool
) -> None:
    state, many = case
    first, before = state, {name: tensor.clone() for name, tensor in state.items()}
    kept = averaging()
    if adopted:
        kept.adopt(state)
    for folds, asked in many:
        old = {name: tensor.clone() for name, tensor in state.items()}
        reused, fresh = opened(kept, state), OverlapAverage(old)
        for update, weight, boxes in folds:
            reused.add(update, weight, boxes)
            fresh.add(update, weight, boxes)
        assert same_bits(state, old)
        if asked:
            result = reused.result()
            assert same_bits(result, fresh.result())
            agrees(old, folds, result)
            assert same_bits(state, old)  # what clients scored, and may still be looked at
            state = result
    assert adopted or same_bits(first, before)


def agrees(old: State, folds: Sequence[Fold], result: State) -> None:
    expected, counts = oracle(old, folds)
    for name, tensor in result.items():
        parts = [old[name], *(update[name] for update, _, _ in folds if name in update)]
        largest = max(float(part.abs().max()) for part in parts if part.numel())
        error = np.abs(tensor.double().numpy() - expected[name]).max()
        assert error <= 3 * len(folds) * EPSILON * largest
        nobody = counts[name] == 0
        assert np.array_equal(bits(tensor)[nobody], bits(old[name])[nobody])


@settings(max_examples=40, deadline=None)
@given(case=boxed_clients())
def test_what_a_buffer_held_before_does_not_show(case: tuple[State, list[Fold]]) -> None:
    state, folds = case
    reused, fresh = OverlapAverage(state, poisoned(state)), OverlapAverage(state)
    for update, weight, boxes in folds:
        reused.add(update, weight, boxes)
        fresh.add(update, weight, boxes)
    assert same_bits(reused.result(), fresh.result())


def one_round(kept: Averaging, state: State, seed: int = 0) -> State:
    average = opened(kept, state)
    average.add(random_update(SPACE.shapes(SPACE.smallest), seed), 1.0)
    return average.result()


def test_two_sets_take_turns() -> None:
    kept, state = averaging(), SPACE.init(0)
    seen = []
    for seed in range(6):
        state = one_round(kept, state, seed)
        seen.append(addresses(state))
    assert seen[0::2] == [seen[0]] * 3 and seen[1::2] == [seen[1]] * 3
    assert not set(seen[0]) & set(seen[1])


def test_an_adopted_state_is_one_of_the_two() -> None:
    kept, state = averaging(), SPACE.init(0)
    mine = addresses(state)
    kept.adopt(state)
    first = one_round(kept, state)
    second = one_round(kept, first)
    assert addresses(second) == mine and addresses(first) != mine
    assert addresses(one_round(kept, second)) == addresses(first)


def test_a_copied_dictionary_is_still_the_same_state() -> None:
    kept = averaging()
    first = one_round(kept, SPACE.init(0))
    views = {name: tensor.view(tensor.shape) for name, tensor in first.items()}
    assert not set(addresses(one_round(kept, views))) & set(addresses(first))


def test_what_was_let_go_is_not_written_to() -> None:
    kept = averaging()
    trained = one_round(kept, SPACE.init(0), 1)
    before = {name: tensor.clone() for name, tensor in trained.items()}
    kept.let_go()
    for seed in range(3):
        one_round(kept, SPACE.init(0), seed)
    assert same_bits(trained, before)


def test_a_state_of_other_shapes_gets_tensors_of_its_own() -> None:
    kept = averaging()
    one_round(kept, SPACE.init(0))
    other = {"w": torch.zeros(2, 3), "half": torch.zeros(3, dtype=torch.float16)}
    result = opened(kept, other).result()
    assert same(result, other) and result["half"].dtype == torch.float16


def test_robust_averages_keep_no_buffers() -> None:
    kept, state = averaging("median"), SPACE.init(0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    kept.adopt(state)
    for _ in range(3):
        one_round(kept, one_round(kept, state))
    assert same_bits(state, before)


def test_blank_tensors_are_aligned_and_like_the_state() -> None:
    state: State = {
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 3),
        "half": torch.zeros(5, dtype=torch.bfloat16),
        "turned": torch.zeros(4, 3).T,
    }
    for name, tensor in blank(state).items():
        assert tensor.shape == state[name].shape and tensor.dtype == state[name].dtype
        assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats_are_converted_by_parts(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.zeros(7, 5, 3), "s": torch.tensor(0.0), "b": torch.zeros(9)}
    updates = [
        {name: torch.randn(t.shape, dtype=torch.float64).to(dtype) for name, t in state.items()}
        for _ in range(3)
    ]
    whole, parts = OverlapAverage(state), OverlapAverage(state)
    for number, update in enumerate(updates):
        whole.add({name: tensor.float() for name, tensor in update.items()}, 1.0 + number)
    monkeypatch.setattr(superfednas.server.average.overlap, "_BLOCK", 4)
    for number, update in enumerate(updates):
        parts.add(update, 1.0 + number)
    assert same_bits(whole.result(), parts.result())


# Within a run


def test_a_run_of_several_rounds_is_that_of_fresh_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"rounds": 4}
    reused = train(values)
    with monkeypatch.context() as patch:
        patch.setattr(
            Averaging,
            "_free",
            lambda self, states: {target: blank(state) for target, state in states.items()},
        )
        fresh = train(values)
    assert same(reused.state, fresh.state)


def test_training_leaves_a_callers_first_state_as_it_was() -> None:
    prepared = ready({"rounds": 3})
    before = {name: tensor.clone() for name, tensor in prepared.state.items()}
    strategy = SupernetStrategy(prepared.settings, data=prepared.data, progress=Quiet())
    grid = LocalGrid(client_app, node_configs(4), {})
    try:
        once = strategy.train(grid, prepared.state)
        kept = {name: tensor.clone() for name, tensor in once.items()}
        strategy.train(grid, prepared.state)
    finally:
        grid.close()
    assert same(prepared.state, before) and same(once, kept) and not same(kept, before)


def test_a_reply_is_dropped_before_the_next_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[np.ndarray]] = []

    def watched(message: Message, expected: Expected, *, weights_later: bool) -> Reply:
        alive = [index for index, flat in enumerate(seen) if flat() is not None]
        assert alive in ([], [len(seen) - 1])
        reply = check_reply(message, expected, weights_later=weights_later)
        seen.append(weakref.ref(reply.flat))
        return reply

    monkeypatch.setattr(superfednas.server.round.fold, "check_reply", watched)
    train({"clients-per-round": 4})
    assert len(seen) == 2 * 4


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_a_checkpoint_that_is_slowly_written_holds_its_own_round(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers take turns, and the one that is written must not be folded into."""
    asked: dict[int, State] = {}
    begin, write = RunFolder.begin_checkpoint, superfednas.records.folder.write_tensors

    def noting(run: RunFolder, point: Checkpoint, keep: int) -> None:
        asked[point.round] = {name: tensor.clone() for name, tensor in point.state.items()}
        begin(run, point, keep)

    def slow(path: Path, tensors: State, about: Any) -> None:
        time.sleep(0.2)  # longer than a round
        write(path, tensors, about)

    monkeypatch.setattr(RunFolder, "begin_checkpoint", noting)
    monkeypatch.setattr(superfednas.records.folder, "write_tensors", slow)
    run = full_run(
        tmp_path / "run", {"rounds": 5, "checkpoint-every": every, "keep-checkpoints": 9}
    )
    assert set(asked) == {0, *range(every, 5, every), 5}
    for number, state in asked.items():
        path = run.path / "checkpoints" / f"round-{number:06d}.safetensors"
        assert same(read_tensors(path)[0], state)
    assert not same(asked[0], asked[5])


# What goes out


@settings(max_examples=60, deadline=None)
@given(case=boxed_clients(), wire=st.sampled_from(WIRE_DTYPES))
def test_what_goes_out_is_what_extract_and_pack_make(
    case: tuple[State, list[Fold]], wire: str
) -> None:
    """Also where several boxes are joined, and where numbers change their format."""
    state, clients = case
    outgoing = Outgoing(wire)
    for _, _, boxes in clients:
        expected = Array(pack(extract(state, boxes), wire))
        assert outgoing.record(state, boxes)["subnet"] == expected
        cut = resolve(shapes_of(state), boxes)
        assert outgoing.record(state, cut)["subnet"] == expected


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_outgoing_records_are_flowers_own(wire: str) -> None:
    outgoing, state = Outgoing(wire), SPACE.init(0)
    small, large = SPACE.smallest, SPACE.largest
    records = {arch: outgoing.record(state, SPACE.boxes(arch)) for arch in (small, large, small)}
    for arch, record in records.items():
        expected = Array(pack(extract(state, SPACE.boxes(arch)), wire))
        assert record["subnet"] == expected  # also what came before the buffer's next use
        assert type(record["subnet"].data) is bytes
