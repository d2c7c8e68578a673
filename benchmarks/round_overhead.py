"""Measure what a round costs beside the clients' work, in one process, by cause.

    python benchmarks/round_overhead.py

How: :mod:`bench.rounds`.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.machine import describe
from bench.rounds import copy_seconds, rounds


def main(
    space: Annotated[str, typer.Option()] = "resnet-tiny",
    clients: Annotated[int, typer.Option(help="A round.")] = 8,
    count: Annotated[int, typer.Option("--rounds")] = 40,
) -> None:
    """Measure and print Markdown."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        total, causes, moved = rounds(max(10, clients), clients, space, count, Path(folder) / "run")
    print(f"{space}, {clients} empty clients a round, median of {count} rounds\n")
    print("| cause | ms |\n|---|---|")
    for cause, seconds in causes.items():
        print(f"| {cause} | {1e3 * seconds:.2f} |")
    print(f"| the rest | {1e3 * (total - sum(causes.values())):.2f} |")
    print(f"| **the round** (allowed: {10 + 2 * clients}) | {1e3 * total:.2f} |")
    warm = 1e3 * copy_seconds(moved)
    print(f"| a copy of the same {moved / 1e6:.1f} MB on warm buffers | {warm:.2f} |")


if __name__ == "__main__":
    typer.run(main)
