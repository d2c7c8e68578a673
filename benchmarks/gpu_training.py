"""Measure local training on a GPU: mixed subnets at batch 64 against the bare loop at batch 512.

    python benchmarks/gpu_training.py                     # a GPU, resnet10-26, the paper's round
    python benchmarks/gpu_training.py --device cpu --small  # the same code on a CPU, in a minute

The clients hold the largest, the smallest and six random subnets. **Bare** is a hand-written loop
at batch 512 on a batch that is ready on the device, one subnet after the other. **Clients** is
``client.training.train`` at batch 64 with its drawing and augmentation, one to eight clients at
once, each in a thread and, on a GPU, a stream of its own. **The floor** is 6 × MACs × images over
the rate of a matrix product that is measured in the same call. **The round** is the paper's: 8
clients of 2,500 images, 5 epochs, with cutting out and averaging. First of all, the device is
checked: a few steps there and on the CPU must agree.

It needs torch and numpy, and neither Flower nor Ray.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
import torch
import typer
from hardware import describe
from local_training import bare, pictures

from client.training import train
from data import Augment, Dataset
from server.aggregation import OverlapAverage
from supernet import Architecture, SearchSpace, State, extract, load_space
from supernet.wire import LocalTraining

AUGMENT = Augment(4, True, 16)


def settled(device: torch.device) -> float:
    """Return the time at which all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Return how long a call takes on a device."""
    start = settled(device)
    call()
    return settled(device) - start


def matmul_rate(device: torch.device, side: int) -> float:
    """Return the operations a second of a float32 matrix product, the best of five."""
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    a @ b
    return 2 * side**3 / min(seconds(device, lambda: a @ b) for _ in range(5))


def check(space: SearchSpace, state: State, data: Dataset, device: torch.device) -> None:
    """Train a few steps here and on the device; the weights must agree."""
    local = LocalTraining(lr=0.01, local_steps=3, batch_size=16)
    found = []
    for where in (torch.device("cpu"), device):
        module = space.build(space.smallest)
        module.load_state_dict(extract(state, space.boxes(space.smallest)))
        train(module.to(where), data, AUGMENT, local, seed=0, round=1, name="0")
        found.append({name: tensor.cpu() for name, tensor in module.state_dict().items()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)


def bare_rate(
    space: SearchSpace, archs: Sequence[Architecture], device: torch.device, batch: int, steps: int
) -> float:
    """Return images/s of the bare loop, one subnet after the other."""
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    total = 0.0
    for arch in archs:
        module = space.build(arch)
        module.load_state_dict(extract(space.init(0), space.boxes(arch)))
        module.to(device)
        local = LocalTraining(lr=0.01)
        bare(module, [(images, labels)], local)
        start = settled(device)
        bare(module, [(images, labels)] * steps, local)
        total += settled(device) - start
    return len(archs) * steps * batch / total


def one_round(
    space: SearchSpace,
    state: State,
    archs: Sequence[Architecture],
    data: Dataset,
    local: LocalTraining,
    device: torch.device,
    at_once: int,
) -> None:
    """Cut out, train and average, so many clients at once."""

    def client(number: int) -> State:
        stream = (
            torch.cuda.stream(torch.cuda.Stream(device))
            if device.type == "cuda"
            else contextlib.nullcontext()
        )
        with stream:
            module = space.build(archs[number])
            module.load_state_dict(extract(state, space.boxes(archs[number])))
            train(module.to(device), data, AUGMENT, local, seed=0, round=1, name=str(number))
            return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}

    average = OverlapAverage(state)
    with ThreadPoolExecutor(at_once) as pool:
        for number, update in enumerate(pool.map(client, range(len(archs)))):
            average.add(update, 1.0, space.boxes(archs[number]))
    average.result()


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
    small: Annotated[bool, typer.Option(help="resnet-tiny and few images")] = False,
) -> None:
    """Check, measure and print Markdown."""
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: --device cpu --small runs the same code on the CPU")
    if where.type == "cpu":
        torch.set_num_threads(1)
    name = "resnet-tiny" if small else "resnet10-26"
    space = load_space(name, num_classes=10, in_channels=3, image_size=32)
    images, epochs, large, steps = (128, 1, 64, 2) if small else (2500, 5, 512, 10)
    rng, state, data = np.random.default_rng(0), space.init(0), pictures(images, 32, 3)
    archs = [space.largest, space.smallest, *(space.sample(rng) for _ in range(6))]
    print(describe({"space": name, "images a client": images, "epochs of the round": epochs}))
    check(space, state, data, where)
    rate = matmul_rate(where, 1024 if where.type == "cpu" else 8192)
    reference = bare_rate(space, archs, where, large, steps)
    print(
        f"Matrix product: {rate / 1e12:.3f} Tops/s. Bare loop, batch {large}: {reference:,.0f}/s.\n"
    )
    print("| clients at once | images/s | ÷ bare loop | a round, s | its floor, s |")
    print("|---|---|---|---|---|")
    macs = sum(space.macs(arch) for arch in archs)
    floor = 6 * macs * images * epochs / rate
    local = LocalTraining(lr=0.01, local_epochs=epochs, batch_size=64)
    for at_once in (1, 2, 4, 8):
        start = settled(where)
        one_round(space, state, archs, data, local, where, at_once)
        taken = settled(where) - start
        speed = len(archs) * images * epochs / taken
        print(
            f"| {at_once} | {speed:,.0f} | {speed / reference:.2f} | {taken:.2f} | {floor:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
