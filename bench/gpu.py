"""Local training on a GPU: mixed subnets at batch 64 against the bare loop at batch 512.

The clients hold the largest, the smallest and six random subnets. **Bare** is a hand-written loop
at batch 512 on a batch that is ready on the device, one subnet after the other, in the clients'
precision. **Clients** is
``superfednas.client.training.train`` at batch 64 with its drawing and augmentation, one to eight
clients at once, each in a thread and, on a GPU, a stream of its own. **The floor** is 6 × MACs ×
images over the rate of a matrix product that is measured in the same call. **The round** is the
paper's: 8 clients of 2,500 images, 5 epochs, with cutting out and averaging. First of all, the
device is checked: a few steps there and on the CPU must agree.

It needs torch and numpy, and neither Flower nor Ray.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from superfednas.bench.figures import Effort, Figure
from superfednas.bench.loops import bare, pictures
from superfednas.client.device import own_stream
from superfednas.client.training import train
from superfednas.data import Dataset
from superfednas.server.average.overlap import OverlapAverage
from superfednas.supernet import Architecture, SearchSpace, State, extract, load_space
from superfednas.wire.order import PRECISIONS, LocalTraining


def settled(device: torch.device) -> float:
    """Return the time at which a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Return how long a call takes on a device."""
    start = settled(device)
    call()
    return settled(device) - start


def matmul_rate(device: torch.device, side: int, precision: str) -> float:
    """Return the operations a second of a matrix product, the best of five.

    In float32 with the shorter mantissa (TF32) that convolutions have on a GPU by default.
    """
    number = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=number) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        a @ b
        return 2 * side**3 / min(seconds(device, lambda: a @ b) for _ in range(5))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def check(space: SearchSpace, state: State, data: Dataset, device: torch.device) -> None:
    """Train a few steps here and on the device; the weights must agree."""
    local = LocalTraining(lr=0.01, local_steps=3, batch_size=16)
    found = []
    for where in (torch.device("cpu"), device):
        module = space.build(space.smallest)
        module.load_state_dict(extract(state, space.boxes(space.smallest)))
        # Without TF32, whose ten bits are not the CPU's.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            train(module.to(where), data, local, seed=0, round=1, name="0")
        found.append({name: tensor.cpu() for name, tensor in module.state_dict().items()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)


def bare_rate(
    space: SearchSpace,
    archs: Sequence[Architecture],
    device: torch.device,
    work: "Work",
    precision: str,
) -> float:
    """Return images/s of the bare loop, one subnet after the other."""
    layout = torch.channels_last if precision == "bfloat16" else torch.contiguous_format
    images = torch.randn(work.large, 3, 32, 32, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (work.large,), device=device)
    total = 0.0
    for arch in archs:
        module = space.build(arch)
        module.load_state_dict(extract(space.init(0), space.boxes(arch)))
        module.to(device).to(memory_format=layout)
        local = LocalTraining(lr=0.01)
        bare(module, [(images, labels)], local, precision)
        start = settled(device)
        bare(module, [(images, labels)] * work.steps, local, precision)
        total += settled(device) - start
    return len(archs) * work.steps * work.large / total


def one_round(
    space: SearchSpace,
    state: State,
    archs: Sequence[Architecture],
    data: Dataset,
    local: LocalTraining,
    device: torch.device,
    at_once: int,
    precision: str,
) -> None:
    """Extract, train and average, with this many clients at the same time."""
    given: dict[str, Any] = {"seed": 0, "round": 1, "precision": precision}

    def client(number: int) -> State:
        with own_stream(device):
            module = space.build(archs[number])
            module.load_state_dict(extract(state, space.boxes(archs[number])))
            train(module.to(device), data, local, name=str(number), **given)
            return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}

    average = OverlapAverage(state)
    with ThreadPoolExecutor(at_once) as pool:
        for number, update in enumerate(pool.map(client, range(len(archs)))):
            average.add(update, 1.0, space.boxes(archs[number]))
    average.result()


@dataclass(frozen=True)
class Work:
    """How much is trained: ``epochs`` of ``images`` a client; the bare loop's batch and steps."""

    space: str
    images: int
    epochs: int
    large: int
    steps: int


PAPER = Work("resnet10-26", 2500, 5, 512, 10)
SMALL = Work("resnet-tiny", 128, 1, 64, 2)
AT_ONCE = (1, 2, 4, 8)


@dataclass(frozen=True)
class Trained:
    """One round with so many clients at once: seconds, their floor, images/s, the bare loop's."""

    precision: str
    at_once: int
    seconds: float
    floor: float
    speed: float
    bare: float
    matmul: float


def train_mixed(work: Work, device: torch.device) -> Iterator[Trained]:
    """Check the device, then train a round with one to eight clients at once, in both formats.

    On the CPU in float32 only, as clients do there.
    """
    space = load_space(work.space)
    rng, state, data = np.random.default_rng(0), space.init(0), pictures(work.images, 32, 3)
    archs = [space.largest, space.smallest, *(space.sample(rng) for _ in range(6))]
    check(space, state, data, device)
    trained = len(archs) * work.images * work.epochs
    local = LocalTraining(lr=0.01, local_epochs=work.epochs, batch_size=64)
    for precision in PRECISIONS if device.type == "cuda" else PRECISIONS[:1]:
        matmul = matmul_rate(device, 1024 if device.type == "cpu" else 8192, precision)
        reference = bare_rate(space, archs, device, work, precision)
        floor = 6 * sum(map(space.macs, archs)) * work.images * work.epochs / matmul
        for at_once in AT_ONCE:
            start = settled(device)
            one_round(space, state, archs, data, local, device, at_once, precision)
            taken = settled(device) - start
            yield Trained(precision, at_once, taken, floor, trained / taken, reference, matmul)


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure local training on the GPU, where there is one."""
    work = PAPER if effort == "full" else SMALL
    clients = f"8 clients of {work.images:,} images, {work.epochs} × each, `{work.space}`"
    against = f"the bare loop at batch {work.large}, one subnet after the other"
    if not torch.cuda.is_available():
        none = "not measured: no GPU"
        yield Figure("gpu", f"{clients}, batch 64, on a GPU", against, None, none, "", 0.5)
        return
    best = max(train_mixed(work, torch.device("cuda")), key=lambda row: row.speed)
    yield Figure(
        "gpu",
        f"{clients}, batch 64, on a GPU, {best.at_once} at once, {best.precision}",
        against,
        best.speed / best.bare,
        f"{best.speed:,.0f} images/s",
        f"{best.bare:,.0f} images/s",
        0.5,
    )
    yield Figure(
        "gpu",
        f"a round of {clients}, with cutting out and averaging",
        "6 × MACs × images over a matrix product's rate",
        best.floor / best.seconds,
        f"{best.seconds:.2f} s",
        f"{best.floor:.2f} s",
    )
