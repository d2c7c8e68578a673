"""Measure what counting and searching cost, each against what it takes the place of.

    python benchmarks/search_cost.py

- ``macs`` and ``params`` in closed form against reading the module on torch's meta device
  (:func:`supernet.space.count_macs`), which gives the same number.
- The exact search over all networks of a space against predicting one network after the other with
  the same regression (256 are timed; the rest is that times their number).
- A prediction against measuring the same network on a few images.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from hardware import describe
from local_training import pictures

from nas.accuracy import score
from nas.costs import Costs
from nas.regression import Regression
from nas.search import search
from supernet import extract, load_space
from supernet.space import count_macs


def rate(call: Callable[[], object], least: float = 0.2) -> float:
    """Return the median calls a second of five stretches."""
    call()
    rates = []
    for _ in range(5):
        start, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < least:
            call()
            count += 1
        rates.append(count / passed)
    return statistics.median(rates)


def row(space: str, what: str, figure: float, other: str, reference: float) -> None:
    """Print one line of the table."""
    print(
        f"| {space} | {what} | {figure:,.4g} | {other} | {reference:,.3g} | "
        f"{figure / reference:,.0f} |",
        flush=True,
    )


def main(
    spaces: Annotated[str, typer.Option(help="comma-separated")] = "resnet-tiny,resnet10-26",
) -> None:
    """Measure and print Markdown."""
    torch.set_num_threads(1)
    print(describe())
    print("| space | what | a second | in place of | a second | ratio |")
    print("|---|---|---|---|---|---|")
    for name in spaces.split(","):
        space = load_space(name, num_classes=10, in_channels=3, image_size=32)
        rng = np.random.default_rng(0)
        archs = [space.sample(rng) for _ in range(256)]
        turn = iter(range(10**12))
        closed = rate(lambda: space.macs(archs[next(turn) % 256]))  # noqa: B023
        sizes = rate(lambda: space.params(archs[next(turn) % 256]))  # noqa: B023
        read = rate(lambda: count_macs(space, archs[next(turn) % 256]))  # noqa: B023
        row(name, "`macs`", closed, "reading the module", read)
        row(name, "`params`", sizes, "reading the module", read)
        noise = rng.normal(size=55)
        scores = {
            arch: space.macs(arch) ** 0.1 + n for arch, n in zip(archs[:55], noise, strict=True)
        }
        guess, costs = Regression(space, scores), Costs(space)
        limits = {"macs": space.macs(space.largest) / 2}
        exact = rate(lambda: search(guess, costs, limits))  # noqa: B023
        guesses = rate(lambda: guess(archs)) * len(archs)  # noqa: B023
        row(
            name, f"best of {space.size:,} networks", exact, "predicting each", guesses / space.size
        )
        shown = 360 if space.macs(space.largest) < 1e8 else 32
        data = pictures(shown, 32, 3)
        modules = []
        for arch in archs[:8]:
            modules.append(space.build(arch))
            modules[-1].load_state_dict(extract(space.init(0), space.boxes(arch)))
        images = rate(
            lambda: [score(m, data.train, data.mean, data.std) for m in modules]  # noqa: B023
        )
        row(name, "a prediction", guesses, f"measuring on {shown} images", images * len(modules))


if __name__ == "__main__":
    typer.run(main)
