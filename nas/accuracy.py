"""Measured accuracy of subnets: cut out, calibrated where the norm needs it, run over a split."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from data import Dataset, Split, normalise
from supernet import Architecture, SearchSpace, extract
from supernet.layout import layout_of
from supernet.norms import calibrate, needs_calibration

_BATCH = 500
_CALIBRATION_IMAGES = 2_000


@dataclass(frozen=True)
class Score:
    """How a subnet did on a split."""

    accuracy: float
    loss: float
    examples: int

    @classmethod
    def of(cls, correct: int, loss: float, examples: int) -> "Score":
        """Make a score of the number of right answers, the mean loss and the number of images."""
        return cls(correct / examples, loss, examples)

    @property
    def correct(self) -> int:
        """The number of right answers."""
        return round(self.accuracy * self.examples)


def check_fit(space: SearchSpace, data: Dataset) -> None:
    """Refuse data whose classes, channels or size are not the space's.

    Raises
    ------
    ValueError
        Naming what differs, with both values.
    """
    for what, has, needs in (
        ("classes", data.num_classes, space.num_classes),
        ("image channels", data.in_channels, space.in_channels),
        ("image size", data.image_size, space.image_size),
    ):
        if has != needs:
            raise ValueError(f"{what}: the data set {data.name!r} has {has}, the space has {needs}")


def subnet_module(
    space: SearchSpace, state: Mapping[str, torch.Tensor], arch: Architecture
) -> nn.Module:
    """Build a subnet with its own copy of the supernet's weights."""
    module = space.build(arch)
    module.load_state_dict(extract(state, space.boxes(arch)))
    return module


def calibrated(
    space: SearchSpace,
    state: Mapping[str, torch.Tensor],
    arch: Architecture,
    images: Split | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> nn.Module:
    """Build a subnet that is ready to run, with statistics of its own where its norm needs them.

    The supernet is only read, and nothing is kept between calls.

    Parameters
    ----------
    images, mean, std
        Training images, of which 2,000 are used, evenly spaced (files are often sorted by class),
        and their normalisation; not looked at unless the space's norm is ``batch``.

    Raises
    ------
    ValueError
        Where images are needed and there are none.
    """
    module = subnet_module(space, state, arch)
    prepare(module, images, mean, std)
    return module


def prepare(
    module: nn.Module, images: Split | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Put a subnet into evaluation mode, calibrated on ``images`` where its norm needs that."""
    if needs_calibration(module):
        if images is None or not len(images):
            raise ValueError("static batch norm needs training images for its calibration")
        count = min(len(images), _CALIBRATION_IMAGES)
        some = images.take(np.linspace(0, len(images) - 1, count).round().astype(np.int64))
        device = next(module.parameters()).device
        calibrate(module, (batch for batch, _ in batches(some, mean, std, device)))
    module.eval()


def batches(
    split: Split, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised images and labels, in order, without augmentation."""
    starts = list(range(0, len(split), _BATCH))
    if len(starts) > 1 and len(split) - starts[-1] == 1:
        starts.pop()  # a last single image joins the batch before: it has no batch statistics
    for start, stop in zip(starts, [*starts[1:], len(split)], strict=True):
        images = split.images[start:stop].to(device)
        yield normalise(images, mean, std), split.labels[start:stop].to(device)


def score(
    module: nn.Module,
    split: Split,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    calibration: Split | None = None,
) -> Score:
    """Accuracy and mean cross-entropy of a module over a split.

    Parameters
    ----------
    module
        The subnet, on the device to use; left in evaluation mode.
    split
        Images uint8 (N, C, H, W) and labels (N,).
    mean, std
        The data set's normalisation.
    calibration
        Images for static batch norm, of which 2,000 are used, evenly spaced: training images, never
        ``split`` itself. Needed only with ``norm="batch"``.
    """
    examples = len(split)
    if not examples:
        raise ValueError("a split without images cannot be scored")
    device, layout = next(module.parameters()).device, layout_of(module)
    if layout is torch.channels_last:
        module.to(memory_format=layout)  # outside of inference mode: it may be trained again
    correct, loss = 0, 0.0
    with torch.inference_mode():
        prepare(module, calibration, mean, std)
        for images_batch, labels in batches(split, mean, std, device):
            logits = module(images_batch.contiguous(memory_format=layout))
            correct += int((logits.argmax(dim=1) == labels).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return Score.of(correct, loss / examples, examples)
