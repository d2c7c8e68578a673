"""Many nodes that drop out, in this process, with clients that train nothing.

The large ones are run by ``pytest -n 0 -m faults -s``; a small one stands in the ordinary suite.
"""

import time
from collections import Counter

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord
from flwr.app import RecordDict as Records

from server.assignment import TrackingSandwich
from supernet.config import Scalar
from tests.training import rounds_of, train


def app(message: Message, context: Context) -> Message:
    """Answer as a client does that returns its weights untouched; three of ten drop out."""
    name = str(context.node_config["partition-id"])
    if message.metadata.message_type == MessageType.QUERY:
        about = {"name": name, "examples": 20, "validation-examples": 0}
        return Message(Records({"config": ConfigRecord(about)}), reply_to=message)
    order = message.content.config_records["config"]
    number = int(str(order["round"]))
    if np.random.default_rng([number, int(name)]).random() < 0.3:
        raise ConnectionError("gone")
    metrics = {"num-examples": 20, "images": 0, "loss": 1.0, "seconds": 0.0, "round": number}
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
        (12, 4, 15),
        pytest.param(1000, 64, 50, marks=pytest.mark.faults),
        pytest.param(40, 8, 500, marks=pytest.mark.faults),
    ],
)
def test_rounds_end_and_turns_are_shared_fairly_where_three_of_ten_drop_out(
    nodes: int, sampled: int, rounds: int
) -> None:
    since = time.monotonic()
    values: dict[str, Scalar] = {
        "rounds": rounds,
        "clients-per-round": sampled,
        "max-failures": 0,
        "evaluate-on": "clients",
    }
    strategy = train(values, app, clients=nodes)
    done = rounds_of(strategy)
    assert [row["round"] for row in done] == list(range(1, rounds + 1))
    asked = Counter(client["client"] for row in done for client in row["clients"])
    dropped = sum(not client["accepted"] for row in done for client in row["clients"])
    assert asked.total() == rounds * sampled
    assert 0.2 < dropped / asked.total() < 0.4
    policy = strategy.policy
    assert isinstance(policy, TrackingSandwich)
    for counts in (policy.largest, policy.smallest):
        turns = [counts[str(number)] for number in range(nodes)]
        assert sum(turns) >= rounds
        assert max(turns) - min(turns) <= 3
    print(f"\n| {nodes} nodes, {sampled} a round, {rounds} rounds, 30% dropout | "
          f"{time.monotonic() - since:.0f} | {dropped} replies |")  # fmt: skip
