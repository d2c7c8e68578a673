"""Messages that a node has lost are found and sent again; those of a slow node are not."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.server.round.exchange
import superfednas.server.round.lost
from superfednas.server.round.exchange import LOST_TWICE, exchange
from superfednas.server.round.lost import Watch

EVERY, GRACE, TIMEOUT = 60.0, 30.0, 4000.0


class Nodes:
    """SuperNodes on a clock: each works on one message after the other, and may lose some.

    Parameters
    ----------
    work
        Seconds that each node works on a training message.
    losses
        Training messages that each node takes and loses, after half of that time.
    """

    def __init__(self, work: list[float], losses: list[int]) -> None:
        self.now = 0.0
        self.work, self.losses = work, list(losses)
        self.free = [0.0] * len(work)
        self.due: dict[str, tuple[float, Message]] = {}
        self.pushed: list[tuple[str, int]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.2)

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        identifier = f"{kind}-{len(self.pushed)}"
        self.pushed.append((kind, node))
        begins = max(self.now, self.free[node])
        if kind == MessageType.TRAIN:
            lost = self.losses[node] > 0
            self.losses[node] -= lost
            self.free[node] = begins + self.work[node] * (0.5 if lost else 1.0)
            if lost:
                return identifier
        elif begins - self.now > message.metadata.ttl:
            return identifier  # void: the SuperLink does not hand it out any more
        reply = SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=identifier), has_error=lambda: False
        )
        self.due[identifier] = (self.free[node], reply)  # type: ignore[assignment]
        return identifier

    def pull_messages(self, identifiers: list[str]) -> list[Message]:
        ready = [i for i in identifiers if i in self.due and self.due[i][0] <= self.now]
        return [self.due.pop(i)[1] for i in ready]


def asked(nodes: Any, in_turn: list[bool], told: list[int]) -> dict[int, Message | None]:
    messages = [
        Message(RecordDict(), dst_node_id=n, message_type=MessageType.TRAIN)
        for n in range(len(in_turn))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superfednas.server.round.exchange, "time", nodes)
        patch.setattr(superfednas.server.round.lost, "time", nodes)
        watched = [n if follows else None for n, follows in enumerate(in_turn)]
        watch = Watch(nodes, watched, every=EVERY, grace=GRACE, tell=told.append)
        replies: Iterator[tuple[int, Message | None]] = exchange(
            nodes, messages, TIMEOUT, watch=watch
        )
        return dict(replies)


@settings(max_examples=60, deadline=None)
@given(
    fleet=st.lists(
        st.tuples(st.floats(0, 400), st.integers(0, 2), st.booleans()), min_size=1, max_size=5
    )
)
def test_what_is_lost_is_sent_again_and_nothing_else(
    fleet: list[tuple[float, int, bool]],
) -> None:
    work, losses, in_turn = (list(column) for column in zip(*fleet, strict=True))
    nodes, told = Nodes(work, losses), list[int]()
    found = asked(nodes, in_turn, told)
    assert sorted(found) == list(range(len(fleet)))
    for number, (_, lost, follows) in enumerate(fleet):
        trained = nodes.pushed.count((MessageType.TRAIN, number))
        reply = found[number]
        assert told.count(number) == (lost if follows else 0)
        if not follows:  # nobody is asked, and what is lost is waited for to the end
            assert nodes.pushed.count((MessageType.QUERY, number)) == 0
            assert trained == 1 and (reply is None) == (lost > 0)
        elif lost < 2:
            assert trained == 1 + lost and reply is not None and not reply.has_error()
        else:
            assert trained == 2 and reply is not None
            assert reply.has_error() and reply.error.reason == LOST_TWICE
    follows_all = all(in_turn)
    assert not follows_all or nodes.now <= sum(2 * w + 2 * (EVERY + GRACE + 2) for w in work)


def test_no_more_than_one_question_waits_at_a_node() -> None:
    nodes = Nodes([1000.0], [0])
    asked(nodes, [True], [])
    questions = [kind for kind, _ in nodes.pushed].count(MessageType.QUERY)
    assert 14 <= questions <= 17
    # Of all these only one has not become void when the node is free.
    assert sum(key.startswith("query") for key in nodes.due) <= 1


def test_an_error_of_the_superlink_answers_no_question() -> None:
    nodes = Nodes([500.0], [0])
    push = nodes._push

    def refuse(message: Message) -> str:
        identifier = push(message)
        if message.metadata.message_type == MessageType.QUERY:
            reply = SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=identifier),
                has_error=lambda: True,
                error=Error(3, "too old"),
            )
            nodes.due[identifier] = (nodes.now, reply)  # type: ignore[assignment]
        return identifier

    nodes._push = refuse  # type: ignore[method-assign]
    told: list[int] = []
    found = asked(nodes, [True], told)
    assert not told and found[0] is not None
    assert nodes.pushed.count((MessageType.TRAIN, 0)) == 1
