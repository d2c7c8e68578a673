"""Replies that are still on their way hold nobody up."""

import threading
import time
from collections.abc import Iterable

import pytest
from flwr.app import Message, MessageType, Metadata, RecordDict

from superfednas.flower.prompt_grid import PromptGrid
from superfednas.server.round.exchange import Late, exchange
from tests.support.processes import wait_until


class Uploads:
    """A grid as Flower's: a pull lasts until the replies that have begun to come are there."""

    def __init__(self) -> None:
        self.begun: dict[str, threading.Event] = {}
        self.asked: list[str] = []
        self.fails: set[str] = set()

    def begin(self, identifier: str, *, ended: bool = True) -> threading.Event:
        event = self.begun[identifier] = threading.Event()
        if ended:
            event.set()
        return event

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [str(number) for number in range(len(messages))]

    def pull_messages(self, identifiers: list[str]) -> list[Message]:
        self.asked += identifiers
        if self.fails & set(identifiers):
            raise ConnectionError("the SuperLink has gone")
        taken = {i: self.begun.pop(i) for i in identifiers if i in self.begun}
        for event in taken.values():
            assert event.wait(60)
        return [reply_to(identifier) for identifier in taken]


def reply_to(identifier: str) -> Message:
    about = Metadata(1, "", 2, 1, identifier, "", 0.0, 1.0, MessageType.TRAIN)
    return Message(metadata=about, content=RecordDict())  # type: ignore[call-overload]


def names(replies: Iterable[Message]) -> list[str]:
    return [reply.metadata.reply_to_message_id for reply in replies]


def test_a_reply_on_its_way_holds_up_no_other() -> None:
    grid = Uploads()
    prompt = PromptGrid(grid)
    assert names(prompt.pull_messages(["a", "b", "c"])) == []
    slow = grid.begin("b", ended=False)
    grid.begin("c")
    began = time.monotonic()
    assert names(prompt.pull_messages(["a", "b", "c"])) == ["c"]
    assert names(prompt.pull_messages(["a", "b"])) == []
    assert time.monotonic() - began < 5
    slow.set()
    found: list[str] = []
    wait_until(lambda: found.extend(names(prompt.pull_messages(["a", "b"]))) or found, 20, "b")
    assert found == ["b"]
    assert grid.asked.count("b") == 2  # not again while it is on its way


def test_what_nobody_asks_for_any_more_is_not_handed_out() -> None:
    grid = Uploads()
    prompt = PromptGrid(grid)
    slow = grid.begin("a", ended=False)
    assert names(prompt.pull_messages(["a"])) == []
    slow.set()
    wait_until(lambda: all(pull.done() for pull in prompt._pulls.values()), 20, "the reply")
    assert names(prompt.pull_messages(["b"])) == []
    assert not prompt._pulls


def test_a_pull_that_fails_fails_where_it_was_asked_for() -> None:
    grid = Uploads()
    grid.fails = {"b"}
    with pytest.raises(ConnectionError, match="has gone"):
        PromptGrid(grid).pull_messages(["a", "b"])


def test_of_many_a_few_are_asked_for_at_a_time_and_each_in_its_turn() -> None:
    grid = Uploads()
    prompt = PromptGrid(grid)
    many = [str(number) for number in range(50)]
    for identifier in many:
        grid.begin(identifier)
    waiting = list(many)
    for _ in range(8):
        before = len(grid.asked)
        for name in names(prompt.pull_messages(waiting)):
            waiting.remove(name)
        assert len(grid.asked) - before <= 16
    assert not waiting


def test_a_round_ends_at_its_deadline_whatever_is_on_its_way() -> None:
    grid, late = Uploads(), Late[str]()
    grid.begin("0")
    slow = grid.begin("1", ended=False)
    prompt = PromptGrid(grid)
    messages = [Message(RecordDict(), 1, MessageType.TRAIN) for _ in range(3)]
    began = time.monotonic()
    outcome = {
        index: reply is not None
        for index, reply in exchange(prompt, messages, 1.0, late=late, tasks=["a", "b", "c"])
    }
    assert 1 <= time.monotonic() - began < 5
    assert outcome == {0: True, 1: False, 2: False}
    slow.set()
    assert late.waiting == {"1": "b", "2": "c"}
    wait_until(lambda: names(prompt.pull_messages(late.waiting)) == ["1"], 20, "the late reply")
