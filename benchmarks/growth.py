"""Measure how the server's work grows: with the nodes known, the replies, the supernet.

    python benchmarks/growth.py

How: :mod:`bench.growth`.
"""

from typing import Annotated

import torch
import typer

from bench.growth import IMAGES, by_nodes, by_replies, spaces, training_seconds
from bench.machine import describe


def main(
    count: Annotated[int, typer.Option("--rounds", help="Of every row of the second table.")] = 12,
    turns: Annotated[int, typer.Option(help="With eight replies; fewer with more.")] = 24,
) -> None:
    """Measure and print Markdown."""
    torch.set_num_threads(1)
    print(describe({"space of the second table": "resnet-tiny, 32×32, 10 classes"}))
    print("| supernet, M | replies | cut out, ms | check, average, ms | ms a reply | GB/s | peak |")
    print("|---|---|---|---|---|---|---|")
    for space in spaces():
        for row in by_replies(space, turns):
            print(
                f"| {row.numbers / 1e6:.1f} | {row.replies} | {1e3 * row.out:,.1f} | "
                f"{1e3 * row.back:,.1f} | {1e3 * row.each:.2f} | "
                f"{row.moved / (row.out + row.back) / 1e9:.1f} | "
                f"{row.peak / 4 / row.numbers:.2f} |",
                flush=True,
            )
    training = training_seconds(spaces()[0])
    print(f"\nA client needs {1e3 * training:.0f} ms for {IMAGES} images.\n")
    print("| nodes known | clients | empty round, ms | bookkeeping, ms | 100 | 500 images |")
    print("|---|---|---|---|---|---|")
    for known in by_nodes(count):
        few, many = (known.share(n * training) for n in (1, 5))
        print(
            f"| {known.nodes:,} | {known.sampled} | {1e3 * known.round:.1f} | "
            f"{1e3 * known.books:.2f} | {few:.2%} | {many:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
