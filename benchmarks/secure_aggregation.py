"""The cost of secure aggregation beside plain runs of the same call: bytes, seconds, accuracy.

    python benchmarks/secure_aggregation.py runs/secure [--rounds 20] [--seeds 0,1,2]

Digits, 10 clients, 8 a round, the README's other settings. ``plain`` clips changes to the same
length as ``secure`` (``dp-clip`` without noise). ``secure, few`` also sends what fewer than three
clients of a round hold. Server and clients share this process and one thread: seconds are those of
its processor, which other work on the machine does not lengthen, and include the final test.
"""

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from flwr.app import ArrayRecord, Context, Message

from superfednas.bench.machine import describe
from superfednas.client.app import app as client_app
from superfednas.common.settings import Scalar, flatten
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.rows import EvaluationRow, RoundRow, of_kind
from superfednas.server.app import prepare, run_training
from superfednas.server.journal.progress import Progress

CLIENTS, CLIP = 10, 1.0
KINDS: dict[str, dict[str, Scalar]] = {
    "plain": {"dp-clip": CLIP},
    "secure": {"secure-aggregation": True, "secure-clip": CLIP},
    "secure, few": {"secure-aggregation": True, "secure-clip": CLIP, "secure-few": True},
}


class Measured(NamedTuple):
    """A run: means over its rounds, and what it ends with."""

    megabytes: float
    beside: float
    seconds: float
    left_out: float
    largest: float
    ladder: float


class Counting:
    """The ClientApp, with the bytes of what passes counted: of arrays, and of everything else."""

    def __init__(self) -> None:
        self.arrays = self.texts = 0

    def __call__(self, message: Message, context: Context) -> Message:
        """Serve a message."""
        reply = client_app(message, context)
        for records in (message.content, reply.content):
            for record in records.values():
                if isinstance(record, ArrayRecord):
                    self.arrays += sum(len(array.data) for array in record.values())
                else:
                    self.texts += sum(len(key) + len(str(v)) for key, v in record.items())
        return reply


def run(folder: Path, values: dict[str, Scalar]) -> Measured:
    """Train in this process and measure."""
    prepared = prepare({**values, "run-dir": str(folder)})
    nodes = {k + 1: {"partition-id": k, "num-partitions": CLIENTS} for k in range(CLIENTS)}
    app = Counting()
    grid = LocalGrid(app, nodes, flatten(prepared.settings), 1)
    try:
        began = time.process_time()
        rows = run_training(prepared, grid, Progress()).rows()
        seconds = time.process_time() - began
    finally:
        grid.close()
    rounds = of_kind(rows, RoundRow)
    (test,) = [row for row in of_kind(rows, EvaluationRow) if row.kind == "test"]
    scores = {rung.name: rung["accuracy"] for rung in test.ladder}
    return Measured(
        app.arrays / 1e6 / len(rounds),
        app.texts / 1e3 / len(rounds),
        seconds / len(rounds),
        statistics.mean(row.left_out or 0.0 for row in rounds),
        scores["largest"],
        statistics.mean(scores.values()),
    )


def spread(numbers: Iterable[float]) -> str:
    """Return mean ± standard deviation in per cent."""
    found = list(numbers)
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.mean(found):.1%} ± {deviation:.1%}"


def main(
    out: Annotated[Path, typer.Argument(help="folder for the runs, which must not exist yet")],
    rounds: Annotated[int, typer.Option(help="rounds of every run")] = 20,
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0,1,2",
    averagings: Annotated[str, typer.Option(help="comma-separated")] = "overlap,maxnet",
) -> None:
    """Train all, then print the table."""
    torch.set_num_threads(1)
    common: dict[str, Scalar] = {"rounds": rounds, "clients-per-round": 8, "evaluate-every": 0}
    found: dict[tuple[str, str], list[Measured]] = {}
    for seed in seeds.split(","):
        for averaging in averagings.split(","):
            for kind, values in KINDS.items():
                own: dict[str, Scalar] = {"averaging": averaging, "seed": int(seed)}
                folder = out / f"{averaging}-{kind.replace(', ', '-')}-seed{seed}"
                print(f"== {folder.name}", flush=True)
                measured = run(folder, {**common, **own, **values})
                found.setdefault((averaging, kind), []).append(measured)
                print(measured, flush=True)
    print(f"\n{describe({'rounds': rounds, 'seeds': seeds})}")
    print(
        "| averaging | run | MB of weights a round | kB beside them | CPU seconds a round "
        "| left out | test, largest | test, ladder |"
    )
    print("|---" * 8 + "|")
    for (averaging, kind), runs in found.items():
        megabytes, beside, seconds, left_out = (
            statistics.mean(column) for column in list(zip(*runs, strict=True))[:4]
        )
        print(
            f"| {averaging} | {kind} | {megabytes:.1f} | {beside:.0f} | {seconds:.2f} | "
            f"{left_out:.0%} | {spread(each.largest for each in runs)} | "
            f"{spread(each.ladder for each in runs)} |"
        )


if __name__ == "__main__":
    typer.run(main)
