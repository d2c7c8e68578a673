"""A client's local training against a bare PyTorch loop, and augmentation against PIL.

The bare loop is what one writes by hand for this subnet: the same batches, already augmented and
normalised, forward, backward, clipping, SGD. The client's loop is
``superfednas.client.training.train`` as nodes run it, with the drawing of batches and their
augmentation. Both start from the same weights and train the same images, in turns, in one process;
ratios are taken within a turn. A pipeline of PIL images, one image at a time as torchvision's
transforms do it, is timed on the same pictures.
"""

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from superfednas.bench.figures import Effort, Figure, faster, in_turns, torch_threads
from superfednas.client.training import batch_indices, train
from superfednas.common.streams import Purpose, torch_stream
from superfednas.data import Dataset, Split
from superfednas.supernet import Architecture, SearchSpace, extract, load_space
from superfednas.supernet.ladder import ladder
from superfednas.tasks import Inputs
from superfednas.tasks.images import Augment, Images
from superfednas.tasks.task import Tensors
from superfednas.wire.order import LocalTraining

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
RECIPE = Augment(4, True, 16)


def pictures(count: int, size: int, channels: int, augment: Augment = RECIPE) -> Dataset:
    """Return random images: their content does not change what is timed."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, size, size), np.uint8))
    split = Split({"images": images}, {"labels": torch.from_numpy(rng.integers(0, 10, count))})
    task = Images(10, channels, size, mean=MEAN[:channels], std=STD[:channels], augment=augment)
    return Dataset("random", task, split, split.first(0), split.first(0))


def bare(
    module: nn.Module,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    local: LocalTraining,
    precision: str = "float32",
) -> None:
    """Train on batches that are ready; with ``bfloat16`` under autocast."""
    device, fast = batches[0][0].device.type, precision == "bfloat16"
    parameters = list(module.parameters())
    optimiser = torch.optim.SGD(parameters, lr=local.lr, momentum=local.momentum)
    module.train()
    for images, labels in batches:
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            outputs = module(images)
        loss = functional.cross_entropy(outputs.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, local.clip_norm)
        optimiser.step()


@dataclass(frozen=True)
class Task:
    """What is trained: a rung of a space's ladder, so many images of a size, a recipe."""

    space: str
    rung: str
    size: int
    channels: int
    batch: int
    images: int
    augment: Augment

    @property
    def text(self) -> str:
        """Name it."""
        recipe = ", augmented" if self.augment != Augment() else ""
        return f"{self.rung} of `{self.space}`, {self.size}×{self.size}, batch {self.batch}{recipe}"

    def parts(self) -> tuple[SearchSpace, Architecture, Dataset]:
        """Return the space, the architecture and random images."""
        space = load_space(self.space, in_channels=self.channels, image_size=self.size)
        arch = ladder(space, 5)[self.rung]
        return space, arch, pictures(self.images, self.size, self.channels, self.augment)


def compare(task: Task, turns: int) -> dict[str, list[float]]:
    """Return the seconds of every turn, of the bare loop and of the client's."""
    space, arch, data = task.parts()
    local = LocalTraining(lr=0.01, local_epochs=1, batch_size=task.batch)
    order = torch_stream(0, Purpose.LOCAL_ORDER, round=1, name="0")
    draws = torch_stream(0, Purpose.AUGMENT, round=1, name="0")
    batches = [
        (read, targets["labels"])
        for rows in batch_indices(len(data.train), local, order, merge_single=False)
        for (read,), targets in [augmented(data, rows, draws)]
    ]
    fresh = space.build(arch)
    fresh.load_state_dict(extract(space.init(0), space.boxes(arch)))
    module = copy.deepcopy(fresh)
    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(module, batches, local),
        "client": lambda: train(module, data, local, seed=0, round=1, name="0"),
    }
    return in_turns(ways, turns, ready=lambda: module.load_state_dict(fresh.state_dict()))


def augmented(
    data: Dataset, rows: torch.Tensor | slice, draws: torch.Generator
) -> tuple[Inputs, Tensors]:
    """Return some rows as training takes them."""
    split = data.train
    return data.task.batch(split.fields, split.targets, rows, torch.device("cpu"), draws)


def pil_rate(data: Dataset) -> float:
    """Return images/s of crop, flip, tensor, normalise and Cutout, one PIL image at a time."""
    from torchvision import transforms

    task = data.task
    assert isinstance(task, Images)
    augment, pixels = task.augment, data.train.fields["images"]
    size = pixels.shape[-1]
    steps = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=augment.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    convert = transforms.ToPILImage()
    images = [convert(image) for image in pixels]
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

    return len(images) / statistics.median(in_turns({"": run}, 3)[""])


def tensor_rate(data: Dataset, batch: int) -> float:
    """Return images/s of the same in batches of tensors."""
    draws = torch.Generator().manual_seed(0)

    def run() -> None:
        for start in range(0, len(data.train), batch):
            augmented(data, slice(start, start + batch), draws)

    return len(data.train) / statistics.median(in_turns({"": run}, 5)[""])


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure local training and augmentation."""
    tasks = [
        Task("resnet-tiny", "smallest", 8, 1, 16, 640, Augment()),
        Task("resnet-tiny", "largest", 32, 3, 16, 160, RECIPE),
        Task("resnet10-26", "largest", 32, 3, 32, 32, RECIPE),
    ]
    turns = {"quick": 1, "normal": 5, "full": 9}[effort]
    with torch_threads(1):  # a node's default
        for task in tasks[: 1 if effort == "quick" else None]:
            # The paper's largest subnet needs eight seconds for a turn.
            taken = compare(task, turns if task.space == "resnet-tiny" else (turns + 1) // 2)
            ratio = faster(taken["client"], taken["bare"])
            ours, other = (task.images / statistics.median(taken[w]) for w in ("client", "bare"))
            yield Figure(
                "training",
                f"a client's training loop, {task.text}",
                "a bare PyTorch loop on ready batches",
                ratio,
                images_a_second(ours),
                images_a_second(other),
                None if effort == "quick" else 0.95,
            )
        data = pictures(200 if effort == "quick" else 2000, 32, 3)
        pil, tensors = pil_rate(data), tensor_rate(data, 64)
    yield Figure(
        "training",
        "crop, flip, normalise, Cutout of 32×32 images, batches of 64",
        "the same with PIL and torchvision, one by one",
        tensors / pil,
        f"{tensors:,.0f} images/s",
        f"{pil:,.0f} images/s",
        20,
    )


def images_a_second(rate: float) -> str:
    """Return a rate as text."""
    return f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2f} images/s"
