"""Measure a client's local training against a bare PyTorch loop, and augmentation against PIL.

    python benchmarks/local_training.py

What is compared: :mod:`bench.loops`.
"""

import statistics
from typing import Annotated

import torch
import typer

from bench.figures import faster
from bench.loops import RECIPE, Task, compare, pictures, pil_rate, tensor_rate
from bench.machine import describe
from data import Augment


def main(
    turns: Annotated[int, typer.Option(help="Of every comparison.")] = 7,
    images: Annotated[int, typer.Option(help="A turn, for the small space.")] = 640,
    threads: Annotated[int, typer.Option(help="Of torch; a node's default is 1.")] = 1,
) -> None:
    """Measure and print Markdown."""
    torch.set_num_threads(threads)
    print(describe({"turns": turns}))
    print("| space | subnet | batch | augmentation | bare, images/s | client, images/s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, size, channels, batch, count in (
        ("resnet-tiny", 8, 1, 16, images),
        ("resnet-tiny", 32, 3, 16, images // 4),
        ("resnet10-26", 32, 3, 32, 32),
    ):
        recipes = {"none": Augment()}
        if size == 32:
            recipes["crop, flip, Cutout"] = RECIPE
        for rung in ("smallest", "largest"):
            for said, augment in recipes.items():
                task = Task(name, rung, size, channels, batch, count, augment)
                taken = compare(task, turns)
                plain, client = (count / statistics.median(taken[w]) for w in ("bare", "client"))
                print(
                    f"| {name}, {size}×{size} | {rung} | {batch} | {said} | {plain:,.0f} | "
                    f"{client:,.0f} | {faster(taken['client'], taken['bare']):.3f} |",
                    flush=True,
                )
    data = pictures(2000, 32, 3)
    pil = pil_rate(data, RECIPE)
    print("\n| crop, flip, normalise, Cutout | images/s | ÷ PIL |\n|---|---|---|")
    print(f"| PIL, one image at a time | {pil:,.0f} | 1 |")
    for batch in (16, 64, 256):
        rate = tensor_rate(data, RECIPE, batch)
        print(f"| tensors, batches of {batch} | {rate:,.0f} | {rate / pil:.1f} |")


if __name__ == "__main__":
    typer.run(main)
