"""The cost of a round besides the clients' work, in one process.

The clients are empty: each sends back the array it was sent. What remains is ours: who is online,
who gets what, extraction and serialisation, checks, averaging, metrics, and the checkpoint (which
is written during the next round). Each cause is the time inside the functions that its row names;
the rest is the remainder of the round. A copy of the same bytes is timed in the same call, as the
floor for moving weights.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from superfednas.bench import fedavg
from superfednas.bench.figures import Effort, Figure, faster, milliseconds
from superfednas.common.settings import flatten
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder
from superfednas.records.rows import RoundRow
from superfednas.server import strategy
from superfednas.server.app import prepare
from superfednas.server.journal.progress import Progress
from superfednas.server.methods.base import Configured
from superfednas.server.nodes import Roster
from superfednas.server.round import sample
from superfednas.server.round.fold import Folding
from superfednas.server.strategy import SupernetStrategy
from superfednas.wire.order import ARRAYS, CONFIG, METRICS, PROTOCOL
from superfednas.wire.source import source_fingerprint

CAUSES: dict[str, list[tuple[Any, str]]] = {
    "who is there (roster)": [(Roster, "refresh")],
    "who takes part, who gets what (sampling, policy)": [
        (sample, "sample_clients"),
        (Configured, "orders"),
    ],
    "messages: cut out, serialise": [(strategy, "train_messages")],
    "the clients, empty": [(LocalGrid, "_serve")],
    "replies: check, average": [(Folding, "fold")],
    "metrics, progress": [
        (strategy, "round_row"),
        (SupernetStrategy, "_record"),
        (Progress, "round"),
        (strategy, "write_whole"),
    ],
    "checkpoint": [(SupernetStrategy, "_checkpoint")],
}
NESTED = {"replies: check, average": ("the clients, empty",)}


class Silent(Progress):
    """Says nothing."""

    def write(self, text: str) -> None:
        """Say nothing."""


def echo(message: Message, context: Context) -> Message:
    """Answer like a client that has nothing to do."""
    order = cast(ConfigRecord, message.content[CONFIG])
    if "train" not in message.metadata.message_type:
        about: dict[str, Any] = {
            "protocol": PROTOCOL,
            "name": str(context.node_config["partition-id"]),
            "examples": 100,
            "validation-examples": 10,
            "device-class": "",
        }
        return Message(RecordDict({CONFIG: ConfigRecord(about)}), reply_to=message)
    numbers = {"num-examples": 100, "loss": 1.0, "seconds": 0.0, "images": 100, "mac-images": 0}
    texts = {
        "round": order["round"],
        "architecture": order["architecture"],
        "source": source_fingerprint(),
        "source-root": "",
    }
    numbers["round"] = texts.pop("round")  # type: ignore[assignment]
    content = RecordDict(
        {
            METRICS: MetricRecord(numbers),  # type: ignore[arg-type]
            CONFIG: ConfigRecord(texts),
            ARRAYS: message.content[ARRAYS],
        }
    )
    return Message(content, reply_to=message)


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Add up the seconds inside the functions of every cause."""
    spent: dict[str, float] = defaultdict(float)

    def timed(cause: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*values, **named)
            finally:
                spent[cause] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for cause, functions in CAUSES.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timed(cause, getattr(owner, name))))
        yield spent


def strategy_values(space: str, sampled: int, count: int, folder: Path | None) -> dict[str, Any]:
    """Return the settings of a run of empty rounds."""
    return {
        "rounds": count,
        "clients-per-round": sampled,
        "space": space,
        "evaluate-every": 0,
        "dataset": "none",
        "num-classes": 10,
        "in-channels": 3,
        "image-size": 32,
        "run-dir": "" if folder is None else str(folder),
    }


def rounds(
    nodes: int, sampled: int, space: str, count: int, folder: Path | None
) -> tuple[float, dict[str, float], int]:
    """Return the median seconds a round, the median of every cause, and the bytes a round moves."""
    values = strategy_values(space, sampled, count + 1, folder)
    prepared = prepare(values)
    run = None
    if folder is not None:
        settings = prepared.settings
        run = RunFolder.create(str(folder), flatten(settings), settings.space.space)
    seen: list[tuple[float, dict[str, float], int]] = []
    with clocked() as spent:
        trainer = SupernetStrategy(prepared.settings, run=run, progress=Silent())
        ended = time.perf_counter()

        def after(row: RoundRow) -> None:
            nonlocal ended
            now = time.perf_counter()
            assert not row.refused, row
            seen.append((now - ended, dict(spent), row.bytes))
            spent.clear()
            ended = now

        trainer.hooks.append(after)
        configs = {n + 1: {"partition-id": n, "num-partitions": nodes} for n in range(nodes)}
        grid = LocalGrid(echo, configs, {}, 1)
        try:
            trainer.train(grid, prepared.state)
        finally:
            grid.close()
    steady = seen[1:]  # the first round queries the nodes
    causes = {
        cause: statistics.median(row[1].get(cause, 0.0) for row in steady) for cause in CAUSES
    }
    for outer, inner in NESTED.items():
        causes[outer] -= sum(causes[name] for name in inner)
    return (
        statistics.median(row[0] for row in steady),
        causes,
        round(statistics.mean(row[2] for row in steady)),
    )


def copy_seconds(size: int, repeats: int = 5) -> float:
    """Return the median seconds that copying so many bytes takes on warm buffers."""
    source, target = (np.zeros(max(size, 8) // 4, dtype=np.float32) for _ in range(2))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure empty rounds in one process, in turns with Flower's ``FedAvg`` on the same grid."""
    space, clients, nodes = "resnet-tiny", 8, 10
    turns, count = {"quick": (1, 3), "normal": (3, 20), "full": (7, 40)}[effort]
    ours: list[float] = []
    others: list[float] = []
    moved = 0
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            total, _, moved = rounds(nodes, clients, space, count, Path(folder) / "run")
        ours.append(total)
        others.append(statistics.median(fedavg.local_rounds(space, nodes, clients, count)))
    allowed = 10 + 2 * clients
    what = f"a round of {clients} empty `{space}` clients in one process, checkpoint included"
    yield Figure(
        "rounds",
        what,
        "Flower's `FedAvg` on the same grid: one array for all, nothing checked or kept",
        faster(ours, others),
        milliseconds(ours),
        milliseconds(others),
    )
    yield Figure(
        "rounds",
        f"{what}: its time",
        "10 ms and 2 ms a client",
        1e3 * statistics.median(ours) / allowed,
        milliseconds(ours),
        f"{allowed} ms",
        None if effort == "quick" else 1.0,
        more=False,
    )
    copied = copy_seconds(moved)
    yield Figure(
        "rounds",
        what,
        "a copy of the bytes of its messages, warm buffers",
        copied / statistics.median(ours),
        milliseconds(ours),
        milliseconds([copied]),
    )
