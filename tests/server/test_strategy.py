"""The strategy in one process: bad replies, arrival order, budgets, resume, Flower's interface."""

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

import superfednas.server.round.exchange
import superfednas.server.round.hold
from superfednas.client.app import app as client_app
from superfednas.common.settings import Scalar, flatten
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.rows import RoundRow
from superfednas.server.app import prepare
from superfednas.server.flower_strategy import FlowerStrategy
from superfednas.server.nodes import RosterError
from superfednas.server.strategy import SupernetStrategy, TrainingStalled
from superfednas.supernet import State
from tests.support.bad_clients import BAD, VICTIM, bad_client, raising
from tests.support.rows import lines
from tests.support.training import (
    App,
    Quiet,
    Recorder,
    fold_by_hand,
    full_run,
    node_configs,
    order_of,
    ready,
    rounds_of,
    same,
    timeless,
    train,
)

torch.set_num_threads(1)
EPSILON = float(np.finfo(np.float32).eps)

# What a bad client may do


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD, ids=lambda what: what.__name__)
def test_a_bad_reply_is_as_if_it_had_never_come(
    what: Callable[[Message, Message], Message], tmp_path: Path
) -> None:
    # All three clients take part in every round; the second round of two is spoilt.
    recorder, progress = Recorder(bad_client(what, {2})), Quiet()
    run = full_run(tmp_path / "run", None, recorder, progress=progress, clients=3)
    rows = [row for row in lines(run.rows()) if row["kind"] == "round"]
    space = ready().settings.space.load()
    state = space.init(3)
    for row in rows:
        good = {c["client"] for c in row["clients"]} - ({VICTIM} if row["round"] == 2 else set())
        assert len(good) == (2 if row["round"] == 2 else 3)
        updates = {name: recorder.flat(row["round"], name) for name in good}
        state = fold_by_hand(space, state, row, updates)
    final, _ = run.weights()
    assert same(final, state)

    for client in rows[1]["clients"]:
        assert client["accepted"] == (client["client"] != VICTIM)
        assert (client["reason"] is None) == client["accepted"]
    refused = [c for row in rows for c in row["clients"] if c["reason"]]
    reasons = [c["reason"] for c in refused]
    assert [c["refusal"] for c in refused] == [BAD[what]]
    summary = lines(run.rows())[-1]
    assert summary["kind"] == "summary"
    assert summary["replies"] == 5
    assert summary["refused"] == {reasons[0]: 1}
    assert (f"client {VICTIM}", reasons[0]) in progress


class Clock:
    """A clock that jumps past every deadline when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.01))


CLOCK = Clock()


class Mute(LocalGrid):
    """Nothing ever comes from node 2 in training; once all others have answered, time is up."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        pushed = list(super().push_messages(messages))
        self.mute = {
            identifier
            for identifier, message in zip(pushed, messages, strict=True)
            if message.metadata.dst_node_id == 2 and message.metadata.message_type == "train"
        }
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = [identifier for identifier in message_ids if identifier not in self.mute]
        if not asked:
            CLOCK.now += 1e6
        return super().pull_messages(asked) if asked else []


def test_a_missing_reply_is_counted_and_the_round_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superfednas.server.round.exchange, "time", CLOCK)
    recorder = Recorder()
    strategy = train(None, recorder, grid_class=Mute, clients=3)
    state = strategy.space.init(3)
    for row in rounds_of(strategy):
        updates = {name: recorder.flat(row["round"], name) for name in ("0", "2")}
        state = fold_by_hand(strategy.space, state, row, updates)
    assert same(strategy.state, state)
    first, second = rounds_of(strategy)
    (missing,) = [c for c in first["clients"] if not c["accepted"]]
    assert missing["client"] == "1" and "no reply within 3600 s" in missing["reason"]
    assert {c["client"] for c in second["clients"]} == {"0", "2"}  # it is still at work


class Unsendable(LocalGrid):
    """Training messages to nodes 1 and 2 cannot be pushed: Flower gives None in their place."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if messages[0].metadata.message_type != MessageType.TRAIN:
            return super().push_messages(messages)
        sent = [m for m in messages if m.metadata.dst_node_id > 2]
        found = iter(list(super().push_messages(sent)))
        pushed: list[Any] = [
            next(found) if message.metadata.dst_node_id > 2 else None for message in messages
        ]
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        assert None not in asked
        return super().pull_messages(asked)


def test_messages_that_could_not_be_sent_are_missing_replies() -> None:
    recorder = Recorder()
    strategy = train({"clients-per-round": 4}, recorder, grid_class=Unsendable)
    state = strategy.space.init(3)
    for row in rounds_of(strategy):
        updates = {name: recorder.flat(row["round"], name) for name in ("2", "3")}
        state = fold_by_hand(strategy.space, state, row, updates)
        assert {c["client"] for c in row["clients"] if c["accepted"]} == {"2", "3"}
    assert same(strategy.state, state)


def test_three_rounds_without_a_usable_reply_end_the_run() -> None:
    with pytest.raises(TrainingStalled, match=r"3 rounds.*out of paper"):
        train({"rounds": 9}, bad_client(raising, range(10), "0123"))


@pytest.mark.attack("a run in progress")
@pytest.mark.parametrize("bad", [{"0", "2"}, {"0", "1", "2"}, {"0", "1", "3"}])
def test_nodes_that_fail_end_no_run_in_which_another_is_usable(bad: set[str]) -> None:
    """Rounds of one client: three in a row fall to bad ones sooner or later."""
    values = {"rounds": 30, "clients-per-round": 1, "max-failures": 0}
    strategy = train(values, bad_client(raising, range(31), bad))
    asked = [c["client"] for row in rounds_of(strategy) for c in row["clients"]]
    assert any(set(asked[k : k + 3]) <= bad for k in range(28))
    assert len(asked) == 30


def test_a_run_that_nobody_can_serve_any_more_ends_once_each_has_failed() -> None:
    values = {"rounds": 60, "clients-per-round": 1, "max-failures": 0}
    said = Quiet()
    with pytest.raises(TrainingStalled):
        train(values, bad_client(raising, range(20, 61), "0123"), progress=said)
    rounds = sum("out of paper" in line for line in said.said)
    assert 3 <= rounds < 30


@pytest.mark.slow
def test_rounds_without_a_usable_reply_change_nothing_and_count_only_in_a_row() -> None:
    recorder = Recorder(bad_client(raising, {1, 2, 4, 5}, "0123"))
    strategy = train({"rounds": 5}, recorder)
    only = rounds_of(strategy)[2]
    updates = {c["client"]: recorder.flat(3, c["client"]) for c in only["clients"]}
    assert len(updates) == 3
    expected = fold_by_hand(strategy.space, strategy.space.init(3), only, updates)
    assert same(strategy.state, expected)


# Order


class Shuffled(LocalGrid):
    """Hand replies out one at a time, in random order."""

    rng = random.Random(1)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        wait([self._pending[identifier] for identifier in asked])
        return super().pull_messages([self.rng.choice(asked)])


class Backwards(LocalGrid):
    """Hand replies out one at a time, the last first."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        wait([self._pending[identifier] for identifier in asked])
        return super().pull_messages(asked[-1:])


@pytest.fixture(scope="module")
def plain() -> SupernetStrategy:
    return train()


@pytest.mark.parametrize("grid_class", [Shuffled, Backwards])
def test_the_order_of_arrival_does_not_matter(
    plain: SupernetStrategy, grid_class: type[LocalGrid]
) -> None:
    strategy = train(grid_class=grid_class)
    assert same(strategy.state, plain.state)
    assert timeless(lines(strategy.rows)) == timeless(lines(plain.rows))


def test_the_state_is_what_folding_by_hand_gives() -> None:
    recorder = Recorder()
    strategy = train(None, recorder, grid_class=Backwards)
    state = strategy.space.init(3)
    for row in rounds_of(strategy):
        updates = {c["client"]: recorder.flat(row["round"], c["client"]) for c in row["clients"]}
        state = fold_by_hand(strategy.space, state, row, updates)
    assert same(strategy.state, state)
    assert not same(strategy.state, strategy.space.init(3))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_does_not_matter(plain: SupernetStrategy, workers: int) -> None:
    assert same(train(workers=workers).state, plain.state)


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_replies_ahead_of_their_turn_wait_on_disk(
    wire: str, plain: SupernetStrategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wire != "float32":
        plain = train({"wire-dtype": wire})
    held: list[Path] = []
    save = np.save

    def counted(path: Path, *args: Any, **options: Any) -> None:
        held.append(path)
        save(path, *args, **options)

    monkeypatch.setattr(superfednas.server.round.hold.np, "save", counted)
    values: dict[str, Scalar] = {"hold-back": 0, "wire-dtype": wire}
    prepared = ready({**values, "run-dir": str(tmp_path / "run")})
    run = RunFolder.create(str(tmp_path / "run"), flatten(prepared.settings), "resnet-tiny")
    strategy = train(values, grid_class=Backwards, run=run)
    waited = [path for path in held if isinstance(path, Path)]
    # Two of three replies a round come before their turn.
    assert len(waited) == 2 * 2
    assert all(path.parent == run.path / "checkpoints" for path in waited)
    assert {path.suffix for path in (run.path / "checkpoints").iterdir()} == {".safetensors"}
    assert same(strategy.state, plain.state)


def test_arrival_order_folds_at_once(plain: SupernetStrategy) -> None:
    strategy = train({"fold-order": "arrival"}, grid_class=Backwards)
    recorder = Recorder()
    reference = train({"fold-order": "arrival"}, recorder)
    assert same(reference.state, plain.state)
    # The sums differ in their last bits only after one round.
    one = train({"fold-order": "arrival", "rounds": 1}, grid_class=Backwards)
    other = train({"rounds": 1})
    for name, tensor in one.state.items():
        scale = float(tensor.abs().max())
        assert float((tensor - other.state[name]).abs().max()) <= 8 * EPSILON * max(scale, 1)
    assert all(c["accepted"] for row in rounds_of(strategy) for c in row["clients"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_wire_formats_train(dtype: str) -> None:
    (row,) = rounds_of(train({"wire-dtype": dtype, "rounds": 1}))
    for client in row["clients"]:
        assert client["accepted"]
        assert client["bytes_up"] == 2 * client["params"]
        assert client["bytes_down"] == pytest.approx(2 * client["params"], abs=200)


# Weights and β


def test_rows_hold_beta_and_the_weights_fixed_at_assignment() -> None:
    strategy = train({"rounds": 4, "beta-share": 0.5})
    rows = rounds_of(strategy)
    betas = [0.9, 1 / 3 + (0.9 - 1 / 3) * 0.5, 1 / 3, 1 / 3]
    assert [row["beta"] for row in rows] == pytest.approx(betas)
    largest = strategy.space.largest.to_json()
    for row in rows:
        assert sum(c["weight"] for c in row["clients"]) == pytest.approx(1)
        holders = [c for c in row["clients"] if c["architecture"] == largest]
        assert holders and all(c["favoured"] for c in holders)
        assert sum(c["weight"] for c in holders) == pytest.approx(row["beta"])
        for client in row["clients"]:
            arch = strategy.space.parse(client["architecture"])
            assert client["macs"] == strategy.space.macs(arch)
            assert client["bytes_up"] == 4 * strategy.space.params(arch)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_clients_are_told_the_rounds_learning_rate(schedule: str) -> None:
    recorder = Recorder()
    values: dict[str, Scalar] = {"lr": 0.2, "lr-schedule": schedule, "lr-end": 0.1}
    strategy = train(values, recorder)
    expected = {1: 0.2, 2: 0.2 if schedule == "constant" else (0.2 + 0.1) / 2}
    orders = [m for m in recorder.orders if m.metadata.message_type == MessageType.TRAIN]
    assert len(orders) == 2 * 3
    for order in orders:
        told = order.content.config_records["config"]["lr"]
        assert told == pytest.approx(expected[order_of(order)])
    assert [row["lr"] for row in rounds_of(strategy)] == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_fedavg_is_a_configuration(weighting: str) -> None:
    recorder = Recorder()
    values: dict[str, Scalar] = {
        "assignment": "fixed",
        "averaging": "overlap",
        "weighting": weighting,
    }
    strategy = train(values, recorder)
    last = rounds_of(strategy)[-1]
    names = [client["client"] for client in last["clients"]]
    assert {c["architecture"] for c in last["clients"]} == {strategy.space.largest.to_json()}
    count = {c["client"]: c["examples"] if weighting == "examples" else 1 for c in last["clients"]}
    if weighting == "examples":
        assert len(set(count.values())) > 1
    updates = [
        count[name] * recorder.flat(2, name).astype(np.float64) / sum(count.values())
        for name in names
    ]
    mean = np.sum(updates, axis=0)
    found = torch.cat([tensor.reshape(-1) for tensor in strategy.state.values()]).double().numpy()
    largest = max(float(np.abs(recorder.flat(2, name)).max()) for name in names)
    assert np.abs(found - mean).max() <= 4 * EPSILON * largest


# Evaluation


def test_clients_evaluate_within_the_training_exchange() -> None:
    silent, recorder = Recorder(), Recorder()
    train({"evaluate-on": "clients"}, silent)
    values: dict[str, Scalar] = {"evaluate-on": "clients", "evaluate-every": 1, "ladder": 3}
    strategy = train(values, recorder)
    assert sorted(recorder.kinds) == sorted(silent.kinds) == ["query"] * 4 + ["train"] * 2 * 3
    evaluations = [row for row in lines(strategy.rows) if row["kind"] == "evaluation"]
    assert [(row["round"], row["trained_rounds"]) for row in evaluations] == [(1, 0), (2, 1)]
    assert list(strategy.ladder) == ["smallest", "50%", "largest", "random:0"]
    for row in evaluations:
        assert row["where"] == "clients" and row["split"] == "validation"
        # Index 0 of a report is the client's own subnet, the ladder follows.
        reports = [
            reply.content for (number, _), reply in recorder.sent.items() if number == row["round"]
        ]
        expected = {}
        for index, (rung, arch) in enumerate(strategy.ladder.items(), start=1):
            scored = [
                (int(c.metric_records["metrics"]["evaluation-examples"]), sums)  # type: ignore[arg-type]
                for c in reports
                for i, sums in json.loads(str(c.config_records["config"]["evaluation"]))
                if i == index
            ]
            total = sum(n for n, _ in scored)
            if total:
                expected[rung] = (
                    sum(sums["accuracy"] for _, sums in scored) / total,
                    sum(sums["loss"] for _, sums in scored) / total,
                    total,
                    strategy.space.macs(arch),
                )
        found = {
            r["name"]: (r["accuracy"], r["loss"], r["examples"], r["macs"]) for r in row["ladder"]
        }
        assert found.keys() == expected.keys() >= {"smallest", "largest"}
        for rung, values_found in found.items():
            assert values_found == pytest.approx(expected[rung])
        # Everybody holds the smallest; only who holds the largest can score it.
        assert found["smallest"][2] > found["largest"][2]


@pytest.mark.slow
def test_evaluation_changes_no_weights(plain: SupernetStrategy) -> None:
    for where in ("clients", "server"):
        strategy = train({"evaluate-on": where, "evaluate-every": 1})
        assert same(strategy.state, plain.state)
        (first, _) = [row for row in lines(strategy.rows) if row["kind"] == "evaluation"]
        assert first["where"] == where


def test_each_clients_own_and_smallest_accuracy_stand_in_the_row() -> None:
    for where in ("clients", "server"):
        recorder = Recorder()
        strategy = train({"evaluate-on": where, "evaluate-every": 2}, recorder)
        first, last = rounds_of(strategy)
        assert all(c["own_accuracy"] is None for c in first["clients"])
        for client in last["clients"]:
            content = recorder.sent[2, client["client"]].content
            texts = content.config_records["config"]
            examples = content.metric_records["metrics"]["evaluation-examples"]
            rows = json.loads(str(texts["evaluation"]))
            scores = {i: sums["accuracy"] / examples for i, sums in rows}
            assert client["own_accuracy"] == scores[0]
            assert client["smallest_accuracy"] == scores[1]


# Budgets and nodes


def test_device_classes_bound_what_a_client_is_given() -> None:
    progress = Quiet()
    strategy = train({"device-classes": "phone:0.3,tablet:0.6"}, progress=progress)
    most = strategy.space.macs(strategy.space.largest)
    share = {"0": 0.3, "1": 0.6, "2": 0.3, "3": 0.6}
    for row in rounds_of(strategy):
        for client in row["clients"]:
            assert client["macs"] <= share[client["client"]] * most
        top = max(client["macs"] for client in row["clients"])
        favoured = [client for client in row["clients"] if client["favoured"]]
        assert {client["macs"] for client in favoured} == {top}
        assert sum(client["weight"] for client in favoured) == pytest.approx(row["beta"])
        parts = ("nobody holds the largest", f"round {row['round']}:", favoured[0]["client"])
        assert parts in progress


def test_with_a_class_that_holds_the_largest_nothing_is_said() -> None:
    progress = Quiet()
    train({"device-classes": "phone:0.3,hub:1", "clients-per-round": 4}, progress=progress)
    assert ("nobody holds",) not in progress


def test_a_node_that_cannot_hold_the_smallest_is_left_out_and_named() -> None:
    nodes: dict[int, dict[str, Scalar]] = node_configs(4)
    nodes[3]["max-memory"] = 1000
    nodes[4]["device-class"] = "toaster"
    progress = Quiet()
    strategy = train(
        {"clients-per-round": 2, "device-classes": "phone:1"}, nodes=nodes, progress=progress
    )
    assert {c["client"] for row in rounds_of(strategy) for c in row["clients"]} == {"0", "1"}
    assert ("'2'", "max-memory 1000", "smallest") in progress
    assert ("'3'", "'toaster'", "phone") in progress


@pytest.mark.parametrize("missing", ["name", "examples", "all"])
def test_a_node_that_does_not_say_who_it_is_is_left_out(missing: str) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query" and context.node_config["partition-id"] == 3:
            answer = dict(reply.content.config_records["config"])
            answer.pop(missing, None)
            content = RecordDict({} if missing == "all" else {"config": ConfigRecord(answer)})
            return Message(content, reply_to=message)
        return reply

    progress = Quiet()
    strategy = train(None, app, progress=progress)
    assert {c["client"] for row in rounds_of(strategy) for c in row["clients"]} == {"0", "1", "2"}
    assert ("left out",) in progress


@pytest.mark.parametrize(
    "answer", [{"max-charge": 5}, {"max-latency": 5}, {"max-macs": "all"}, {"max-macs": True}]
)
def test_a_node_with_a_limit_that_nobody_can_keep_is_left_out(answer: dict[str, Scalar]) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query" and context.node_config["partition-id"] == 3:
            said = dict(reply.content.config_records["config"]) | answer
            return Message(RecordDict({"config": ConfigRecord(said)}), reply_to=message)
        return reply

    progress = Quiet()
    strategy = train(None, app, progress=progress)
    assert {c["client"] for row in rounds_of(strategy) for c in row["clients"]} == {"0", "1", "2"}
    assert ("'3'", "left out", next(iter(answer)).removeprefix("max-")) in progress


def test_more_clients_a_round_than_nodes_is_an_error_at_once(plain: SupernetStrategy) -> None:
    # After another run, so that no import is timed.
    started = time.monotonic()
    with pytest.raises(RosterError, match=r"clients-per-round = 5.*5 nodes.*4 usable are"):
        train({"clients-per-round": 5})
    assert time.monotonic() - started < 5


# Resume


class Interrupted(Exception):  # noqa: N818
    """In place of a kill."""


class Interrupting(Quiet):
    """Stop the process's work once a round's row has been written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def round(self, row: RoundRow) -> None:
        if row.round == self.number:
            raise Interrupted


FOUR: dict[str, Scalar] = {"rounds": 4, "evaluate-every": 2, "ladder": 2}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return full_run(tmp_path_factory.mktemp("unbroken") / "run", FOUR)


def check_resumed(run: RunFolder, unbroken: RunFolder) -> None:
    assert same(run.weights()[0], unbroken.weights()[0])
    assert timeless(lines(run.rows())) == timeless(lines(unbroken.rows()))
    kinds = [row["kind"] for row in lines(run.rows())]
    assert kinds == ["round", "round", "evaluation"] * 2 + ["test", "summary"]
    assert RunFolder.open(run.path).info["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("torn", ["", '{"kind": "round", "round": 3, "cli'])
def test_a_resumed_run_ends_as_the_unbroken_one(
    unbroken: RunFolder, tmp_path: Path, torn: str
) -> None:
    folder = tmp_path / "run"
    # The row of round 3 has been written, its checkpoint has not: two rounds count.
    with pytest.raises(Interrupted):
        full_run(folder, FOUR, progress=Interrupting(3))
    assert RunFolder.open(folder).latest().round == 2
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(torn)
    progress = Quiet()
    run = full_run(folder, {"resume": str(folder), "run-dir": ""}, progress=progress)
    assert ("resuming", "after round 2") in progress
    check_resumed(run, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4])
def test_a_run_resumes_from_its_first_and_last_round(
    unbroken: RunFolder, tmp_path: Path, number: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        full_run(folder, FOUR, progress=Interrupting(number))
    check_resumed(full_run(folder, {"resume": str(folder)}), unbroken)


@pytest.mark.slow
def test_a_run_with_rare_checkpoints_resumes_from_the_last(
    unbroken: RunFolder, tmp_path: Path
) -> None:
    folder, rare = tmp_path / "run", FOUR | {"checkpoint-every": 3}
    with pytest.raises(Interrupted):
        full_run(folder, rare, progress=Interrupting(3))
    assert RunFolder.open(folder).latest().round == 0
    check_resumed(full_run(folder, {"resume": str(folder)}), unbroken)


def test_a_finished_run_is_not_resumed(unbroken: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="has finished"):
        prepare({"resume": str(unbroken.path)})


def test_a_run_starts_from_anothers_weights(unbroken: RunFolder) -> None:
    prepared = ready({"from-run": str(unbroken.path)})
    assert prepared.resumed is None
    assert same(prepared.state, unbroken.weights()[0])


@pytest.mark.parametrize(
    ("values", "named"),
    [({"norm": "none"}, "norm"), ({"space": "resnet10-26"}, "weight")],
)
def test_weights_of_another_space_are_refused_by_name(
    unbroken: RunFolder, values: dict[str, Scalar], named: str
) -> None:
    with pytest.raises(RunFolderError) as caught:
        ready(values | {"from-run": str(unbroken.path)})
    assert str(unbroken.path) in str(caught.value)
    assert named in str(caught.value)


# Flower's interface


def strategy_for(values: Mapping[str, Scalar] | None = None) -> FlowerStrategy:
    return FlowerStrategy(ready(values).settings, progress=Quiet())


def test_start_is_flowers(plain: SupernetStrategy) -> None:
    grid = LocalGrid(client_app, node_configs(4), {}, 1)
    # What start is told counts in place of the settings.
    strategy = strategy_for({"rounds": 7})
    called = []

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        called.append(number)
        return MetricRecord({"tensors": len(arrays)})

    first = ArrayRecord(strategy.space.init(3))
    result = strategy.start(
        grid=grid, initial_arrays=first, num_rounds=2, timeout=60, evaluate_fn=evaluate
    )
    grid.close()
    assert same(result.arrays.to_torch_state_dict(), plain.state)
    assert same(first.to_torch_state_dict(), strategy.space.init(3))
    assert called == [1, 2]
    assert result.evaluate_metrics_serverapp[2]["tensors"] == len(first)
    for row in rounds_of(plain):
        metrics = result.train_metrics_clientapp[row["round"]]
        assert (metrics["accepted"], metrics["refused"]) == (3, 0)
        losses = [client["loss"] for client in row["clients"]]
        assert metrics["loss"] == pytest.approx(math.fsum(losses) / 3)


def test_start_takes_no_configuration_beside_the_settings() -> None:
    strategy = strategy_for()
    grid = LocalGrid(client_app, node_configs(4), {}, 1)
    for extra in ("train_config", "evaluate_config"):
        with pytest.raises(ValueError, match="settings"):
            strategy.start(
                grid=grid,
                initial_arrays=ArrayRecord(strategy.space.init(3)),
                **{extra: ConfigRecord({"lr": 1.0})},
            )
    grid.close()


def by_flowers_loop(
    strategy: FlowerStrategy,
    app: App,
    change: Callable[[list[Message], list[Message]], list[Message]],
) -> State:
    """Call the strategy as Flower's own ``start`` does, replies changed on the way."""
    grid = LocalGrid(app, node_configs(4), {}, 1)
    arrays = ArrayRecord(strategy.space.init(3))
    for number in (1, 2):
        config = ConfigRecord({"server-round": number})
        messages = strategy.configure_train(number, arrays, config, grid)
        assert isinstance(messages, list)
        replies = change(messages, list(grid.send_and_receive(messages, timeout=60)))
        merged, metrics = strategy.aggregate_train(number, replies)
        assert merged is not None and metrics is not None
        assert metrics["accepted"] + metrics["refused"] == 3  # type: ignore[operator]
        arrays = merged
        assert list(strategy.configure_evaluate(number, arrays, config, grid)) == []
        assert strategy.aggregate_evaluate(number, []) is None
    grid.close()
    return arrays.to_torch_state_dict()


def test_flowers_own_loop_gives_the_same_state(plain: SupernetStrategy) -> None:
    kept = by_flowers_loop(strategy_for(), client_app, lambda _, replies: replies)
    assert same(kept, plain.state)
    turned = by_flowers_loop(strategy_for(), client_app, lambda _, replies: replies[::-1])
    assert same(turned, plain.state)


@pytest.mark.parametrize("how", ["missing", "error-from-superlink"])
def test_flowers_own_loop_goes_on_without_a_reply(how: str) -> None:
    recorder, strategy = Recorder(), strategy_for()

    def change(messages: list[Message], replies: list[Message]) -> list[Message]:
        # The reply to the first message is the one that does not come.
        first = messages[0].metadata.dst_node_id
        (lost,) = [r for r in replies if r.metadata.src_node_id == first]
        rest = [r for r in replies if r is not lost]
        if how == "missing":
            return rest
        error = Message(Error(5, "node unavailable"), reply_to=messages[0])
        # The SuperLink, node 1, answers for the node that is gone.
        error.metadata.__dict__["_src_node_id"] = 1
        error.metadata.__dict__["_reply_to_message_id"] = lost.metadata.reply_to_message_id
        return [error, *rest]

    found = by_flowers_loop(strategy, recorder, change)
    state = strategy.space.init(3)
    for row in rounds_of(strategy):
        there = [client["client"] for client in row["clients"]][1:]
        updates = {name: recorder.flat(row["round"], name) for name in there}
        state = fold_by_hand(strategy.space, state, row, updates)
        assert [client["accepted"] for client in row["clients"]] == [False, True, True]
    assert same(found, state)


def test_aggregate_needs_its_configure() -> None:
    with pytest.raises(ValueError, match="configure_train"):
        strategy_for().aggregate_train(1, [])
