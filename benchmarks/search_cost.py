"""Measure what counting and searching cost, each against what it takes the place of.

    python benchmarks/search_cost.py

What is measured: :mod:`bench.counting`.
"""

from typing import Annotated

import torch
import typer

from bench.counting import rates
from bench.machine import describe


def main(
    spaces: Annotated[str, typer.Option(help="comma-separated")] = "resnet-tiny,resnet10-26",
) -> None:
    """Measure and print Markdown."""
    torch.set_num_threads(1)
    print(describe())
    print("| what | a second | in place of | a second | ratio |")
    print("|---|---|---|---|---|")
    for name in spaces.split(","):
        for row in rates(name):
            ratio = row.ours / row.other
            print(
                f"| {row.what} | {row.ours:,.4g} | {row.against} | {row.other:,.3g} | "
                f"{ratio:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
