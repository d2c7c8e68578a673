"""Many nodes that are slow or drop out, in this process, on a clock that only the test turns.

The large ones are run by ``pytest -n 0 -m faults -s``; a small one stands in the ordinary suite.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import wait

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord
from flwr.app import RecordDict as Records

import superfednas.server.round.exchange
from superfednas.common.settings import Scalar
from superfednas.flower.local_grid import LocalGrid
from superfednas.server.assign.policies import TrackingSandwich
from tests.support.training import rounds_of, train

TIMEOUT = 10.0


class Clock:
    """Time that passes only in sleep."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def fate(number: int, name: str) -> tuple[str, float]:
    """Return what a client does in a round, and after how many seconds: three of ten drop out."""
    rng = np.random.default_rng([number, int(name)])
    luck, delay = rng.random(), min(rng.exponential(1.0), 0.9 * TIMEOUT)
    if luck < 0.15:
        return "silent", math.inf
    if luck < 0.3:
        return "gone", delay
    if luck < 0.35:
        return "late", 1.5 * TIMEOUT
    return "answers", delay


def app(message: Message, context: Context) -> Message:
    """Answer as a client does that returns its weights untouched."""
    name = str(context.node_config["partition-id"])
    if message.metadata.message_type == MessageType.QUERY:
        about = {"name": name, "examples": 20, "validation-examples": 0}
        return Message(Records({"config": ConfigRecord(about)}), reply_to=message)
    order = message.content.config_records["config"]
    number = int(str(order["round"]))
    if fate(number, name)[0] == "gone":
        raise ConnectionError("gone")
    metrics = {
        "num-examples": 20,
        "images": 0,
        "mac-images": 0,
        "loss": 1.0,
        "seconds": 0.0,
        "round": number,
    }
    config = {"architecture": str(order["architecture"]), "source": "", "source-root": ""}
    return Message(
        Records(
            {
                "arrays": ArrayRecord(dict(message.content.array_records["arrays"])),
                "metrics": MetricRecord(metrics),
                "config": ConfigRecord(config),
            }
        ),
        reply_to=message,
    )


@pytest.mark.parametrize(
    ("nodes", "sampled", "rounds"),
    [
        (12, 4, 60),
        pytest.param(1000, 64, 50, marks=pytest.mark.faults),
        pytest.param(40, 8, 500, marks=pytest.mark.faults),
    ],
)
def test_rounds_end_and_turns_are_shared_fairly_where_three_of_ten_drop_out(
    nodes: int, sampled: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, since = Clock(), time.monotonic()
    monkeypatch.setattr(superfednas.server.round.exchange, "time", clock)
    began: list[float] = []

    class Delayed(LocalGrid):
        """Gives a reply out when its time has come."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            pushed = list(super().push_messages(messages))
            if messages[0].metadata.message_type == MessageType.TRAIN:
                began.append(clock.now)
                for identifier, message in zip(pushed, messages, strict=True):
                    name = str(message.metadata.dst_node_id - 1)
                    due[identifier] = clock.now + fate(len(began), name)[1]
            return pushed

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            ready = [i for i in message_ids if due.get(i, 0.0) <= clock.now]
            wait([self._pending[identifier] for identifier in ready])
            return super().pull_messages(ready)

    due: dict[str, float] = {}
    values: dict[str, Scalar] = {
        "rounds": rounds,
        "clients-per-round": sampled,
        "round-timeout": TIMEOUT,
        "max-failures": 0,
        "evaluate-on": "clients",
    }
    strategy = train(values, app, grid_class=Delayed, clients=nodes)
    done = rounds_of(strategy)
    assert [row["round"] for row in done] == list(range(1, rounds + 1))
    assert np.diff([*began, clock.now]).max() < TIMEOUT + 0.5

    asked = [(row["round"], c["client"], c["reason"]) for row in done for c in row["clients"]]
    assert len(asked) == rounds * sampled
    fates = Counter(fate(number, name)[0] for number, name, _ in asked)
    said = {"answers": None, "late": "no reply within 10 s", "silent": "no reply within 10 s"}
    for number, name, reason in asked:
        what = fate(number, name)[0]
        assert reason == said[what] if what in said else "gone" in reason
    late = [(entry["round"], entry["client"]) for row in done for entry in row["late"]]
    # Such a reply comes five seconds after its round has ended, which may be after the last one.
    owed = {(r, name) for r, name, _ in asked if fate(r, name)[0] == "late"}
    assert len(late) == len(set(late)) and set(late) <= owed
    assert {(r, name) for r, name in owed if began[-1] > began[r - 1] + 1.5 * TIMEOUT} <= set(late)

    policy = strategy.method.setup.policy
    assert isinstance(policy, TrackingSandwich)
    spreads = []
    for counts in (policy.largest, policy.smallest):
        turns = [counts[str(number)] for number in range(nodes)]
        assert sum(turns) >= rounds
        spreads.append(max(turns) - min(turns))
    print(f"\n| {nodes} nodes, {sampled} a round, {rounds} rounds | {fates['silent']} silent, "
          f"{fates['gone']} gone, {fates['late']} late of {len(asked)} | spread {spreads} | "
          f"{time.monotonic() - since:.0f} s |")  # fmt: skip
    assert max(spreads) <= 3
