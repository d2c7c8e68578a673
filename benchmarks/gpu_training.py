"""Measure local training on a GPU: mixed subnets at batch 64 against the bare loop at batch 512.

    python benchmarks/gpu_training.py                     # a GPU, resnet10-26, the paper's round
    python benchmarks/gpu_training.py --device cpu --small  # the same code on a CPU, in a minute

What runs: :mod:`bench.gpu`. It needs torch and numpy, and neither Flower nor Ray.
"""

from typing import Annotated

import torch
import typer

from bench.gpu import PAPER, SMALL, train_mixed
from bench.machine import describe


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
    small: Annotated[bool, typer.Option(help="resnet-tiny and few images")] = False,
) -> None:
    """Check, measure and print Markdown."""
    where, work = torch.device(device), SMALL if small else PAPER
    if where.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: --device cpu --small runs the same code on the CPU")
    if where.type == "cpu":
        torch.set_num_threads(1)
    print(describe({"work": work}))
    print(
        "| format | clients at once | images/s | ÷ bare loop | its images/s | a round, s | "
        "its floor, s | matrix product, Tops/s |\n|---|---|---|---|---|---|---|---|"
    )
    for row in train_mixed(work, where):
        print(
            f"| {row.precision} | {row.at_once} | {row.speed:,.0f} | {row.speed / row.bare:.2f} | "
            f"{row.bare:,.0f} | {row.seconds:.2f} | {row.floor:.2f} | {row.matmul / 1e12:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
