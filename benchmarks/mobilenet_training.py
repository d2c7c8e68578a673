"""Two ratios of local training on MobileNets: the order of images, and several subnets a step.

    python benchmarks/mobilenet_training.py

The first is a training step with images whose channels lie last (what this project does with
depthwise convolutions) against torch's own order. The second is FedSup's step (largest, smallest
and a random subnet on shared weights) against the steps of the same three subnets cut out, their
gradients added up where they belong. Turns alternate, medians of turns, one thread, the CPU.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import torch
import typer

from superfednas.bench.machine import describe
from superfednas.client.objective import Objective
from superfednas.client.shared_weights import SharedWeights
from superfednas.supernet import Architecture, SearchSpace, extract, load_space
from superfednas.supernet.boxes import Cut
from superfednas.wire.order import LocalTraining

LOCAL = LocalTraining()
CASES = [
    ("mobilenetv1-tiny", 8, 1, 16),
    ("mobilenetv1-tiny", 32, 3, 32),
    ("mobilenetv1", 32, 3, 32),
]


def ratio(ours: Callable[[], object], theirs: Callable[[], object], turns: int) -> list[float]:
    """Return milliseconds of both, medians, and how many times as fast ours is."""
    took: list[list[float]] = [[], []]
    for turn in range(turns + 2):  # the first two warm up
        for times, step in zip(took, (ours, theirs), strict=True):
            started = time.perf_counter()
            step()
            if turn > 1:
                times.append(1e3 * (time.perf_counter() - started))
    speeds = [b / a for a, b in zip(*took, strict=True)]
    return [*map(statistics.median, took), statistics.median(speeds)]


def network(space: SearchSpace, arch: Architecture, layout: torch.memory_format) -> torch.nn.Module:
    module = space.build(arch)
    module.load_state_dict(extract(space.init(0), space.boxes(arch)))
    return module.to(memory_format=layout)


def cut_out(space: SearchSpace, archs: list[Architecture], layout: torch.memory_format):
    """Return a step of subnets that are cut out, and added up in the whole."""
    whole = space.shapes(space.largest)
    parts = [
        (Cut(whole, space.boxes(a)), module, Objective(module, LOCAL))
        for a in archs
        for module in [network(space, a, layout)]
    ]
    total = {name: torch.zeros(shape) for name, shape in whole.items()}

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        for tensor in total.values():
            tensor.zero_()
        for cut, module, objective in parts:
            module.zero_grad()
            objective(images, labels)
            for name, parameter in module.named_parameters():
                total[name][cut.slices[name]] += parameter.grad

    return step


def main(turns: Annotated[int, typer.Option(help="turns of each pair")] = 15) -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"{describe()}\n\n| step | ours | against | its | times as fast |\n|---|---|---|---|---|")
    for name, side, channels, batch in CASES:
        for line in case(name, side, channels, batch, turns):
            print(line, flush=True)


def case(name: str, side: int, channels: int, batch: int, turns: int) -> Iterator[str]:
    """Measure both ratios of one space and batch; yield their rows."""
    last, first = torch.channels_last, torch.contiguous_format
    space = load_space(name, image_size=side, in_channels=channels)
    images, labels = torch.rand(batch, channels, side, side), torch.randint(10, (batch,))
    where = f"`{name}`, {side}×{side}, batch {batch}"
    ours, theirs = (Objective(network(space, space.largest, f), LOCAL) for f in (last, first))
    lying = images.contiguous(memory_format=last)
    found = ratio(lambda: ours(lying, labels), lambda: theirs(images, labels), turns)
    yield row(f"the largest of {where}", found, "channels first")

    archs = [space.largest, space.smallest, space.sample(np.random.default_rng(0))]
    whole = network(space, space.largest, last)
    shared = SharedWeights(whole, LOCAL, space, space.largest, lambda: archs)
    apart = cut_out(space, archs, last)

    def together() -> None:
        whole.zero_grad()
        shared(lying, labels)

    found = ratio(together, lambda: apart(lying, labels), turns)
    yield row(f"three subnets of {where}, shared weights", found, "three cut out")


def row(what: str, found: list[float], against: str) -> str:
    ours, theirs, speed = found
    return f"| {what} | {ours:.1f} ms | {against} | {theirs:.1f} ms | {speed:.2f} |"


if __name__ == "__main__":
    typer.run(main)
