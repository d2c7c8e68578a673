"""Rounds that close early, replies that come late, nodes that fail, rest and come back."""

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType

import superfednas.server.round.exchange
from superfednas.client.app import app as client_app
from superfednas.common.settings import Scalar, SettingsError
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.releases import release
from superfednas.records.rows import RoundRow
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.settings import check_settings
from superfednas.server.strategy import SupernetStrategy
from superfednas.supernet import State
from superfednas.wire.flat import unpack
from tests.support.rows import lines
from tests.support.training import (
    App,
    Quiet,
    Recorder,
    Row,
    fold_by_hand,
    full_run,
    rounds_of,
    same,
    train,
)


class Slow(LocalGrid):
    """Replies of some nodes come rounds later than they are asked for."""

    delays: Mapping[int, int] = {}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.now = 0
        self.due: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        pushed = list(super().push_messages(messages))
        if messages[0].metadata.message_type == MessageType.TRAIN:
            self.now = int(messages[0].metadata.group_id)
            for identifier, message in zip(pushed, messages, strict=True):
                self.due[identifier] = self.now + self.delays.get(message.metadata.dst_node_id, 0)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        due = [i for i in message_ids if self.due.get(i, 0) <= self.now]
        return super().pull_messages(due) if due else []


def slow(**delays: int) -> type[Slow]:
    """Return a grid on which clients (``c1`` is client 1, of node 2) take so many rounds more."""
    return type("Slowed", (Slow,), {"delays": {int(k[1:]) + 1: v for k, v in delays.items()}})


def clients(row: Row) -> list[str]:
    return [client["client"] for client in row["clients"]]


def missing(row: Row) -> dict[str, str]:
    return {c["client"]: c["reason"] for c in row["clients"] if not c["accepted"]}


OVER: dict[str, Scalar] = {"clients-per-round": 2, "over-sample": 1, "rounds": 3}


def test_a_round_closes_with_enough_replies_and_asks_no_one_who_is_still_at_work() -> None:
    recorder = Recorder()
    strategy = train(OVER, recorder, grid_class=slow(c1=1), clients=3)
    first, second, third = rounds_of(strategy)
    assert clients(first) and set(clients(first)) == {"0", "1", "2"}
    assert missing(first) == {"1": "no reply before the round closed with 2 of 3"}
    assert set(clients(second)) == {"0", "2"} and not missing(second)
    assert second["late"] == [
        {"client": "1", "round": 1, "folded": False, "refusal": None, "reason": None}
    ]
    assert set(clients(third)) == {"0", "1", "2"} and not third["late"]  # it is free again
    state = strategy.space.init(3)
    for row in (first, second, third):
        updates = {
            name: recorder.flat(row["round"], name)
            for name in clients(row)
            if name not in missing(row)
        }
        state = fold_by_hand(strategy.space, state, row, updates)
    assert same(strategy.state, state)  # a late reply that is dropped leaves no trace


def test_a_late_reply_is_folded_with_its_weight_made_smaller() -> None:
    recorder = Recorder()
    values: dict[str, Scalar] = {"late-replies": "fold", "staleness": 0.25, "rounds": 3}
    strategy = train(OVER | values, recorder, grid_class=slow(c1=2), clients=3)
    first, second, third = rounds_of(strategy)
    assert missing(first).keys() == {"1"} and not second["late"]
    space = strategy.space

    def folded(state: State, row: Row, late: Row | None = None) -> State:
        average = OverlapAverage(state)
        for client in row["clients"]:
            if client["accepted"]:
                flat = recorder.flat(row["round"], client["client"])
                arch = space.parse(client["architecture"])
                average.add(unpack(flat, space.shapes(arch)), client["weight"])
        if late is not None:
            (asked,) = [c for c in first["clients"] if c["client"] == "1"]
            arch = space.parse(asked["architecture"])
            update = unpack(recorder.flat(1, "1"), space.shapes(arch))
            assert late["weight"] == asked["weight"] * 0.25**2
            average.add(update, late["weight"])
        return average.result()

    (late,) = third["late"]
    assert late["folded"] and late["client"] == "1" and late["round"] == 1
    state = folded(folded(space.init(3), first), second)
    assert same(strategy.state, folded(state, third, late))
    assert not same(strategy.state, folded(state, third))


def test_a_bad_late_reply_is_told_and_not_folded() -> None:
    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and context.node_id == 2:
            raise RuntimeError("battery empty")
        return client_app(message, context)

    values: dict[str, Scalar] = {"late-replies": "fold"}
    strategy = train(OVER | values, app, grid_class=slow(c1=1), clients=3)
    (late,) = rounds_of(strategy)[1]["late"]
    assert not late["folded"] and "battery empty" in late["reason"]


def test_a_share_of_the_weight_closes_a_round() -> None:
    """With β = .9 for the largest, its holder's reply alone is enough."""
    values: dict[str, Scalar] = {"min-weight": 0.85, "rounds": 1, "clients-per-round": 3}
    strategy = train(values, clients=3)
    (row,) = rounds_of(strategy)
    largest = strategy.space.largest.to_json()
    (leader,) = [c["client"] for c in row["clients"] if c["architecture"] == largest]
    delays = {f"c{name}": 1 for name in clients(row) if name != leader}
    (row,) = rounds_of(train(values, grid_class=slow(**delays), clients=3))
    assert missing(row).keys() == {"0", "1", "2"} - {leader}
    both: dict[str, Scalar] = {**values, "min-replies": 2}
    delays.popitem()
    (row,) = rounds_of(train(both, grid_class=slow(**delays), clients=3))
    assert len(missing(row)) == 1


class Ticking:
    """A clock on which a round's time is soon up."""

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def monotonic(self) -> float:
        return float(next(self.ticks))

    def sleep(self, seconds: float) -> None:
        pass


def test_a_node_that_never_answers_is_asked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(superfednas.server.round.exchange, "time", Ticking())
    values: dict[str, Scalar] = {"rounds": 8, "rest-rounds": 2, "round-timeout": 400.0}
    rows = rounds_of(train(values, grid_class=slow(c1=100), clients=3))
    asked = [row["round"] for row in rows if "1" in clients(row)]
    assert asked == [1, 4, 7]
    assert all(missing(rows[r - 1]) == {"1": "no reply within 400 s"} for r in asked)


def test_a_long_wait_says_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superfednas.server.round.exchange, "time", Ticking())
    said = Quiet()
    values: dict[str, Scalar] = {"rounds": 1, "round-timeout": 400.0}
    train(values, grid_class=slow(c1=100), clients=3, progress=said)
    assert ("round 1: waiting for 1 reply (1) since", "at most 6 min 40 s") in said


def failing(name: str, *rounds: int) -> App:
    """Return a client that fails in some rounds."""

    def app(message: Message, context: Context) -> Message:
        here = str(context.node_config["partition-id"]) == name
        if here and message.metadata.group_id in map(str, rounds):
            raise RuntimeError("no memory left")
        return client_app(message, context)

    return app


def test_a_node_that_fails_again_and_again_rests_and_is_named() -> None:
    said = Quiet()
    values: dict[str, Scalar] = {"rounds": 9, "max-failures": 2, "rest-rounds": 3}
    rows = rounds_of(train(values, failing("1", 1, 2, 6), clients=3, progress=said))
    assert [row["round"] for row in rows if "1" in clients(row)] == [1, 2, 6, 7, 8, 9]
    assert ("client 1 rests until round 5", "2 rounds", "no memory left") in said
    assert sum("rests" in line for line in said.said) == 1  # one failure more, and then none


@pytest.mark.parametrize(
    ("late", "asked"), [("fold", [1, 3, 5, 7, 9]), ("drop", [1, 3, 7, 9])], ids=["fold", "drop"]
)
def test_a_late_reply_that_is_used_is_a_sign_of_life(
    late: str, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is dropped is not: rounds would wait for such a node again and again."""
    monkeypatch.setattr(superfednas.server.round.exchange, "time", Ticking())
    values: dict[str, Scalar] = {
        "rounds": 9,
        "round-timeout": 400.0,
        "late-replies": late,
        "max-failures": 2,
        "rest-rounds": 3,
    }
    rows = rounds_of(train(values, grid_class=slow(c1=1), clients=3))
    assert [row["round"] for row in rows if "1" in clients(row)] == asked


def test_a_run_at_work_obeys_a_release_at_its_next_round(tmp_path: Path) -> None:
    class Operator(Quiet):
        def round(self, row: RoundRow) -> None:
            super().round(row)
            if row.round == 2:
                release(run.path, "kitchen")

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.TRAIN:
            trained.append((int(message.metadata.group_id), context.node_id))
        return client_app(message, context)

    trained: list[tuple[int, int]] = []
    said = Operator()
    run = RunFolder.create(str(tmp_path / "run"), {}, "resnet-tiny")
    names = {1: "kitchen", 2: "kitchen", 3: "hall"}
    nodes = {
        n: {"name": name, "partition-id": n - 1, "num-partitions": 3} for n, name in names.items()
    }
    values: dict[str, Scalar] = {"rounds": 4, "clients-per-round": 2}
    train(values, app, nodes=nodes, run=run, progress=said)
    assert sorted(trained) == [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (3, 3), (4, 2), (4, 3)]
    assert ("client kitchen", "released", "node 1") in said


# Nothing is lost


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    whole = full_run(tmp_path / "whole", {"rounds": 4})
    run = full_run(tmp_path / "run", {"rounds": 4})
    (run.path / "supernet.safetensors").unlink()
    newest = run.path / "checkpoints" / "round-000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    point = RunFolder.open(run.path).latest()
    assert point.round == 3
    said = Quiet()
    info = RunFolder.open(run.path)
    info.info["status"] = "failed"
    info.save_info()
    again = full_run(run.path, {"resume": str(run.path), "run-dir": ""}, progress=said)
    assert ("round-000004", "the checkpoint before it is taken") in said
    assert ("resuming", "after round 3") in said
    assert same(again.weights()[0], whole.weights()[0])

    for path in (run.path / "checkpoints").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match=r"no checkpoint is whole: .*round-000004"):
        RunFolder.open(run.path).latest()


class StoppedError(Exception):
    pass


class Stopping(Quiet):
    """Ends the process, as it were, after a round."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def round(self, row: RoundRow) -> None:
        super().round(row)
        if row.round == self.after:
            raise StoppedError


@pytest.mark.slow
def test_one_command_starts_a_run_goes_on_with_it_and_leaves_it_when_it_has_ended(
    tmp_path: Path,
) -> None:
    values: dict[str, Scalar] = {"rounds": 4, "keep-going": True}
    whole = full_run(tmp_path / "whole", values | {"keep-going": False})
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        full_run(folder, values, progress=Stopping(2))
    said = Quiet()
    run = full_run(folder, values | {"lr": 0.7}, progress=said)
    assert ("resuming", "after round") in said
    # Its own settings count, and what was given in their place is named.
    assert ("own settings: lr = 0.1 (given: 0.7)",) in said
    assert same(run.weights()[0], whole.weights()[0])
    before = lines(run.rows())
    again = full_run(folder, values)
    assert same(again.weights()[0], whole.weights()[0])
    assert [row["kind"] for row in lines(again.rows())] == [row["kind"] for row in before]


@pytest.mark.slow
def test_who_rests_is_in_the_checkpoint(tmp_path: Path) -> None:
    values: dict[str, Scalar] = {"rounds": 6, "max-failures": 1, "rest-rounds": 4}
    app = failing("1", 1)
    whole = full_run(tmp_path / "whole", values, app, clients=3)
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        full_run(folder, values, app, progress=Stopping(2), clients=3)
    run = full_run(folder, {"resume": str(folder), "run-dir": ""}, app, clients=3)
    asked = [
        row["round"] for row in lines(run.rows()) if row["kind"] == "round" and "1" in clients(row)
    ]
    assert asked == [1, 6]
    assert same(run.weights()[0], whole.weights()[0])


def test_what_happened_to_whom_is_kept_as_events_over_all_starts(tmp_path: Path) -> None:
    values: dict[str, Scalar] = {"rounds": 4, "max-failures": 2, "rest-rounds": 1}
    app, folder = failing("1", 1, 2), tmp_path / "run"
    with pytest.raises(StoppedError):
        full_run(folder, values, app, progress=Stopping(1), clients=3)
    full_run(folder, {"resume": str(folder), "run-dir": ""}, app, clients=3)
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    events = [row["event"] for row in found if row["event"] not in ("summary", "note")]
    assert events == [
        *("started", "joined", "joined", "joined", "refused", "failed"),
        # The process ended before round 1 had its checkpoint, so that round is trained again.
        *("resumed", "started", "joined", "joined", "joined", "refused", "refused"),
        *("rests", "few-clients", "finished"),
    ]
    joined = [row for row in found if row["event"] == "joined"]
    assert [row["client"] for row in joined] == ["0", "1", "2"] * 2
    assert all(row["examples"] > 100 and "classes" not in row for row in joined)
    refused = [row for row in found if row["event"] == "refused"]
    assert [(row["round"], row["client"]) for row in refused] == [(1, "1"), (1, "1"), (2, "1")]
    assert all("no memory left" in row["reason"] for row in refused)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min-replies": 7, "over-sample": 1}, "min-replies = 7: only 6 clients are asked a round"),
        ({"keep-going": True}, "keep-going needs a run-dir"),
        ({"late-replies": "hold"}, "late-replies = 'hold'"),
        ({"min-weight": 1.5}, "min-weight = 1.5"),
        ({"late-replies": "fold", "averaging": "median"}, "late ones can only be dropped"),
    ],
)
def test_wrong_settings(values: dict[str, Scalar], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_settings(values)


def test_by_default_a_round_waits_for_all() -> None:
    strategy: SupernetStrategy = train(None, clients=3)
    assert all(not missing(row) and row["late"] == [] for row in rounds_of(strategy))
