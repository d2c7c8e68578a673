"""Pauses of the server between two looks for replies."""

from types import SimpleNamespace

import pytest
from flwr.app import Message, MessageType, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.server.round.exchange


class Clocked:
    """A grid, and the clock by which its replies come."""

    def __init__(self, due: list[float]) -> None:
        self.now, self.due = 0.0, dict(enumerate(due))
        self.found: dict[int, float] = {}
        self.sleeps: list[tuple[float, float]] = []

    def push_messages(self, messages: list[Message]) -> list[str]:
        return [str(number) for number in range(len(messages))]

    def pull_messages(self, identifiers: list[str]) -> list[SimpleNamespace]:
        self.now += 0.001
        ready = [i for i in identifiers if self.due[int(i)] <= self.now]
        self.found |= {int(i): self.now for i in ready}
        return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=i)) for i in ready]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append((self.now, seconds))
        self.now += seconds


@settings(max_examples=60, deadline=None)
@given(due=st.lists(st.floats(0, 50), min_size=1, max_size=5))
def test_no_wait_gets_longer_by_more_than_a_tenth(due: list[float]) -> None:
    clocked = Clocked(due)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superfednas.server.round.exchange, "time", clocked)
        messages = [Message(RecordDict(), 1, MessageType.TRAIN) for _ in due]
        answered = [
            index
            for index, reply in superfednas.server.round.exchange.exchange(clocked, messages, 100)
        ]
    assert sorted(answered) == list(range(len(due)))
    arrivals = [0.0, *sorted(set(clocked.found.values()))]
    for began, seconds in clocked.sleeps:
        quiet = began - max(each for each in arrivals if each <= began)
        assert seconds == pytest.approx(min(max(quiet / 10, 0.002), 0.25))
    assert len(clocked.sleeps) <= 1100  # 50 s by sleeps of 0.25 s, and the short ones before


def test_who_is_waited_for_is_told_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked = Clocked([10.0, 150.0, 500.0])
    monkeypatch.setattr(superfednas.server.round.exchange, "time", clocked)
    messages = [Message(RecordDict(), 1, MessageType.TRAIN) for _ in clocked.due]
    told: list[tuple[list[int], float]] = []
    outcome = dict(
        superfednas.server.round.exchange.exchange(
            clocked, messages, 200, tell=lambda *said: told.append(said)
        )
    )
    assert [index for index, reply in outcome.items() if reply is None] == [2]
    assert [who for who, _ in told] == [[1, 2], [1, 2], [2]]
    assert [seconds for _, seconds in told] == pytest.approx([60, 120, 180], abs=2)
