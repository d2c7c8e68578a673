"""Runs with one hostile node: each ends, and is to the bit the run in which that node fails."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MessageType,
    RecordDict,
)
from hypothesis import HealthCheck, given, settings

from superfednas.client.app import app as client_app
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder
from superfednas.records.refusals import Refusal
from superfednas.server.app import Prepared
from superfednas.server.strategy import SupernetStrategy
from tests.support.attackers import Tried
from tests.support.hostile_federation import HOSTILE, Answer, failing, quick_client
from tests.support.hostile_replies import answers
from tests.support.training import (
    App,
    Quiet,
    as_flower,
    node_configs,
    ready,
    rounds_of,
    same,
    timeless,
)

pytestmark = pytest.mark.attack


@functools.cache
def prepared_once() -> Prepared:
    return ready({"rounds": 1, "clients-per-round": 2, "ladder": 2})


def run_with(answer: Answer | None) -> SupernetStrategy:
    """Train a round with two of three nodes."""
    prepared = prepared_once()
    strategy = SupernetStrategy(prepared.settings, progress=Quiet())
    app = quick_client(None if answer is None else {HOSTILE: answer})
    grid = LocalGrid(app, node_configs(3), {})
    try:
        strategy.train(grid, {name: tensor.clone() for name, tensor in prepared.state.items()})
    finally:
        grid.close()
    return strategy


@functools.cache
def without() -> SupernetStrategy:
    """Return the run in which the node answers the query with an error."""
    strategy = run_with(failing)
    assert not same(strategy.state, prepared_once().state)
    return strategy


@pytest.mark.slow
def test_a_hostile_answer_leaves_out_its_node_and_changes_nothing_else(tried: Tried) -> None:
    left_out = done = 0

    @given(said=answers())
    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def one(said: dict[str, Any]) -> None:
        nonlocal left_out, done
        done += 1
        strategy = run_with(
            lambda message: Message(RecordDict({"config": ConfigRecord(said)}), reply_to=message)
        )
        assert len(rounds_of(strategy)) == 1
        names = {name for name, (node, _) in strategy.roster._usable.items() if node != HOSTILE}
        assert names <= {"0", "2"}
        if all(node != HOSTILE for node, _ in strategy.roster._usable.values()):
            left_out += 1
            assert same(strategy.state, without().state)
            assert timeless(rounds_of(strategy)) == timeless(rounds_of(without()))
        said_lines = strategy.progress.said  # type: ignore[attr-defined]
        assert all(len(line) < 800 for line in said_lines)

    one()
    assert done >= 300 and left_out >= 200
    tried("answers to queries", left_out)


# Replies that cannot be decoded, in every stage


class Undecodable(LocalGrid):
    """The hostile node's messages of some kind raise where they are pulled, as Flower's do."""

    kind = MessageType.TRAIN
    later = False  # they come a round late

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bad: dict[str, int] = {}
        self.round = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        pushed = list(super().push_messages(messages))
        for identifier, message in zip(pushed, messages, strict=True):
            about = message.metadata
            if about.message_type == MessageType.TRAIN:
                self.round = int(about.group_id)
            if about.message_type == self.kind and about.dst_node_id == HOSTILE:
                self.bad[identifier] = self.round + self.later
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        bad = [i for i in asked if i in self.bad]
        for identifier in bad:
            if self.round < self.bad[identifier] or identifier not in self._pending:
                return []
            del self._pending[identifier]
            raise KeyError("Nonsense")
        return super().pull_messages(asked)


def undecodable(kind: str, *, later: bool = False) -> type[Undecodable]:
    return type("Bad", (Undecodable,), {"kind": kind, "later": later})


def raising(kind: str) -> App:
    """Serve as usual, except that the hostile node raises at messages of a kind."""

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == kind and context.node_id == HOSTILE:
            raise RuntimeError("out of paper")
        return client_app(message, context)

    return app


def codes(run: RunFolder) -> dict[tuple[int, str], str | None]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {
        (row["round"], client["client"]): client["refusal"]
        for row in rows
        if row["kind"] == "round"
        for client in row["clients"]
        if not client["accepted"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.QUERY])
def test_a_run_goes_on_without_what_cannot_be_decoded(tmp_path: Path, kind: str) -> None:
    values = {"rounds": 2, "clients-per-round": 3}
    as_flower(values | {"run-dir": str(tmp_path / "bad")}, grid_class=undecodable(kind))
    as_flower(values | {"run-dir": str(tmp_path / "error")}, raising(kind))
    bad, error = (RunFolder.open(str(tmp_path / name)) for name in ("bad", "error"))
    assert same(bad.weights()[0], error.weights()[0])
    assert codes(bad).keys() == codes(error).keys()
    if kind == MessageType.TRAIN:
        assert codes(bad) and set(codes(bad).values()) == {Refusal.UNREADABLE}
    else:
        log = [json.loads(line) for line in (bad.path / "log.jsonl").read_text().splitlines()]
        assert [r["refusal"] for r in log if r["event"] == "left-out"] == [Refusal.UNREADABLE]


@pytest.mark.slow
def test_a_late_reply_that_cannot_be_decoded_is_counted_and_dropped(tmp_path: Path) -> None:
    values = {"rounds": 3, "clients-per-round": 2, "over-sample": 1, "run-dir": str(tmp_path / "a")}
    as_flower(values, grid_class=undecodable(MessageType.TRAIN, later=True), clients=3)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "round"]
    late = [entry for row in rows for entry in row["late"]]
    assert len(rows) == 3 and [entry["refusal"] for entry in late] == [Refusal.UNREADABLE]


@pytest.mark.slow
@pytest.mark.parametrize("errand", ["score-run", "personalise-run"])
def test_an_errand_goes_on_without_what_cannot_be_decoded(tmp_path: Path, errand: str) -> None:
    found = []
    for name in ("bad", "error"):
        folder = str(tmp_path / name)
        as_flower({"rounds": 1, "clients-per-round": 2, "run-dir": folder}, clients=3)
        asked = {errand: folder, "score-subnets": 8, "min-nodes": 3, "fine-tune-epochs": 1}
        asked["personal-subnets"] = "smallest"
        if name == "bad":
            as_flower(asked, grid_class=undecodable(MessageType.EVALUATE), clients=3)
        else:
            as_flower(asked, raising(MessageType.EVALUATE), clients=3)
        (path,) = [
            path
            for path in (tmp_path / name).rglob("*.json*")
            if path.parent.name in ("personal", "scores")
        ]
        found.append(path.read_text())
    assert found[0] == found[1]
