"""Measure a client's local training against a bare PyTorch loop, and augmentation against PIL.

    python benchmarks/local_training.py

The bare loop is what one writes by hand for this subnet: the same batches, already augmented and
normalised, forward, backward, clipping, SGD. The client's loop is ``client.training.train`` as
nodes run it, with the drawing of batches and their augmentation. Both start from the same weights
and train the same images, in turns, in one process; ratios are taken within a turn. A pipeline of
PIL images, one image at a time as torchvision's transforms do it, is timed on the same pictures.
"""

import copy
import functools
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from hardware import describe
from torch import nn
from torch.nn import functional

from client.training import batch_indices, train
from data import Augment, Dataset, Split, augmented_batch
from nas.ladder import ladder
from supernet import Architecture, SearchSpace, extract, load_space
from supernet.streams import Purpose, torch_stream
from supernet.wire import LocalTraining

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def pictures(count: int, size: int, channels: int) -> Dataset:
    """Return random images: their content does not change what is timed."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, size, size), np.uint8))
    split = Split(images, torch.from_numpy(rng.integers(0, 10, count)))
    none = Split(images[:0], split.labels[:0])
    return Dataset(
        "random",
        split,
        none,
        none,
        tuple(map(str, range(10))),
        MEAN[:channels],
        STD[:channels],
        None,
    )


def bare(
    module: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], local: LocalTraining
) -> None:
    """Train on batches that are ready."""
    parameters = list(module.parameters())
    optimiser = torch.optim.SGD(parameters, lr=local.lr, momentum=local.momentum)
    module.train()
    for images, labels in batches:
        loss = functional.cross_entropy(module(images), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, local.clip_norm)
        optimiser.step()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    space: SearchSpace, arch: Architecture, data: Dataset, augment: Augment, turns: int, batch: int
) -> tuple[float, float, float]:
    """Return images/s of the bare loop and of the client's, and the median of their ratios."""
    local = LocalTraining(lr=0.01, local_epochs=1, batch_size=batch)
    order = torch_stream(0, Purpose.LOCAL_ORDER, round=1, name="0")
    draws = torch_stream(0, Purpose.AUGMENT, round=1, name="0")
    batches = [
        (
            augmented_batch(data.train.images[rows], augment, data.mean, data.std, draws),
            data.train.labels[rows],
        )
        for rows in batch_indices(len(data.train), local, order, merge_single=False)
    ]
    fresh = space.build(arch)
    fresh.load_state_dict(extract(space.init(0), space.boxes(arch)))

    def ours(module: nn.Module) -> None:
        train(module, data, augment, local, seed=0, round=1, name="0")

    rates: list[tuple[float, float]] = []
    for turn in range(turns + 1):
        times = {}
        loops = {"bare": lambda module: bare(module, batches, local), "ours": ours}
        for which in sorted(loops, reverse=bool(turn % 2)):
            module = copy.deepcopy(fresh)
            times[which] = seconds(functools.partial(loops[which], module))
        rates.append((len(data.train) / times["bare"], len(data.train) / times["ours"]))
    steady = rates[1:]
    return (
        statistics.median(row[0] for row in steady),
        statistics.median(row[1] for row in steady),
        statistics.median(row[1] / row[0] for row in steady),
    )


def pil_rate(data: Dataset, augment: Augment) -> float:
    """Return images/s of crop, flip, tensor, normalise and Cutout, one PIL image at a time."""
    from torchvision import transforms

    size = data.image_size
    steps = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=augment.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    convert = transforms.ToPILImage()
    images = [convert(image) for image in data.train.images]
    rng = np.random.default_rng(0)

    def run() -> None:
        done = []
        for image in images:
            tensor = steps(image)
            row, column = rng.integers(0, size, 2)
            half = augment.cutout // 2
            tensor[:, max(0, row - half) : row + half, max(0, column - half) : column + half] = 0
            done.append(tensor)
        torch.stack(done)

    run()
    return len(images) / statistics.median(seconds(run) for _ in range(3))


def tensor_rate(data: Dataset, augment: Augment, batch: int) -> float:
    """Return images/s of the same in batches of tensors."""
    draws = torch.Generator().manual_seed(0)

    def run() -> None:
        for start in range(0, len(data.train), batch):
            rows = data.train.images[start : start + batch]
            augmented_batch(rows, augment, data.mean, data.std, draws)

    run()
    return len(data.train) / statistics.median(seconds(run) for _ in range(5))


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
        space = load_space(
            name, num_classes=10, in_channels=channels, image_size=size, norm="group"
        )
        data = pictures(count, size, channels)
        recipes = {"none": Augment()}
        if size == 32:
            recipes["crop, flip, Cutout"] = Augment(4, True, 16)
        rungs = ladder(space, 5)
        for rung in ("smallest", "largest"):
            for said, augment in recipes.items():
                plain, client, ratio = compare(space, rungs[rung], data, augment, turns, batch)
                print(
                    f"| {name}, {size}×{size} | {rung} | {batch} | {said} | {plain:,.0f} | "
                    f"{client:,.0f} | {ratio:.3f} |",
                    flush=True,
                )
    data, recipe = pictures(2000, 32, 3), Augment(4, True, 16)
    pil = pil_rate(data, recipe)
    print("\n| crop, flip, normalise, Cutout | images/s | ÷ PIL |\n|---|---|---|")
    print(f"| PIL, one image at a time | {pil:,.0f} | 1 |")
    for batch in (16, 64, 256):
        rate = tensor_rate(data, recipe, batch)
        print(f"| tensors, batches of {batch} | {rate:,.0f} | {rate / pil:.1f} |")


if __name__ == "__main__":
    typer.run(main)
