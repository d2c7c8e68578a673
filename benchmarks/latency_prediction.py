"""Predictions of whole networks by a table of block latencies that has not seen them.

    python benchmarks/latency_prediction.py --seconds 120 --out latency

Every case is measured by ``superfednas.nas.cost.profiling.measure`` in a process of its own:
blocks, the networks that the table is fitted to and those held out, in turns. Two baselines see
the same measurements: the sum of the blocks without the fitted constant and factor, and a line
through MACs alone, fitted to the same networks. Errors are absolute and relative, on the networks
held out: median, 90th percentile, largest; ρ is Spearman's rank correlation. The
spread (quartiles' distance over median, of the median network) says how idle the machine was; where
it cannot be, take ``--clock cpu``.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import spearmanr

from superfednas.nas.cost.latency import Errors, LatencyTable, together
from superfednas.nas.cost.profiling import fit_line, measure
from superfednas.supernet import SearchSpace, load_space

HEADER = (
    "| space | input | batch | threads | blocks | fitted | held out | measured, ms | spread "
    "| blocks + line (ρ) | blocks alone (ρ) | line through MACs (ρ) | seconds |"
)


@dataclass(frozen=True)
class Case:
    """One row of the table for every batch size."""

    space: str
    channels: int
    side: int

    def __str__(self) -> str:  # noqa: D105
        return f"{self.space}-{self.channels}x{self.side}x{self.side}"


def load(case: Case) -> SearchSpace:
    return load_space(case.space, in_channels=case.channels, image_size=case.side)


CASES = [Case("resnet-tiny", 1, 8), Case("resnet-tiny", 3, 32), Case("resnet10-26", 3, 32)]


def judged(predicted: list[float], truth: list[float]) -> str:
    """Return the errors and the rank correlation as text."""
    error = Errors.of([abs(p - t) / t for p, t in zip(predicted, truth, strict=True)])
    rank = spearmanr(predicted, truth).statistic
    return f"{error.median:.1%} / {error.p90:.1%} / {error.max:.1%} ({rank:.3f})"


def row(case: Case, table: LatencyTable, batch: int) -> str:
    """Return the row of one case and batch size."""
    space, part = load(case), table.batch(batch)
    fitted = [space.parse(network.architecture) for network in part.fitted]
    held_out = [space.parse(network.architecture) for network in part.held_out]
    truth = [network.timing.fastest_ms for network in part.held_out]
    constant, factor = fit_line(
        np.array([space.macs(arch) for arch in fitted]),
        np.array([network.timing.fastest_ms for network in part.fitted]),
    )
    everything = [network.timing for network in (*part.fitted, *part.held_out)]
    spread = float(np.median([timing.spread_ms / timing.median_ms for timing in everything]))
    whole = [timing.fastest_ms for timing in everything]
    cells = [
        case.space,
        f"{case.side}×{case.side}×{case.channels}",
        batch,
        table.threads,
        len(part.blocks),
        len(fitted),
        len(held_out),
        f"{min(whole):.3g} to {max(whole):.3g}",
        f"{spread:.1%}",
        judged([network.predicted_ms for network in part.held_out], truth),
        judged([together(part.blocks, space.blocks(arch)) for arch in held_out], truth),
        judged([constant + factor * space.macs(arch) for arch in held_out], truth),
        f"{table.seconds:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(
    batches: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,16",
    threads: Annotated[int, typer.Option(help="threads an operation")] = 1,
    networks: Annotated[int, typer.Option(help="networks to fit to")] = 12,
    holdout: Annotated[int, typer.Option(help="networks held out")] = 20,
    seconds: Annotated[float, typer.Option(help="about how long to measure each case")] = 120.0,
    clock: Annotated[str, typer.Option(help="wall, or on a busy machine cpu")] = "wall",
    cases: Annotated[str, typer.Option(help="substring of the cases to run")] = "",
    out: Annotated[Path | None, typer.Option(help="folder for the tables")] = None,
) -> None:
    """Measure every case and print the table; the ``seconds`` are those of all batch sizes."""
    print("`python " + " ".join(sys.argv) + "`", f"load before: {os.getloadavg()[0]:.1f}", sep="; ")
    options: dict[str, Any] = {
        "batches": [int(size) for size in batches.split(",")],
        "threads": threads,
        "networks": networks,
        "holdout": holdout,
        "seconds": seconds,
        "clock": clock,
    }
    rows = [HEADER, "|" + "---|" * HEADER.count(" | ") + "---|"]
    about: dict[str, str | int] = {}
    for case in CASES:
        if cases not in str(case):
            continue
        print(f"measuring {case}", file=sys.stderr, flush=True)
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            table = process.submit(measure, load(case), **options).result()
        if out is not None:
            table.save(out / f"{case}.json")
        about = dict(table.device)
        rows += [row(case, table, size) for size in table.batches]
    print(f"{about}, numpy {np.__version__}\n")
    print("\n".join(rows))


if __name__ == "__main__":
    typer.run(main)
