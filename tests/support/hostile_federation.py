"""A federation in this process with one node that answers as a test likes; nobody trains in it."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from superfednas.flower.local_grid import LocalGrid
from tests.support.training import App, Row, order_of

HOSTILE = 2  # a node; its name is "1"
RIGHT = {
    "protocol": 5,
    "name": "1",
    "examples": 300,
    "validation-examples": 50,
    "device-class": "",
    "in-turn": False,
    "num-partitions": 3,
}
NUMBERS = {"num-examples": 8, "images": 8, "mac-images": 8, "loss": 1.0, "seconds": 0.0}
UNREADABLE = "unreadable"  # of a reply with this record alone: its pull raises
Answer = Callable[[Message], Any]


def drawn(strategy: st.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """Draw examples, the same for the same seed."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(one: Any) -> None:
        found.append(one)

    collect()
    return found[:count]


def quick_client(
    answers: Mapping[int, Answer] | None = None, replies: Mapping[int, Any] | None = None
) -> App:
    """Serve without training: weights come back a little higher.

    Parameters
    ----------
    answers
        Node to its answer to the query, in place of a right one.
    replies
        Round to what makes the hostile node's reply of that round from the right one and the order.
    """

    def app(message: Message, context: Context) -> Any:
        kind, node = message.metadata.message_type, context.node_id
        name = str(context.node_config["partition-id"])
        if kind == MessageType.QUERY:
            if answers and node in answers:
                return answers[node](message)
            return Message(
                RecordDict({"config": ConfigRecord(RIGHT | {"name": name})}), reply_to=message
            )
        reply = right_reply(message, node)
        if node == HOSTILE and replies and (number := order_of(message)) in replies:
            return replies[number](reply, message)
        return reply

    return app


def right_reply(order: Message, node: int) -> Message:
    """Return what a client that keeps the rules answers."""
    flat = order.content.array_records["arrays"]["subnet"].numpy()
    asked = order.content.config_records["config"]
    moved = flat + np.float32(node * 2.0**-18)
    texts = {"architecture": str(asked["architecture"]), "source": "", "source-root": ""}
    return Message(
        RecordDict(
            {
                "arrays": ArrayRecord({"subnet": Array(moved)}),
                "metrics": MetricRecord({**NUMBERS, "round": order_of(order)}),
                "config": ConfigRecord(texts),
            }
        ),
        reply_to=order,
    )


def failing(*_: object) -> Message:
    raise RuntimeError("out of paper")


def hostile_grid(stop: int = 0, newcomers: Mapping[int, int] | None = None) -> type[LocalGrid]:
    """Return a grid that raises where a marked reply is pulled, as Flower's does.

    Parameters
    ----------
    stop
        The round at whose orders the run is interrupted; 0: none.
    newcomers
        Node to the round after whose orders it comes.
    """
    later = dict(newcomers or {})

    class Hostile(LocalGrid):
        round = 0

        def get_node_ids(self) -> Iterable[int]:
            return [node for node in super().get_node_ids() if later.get(node, 0) <= self.round]

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == MessageType.TRAIN:
                    self.round = order_of(message)
                    if self.round == stop:
                        raise KeyboardInterrupt
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            asked = list(message_ids)
            for identifier in asked:
                reply = self._pending.get(identifier)
                if reply is not None and reply.done() and reply.exception() is None:
                    found = reply.result()
                    if not found.has_error() and list(found.content) == [UNREADABLE]:
                        del self._pending[identifier]
                        raise KeyError("Nonsense")
            return super().pull_messages(asked)

    return Hostile


def rounds_in(folder: Path) -> list[Row]:
    """Return the rows of a run's rounds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "round"]


def events_in(folder: Path, event: str) -> list[Row]:
    """Return the events of a kind in a run's log."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]
