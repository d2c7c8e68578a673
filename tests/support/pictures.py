"""Images as networks read them, and scores of networks in one number."""

from typing import Any

import numpy as np
import torch

from superfednas.data import Dataset, Split
from superfednas.tasks import Inputs, Tally
from superfednas.tasks.images import ACCURACY, LOSS, Images


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Scale uint8 pixels (B, C, H, W) to ``(pixel / 255 - mean) / std``."""
    task = Images(2, images.shape[1], images.shape[2], mean=mean, std=std)
    return task.inputs["images"].prepare(images)


def read(data: Dataset, split: Split) -> torch.Tensor:
    """Return the images of a split as networks read them."""
    every = slice(None)
    (images,), _ = data.task.batch(split.fields, split.targets, every, torch.device("cpu"))
    return images


def right(examples: int, correct: float, loss: float) -> Tally:
    """Return a tally of images: right answers, and the mean loss."""
    return Tally(examples, {ACCURACY.name: correct, LOSS.name: loss * examples})


def accuracy(found: Tally) -> float:
    """Return the share of right answers."""
    return found.value(ACCURACY)


def blank(*shape: int) -> Inputs:
    """Return two examples of a shape, on the meta device."""
    return (torch.empty(2, *shape, device="meta"),)


def pictured(images: torch.Tensor, labels: torch.Tensor) -> Split:
    """Return a split of images and labels."""
    return Split({"images": images}, {"labels": labels})


def picture_set(
    name: str,
    train: Split,
    validation: Split,
    test: Split,
    classes: tuple[str, ...],
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.25,),
    ids: np.ndarray | None = None,
) -> Dataset:
    """Return a data set of images."""
    task = Images.of(train.fields["images"], classes, mean, std)
    return Dataset(name, task, train, validation, test, ids)


def sent(rows: Any, examples: Any) -> Any:
    """Turn rows of (index, share of right answers, mean loss) into what a client sends of them.

    What is no such row stays as it is.
    """
    if not isinstance(rows, list | tuple):
        return rows
    count = examples if isinstance(examples, int | float) else 1
    return [
        [row[0], {ACCURACY.name: row[1] * count, LOSS.name: row[2] * count}]
        if isinstance(row, list | tuple) and len(row) == 3 and not isinstance(row[1], str)
        else row
        for row in rows
    ]
