"""Measure a simulated round (Ray) against a bare Flower app that sends arrays of the same size.

    python benchmarks/ray_overhead.py

What runs: :mod:`bench.simulated`.
"""

import statistics
from typing import Annotated

import typer

from bench.machine import describe
from bench.simulated import NODES, OURS, WAYS, rounds


def main(
    space: Annotated[str, typer.Option()] = "resnet-tiny",
    clients: Annotated[int, typer.Option(help="A round.")] = 8,
    count: Annotated[int, typer.Option("--rounds")] = 15,
    turns: Annotated[int, typer.Option()] = 3,
) -> None:
    """Measure and print Markdown."""
    print(describe({"nodes": NODES, "clients a round": clients, "space": space, "rounds": count}))
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns):
        for name in WAYS if turn % 2 == 0 else reversed(WAYS):
            found[name].append(rounds(name, space, clients, count))
    print("| way | ms a round, median | of every turn | ours ÷ it |\n|---|---|---|---|")
    ours = statistics.median(found[OURS])
    for name, values in found.items():
        each = ", ".join(f"{1e3 * value:,.0f}" for value in values)
        middle = statistics.median(values)
        print(f"| {name} | {1e3 * middle:,.0f} | {each} | {ours / middle:.2f} |")


if __name__ == "__main__":
    typer.run(main)
