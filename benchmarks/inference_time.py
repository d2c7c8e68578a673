"""Compare inference times: random subnets of a space with subnets that differ in width alone.

    python benchmarks/inference_time.py --space mobilenetv1 --out inference-time.png

Figure 6 of Kim and Yun (FedSup): box plots of the time an image takes, of random subnets of all
elastic dimensions, and of what HeteroFL and FjORD train, width levels at full depth and kernels.
Each subnet is timed in turns with the others; its fastest turn counts, since disturbances only ever
add time. The width levels are timed as often as there are random subnets, so that both boxes hold
the same number of measurements.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from superfednas.bench.machine import describe
from superfednas.nas.score.tallies import prepare
from superfednas.report.canvas import LIGHT, head, new_figure, plain, png
from superfednas.supernet import Architecture, SearchSpace, extract, load_space
from superfednas.supernet.memory_format import layout_of


def milliseconds(
    space: SearchSpace, archs: list[Architecture], batch: int, turns: int
) -> list[float]:
    """Return the milliseconds an image of each subnet, on this machine's CPU, one thread."""
    state = space.init(0)
    images = torch.rand(batch, space.in_channels, space.image_size, space.image_size)
    modules = []
    for arch in archs:
        module = space.build(arch)
        module.load_state_dict(extract(state, space.boxes(arch)))
        prepare(module, None)
        modules.append(module.to(memory_format=layout_of(module)))
    fastest = [float("inf")] * len(archs)
    with torch.inference_mode():
        for turn in range(turns + 1):  # the first warms up
            for number, module in enumerate(modules):
                given = images.contiguous(memory_format=layout_of(module))
                started = time.perf_counter()
                module(given)
                took = time.perf_counter() - started
                if turn:
                    fastest[number] = min(fastest[number], took)
    return [1e3 * took / batch for took in fastest]


def main(
    space: Annotated[str, typer.Option(help="a space of elastic output widths")] = "mobilenetv1",
    subnets: Annotated[int, typer.Option(help="random subnets")] = 100,
    batch: Annotated[int, typer.Option(help="images a call")] = 16,
    turns: Annotated[int, typer.Option(help="times that each is timed")] = 5,
    out: Annotated[Path, typer.Option(help="the plot")] = Path("inference-time.png"),
) -> None:
    """Time subnets, print quartiles and draw the boxes."""
    torch.set_num_threads(1)
    of, rng = load_space(space), np.random.default_rng(0)
    levels = [of.at_width(share) for share in of.width_shares]
    kinds = {
        "all dimensions\n(FedSup, MaxNet)": [of.sample(rng) for _ in range(subnets)],
        "width levels\n(HeteroFL, FjORD)": [levels[n % len(levels)] for n in range(subnets)],
    }
    times = {kind: milliseconds(of, archs, batch, turns) for kind, archs in kinds.items()}
    print(f"{describe()}\n\n| subnets of `{space}` | 25% | median | 75% | least | most |")
    print("|---|---|---|---|---|---|")
    for kind, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        cells = " | ".join(f"{t:.2f}" for t in (low, middle, high, min(found), max(found)))
        print(f"| {' '.join(kind.split())} | {cells} |")
    figure = new_figure(LIGHT, height=4.2)
    axes = figure.subplots()
    plain(axes, LIGHT)
    under = f"{subnets} of either kind, batch {batch}, one thread; boxes: quartiles"
    head(axes, f"{space}: inference time of an image", under, LIGHT)
    axes.boxplot(list(times.values()), tick_labels=list(times), widths=0.4)
    axes.set_ylabel("milliseconds an image")
    out.write_bytes(png(figure))
    print(f"\n{out}")


if __name__ == "__main__":
    typer.run(main)
