"""The task of image classification: pixels of 8 bits, cross-entropy, right answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from superfednas.tasks.field import Input, Output
from superfednas.tasks.images.augment import NONE, Augment
from superfednas.tasks.metric import Metric, Share, Tally
from superfednas.tasks.task import Inputs, Task, TaskError, Tensors

IMAGES, LABELS, LOGITS = "images", "labels", "logits"
ACCURACY = Share("accuracy")
LOSS = Metric("loss", "less", low=0.0)
MEAN, STD = 0.5, 0.25  # of pixels in [0, 1], where nobody says better


@dataclass(frozen=True)
class Images(Task):
    """Classification of square images.

    A split holds ``images``, uint8 (N, C, H, W), pixels 0 to 255, and ``labels``, int64 (N,).
    Networks read ``(pixel / 255 - mean) / std`` in float32 and answer one logit a class.

    Attributes
    ----------
    num_classes, in_channels
        Classes, and channels of an image.
    image_size
        Side of an image in pixels.
    classes
        One name a class; label ``k`` means ``classes[k]``. Numbers where none are given.
    mean, std
        One constant a channel for pixels scaled to [0, 1]; .5 and .25 where none are given.
    augment
        What is done to training batches.

    Raises
    ------
    TaskError
        Where the numbers do not fit together.
    """

    name: ClassVar[str] = "images"

    num_classes: int = 10
    in_channels: int = 3
    image_size: int = 32
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Augment = NONE

    def __post_init__(self) -> None:  # noqa: D105
        for key in ("num_classes", "in_channels", "image_size"):
            if getattr(self, key) < 1:
                raise TaskError(f"{key} = {getattr(self, key)}: must be at least 1")
        given = {
            "classes": self.classes or tuple(map(str, range(self.num_classes))),
            "mean": self.mean or (MEAN,) * self.in_channels,
            "std": self.std or (STD,) * self.in_channels,
        }
        for key, value in given.items():
            object.__setattr__(self, key, value)
        if len(self.classes) != self.num_classes:
            raise TaskError(f"classes: {len(self.classes)} names for {self.num_classes} classes")
        for key in ("mean", "std"):
            if len(given[key]) != self.in_channels:
                raise TaskError(
                    f"{key} = {given[key]} has {len(given[key])} numbers; one a channel "
                    f"({self.in_channels}) is needed"
                )
        if min(self.std) <= 0:
            raise TaskError(f"std = {self.std}; every number must be above 0")

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        classes: tuple[str, ...],
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        augment: Augment = NONE,
    ) -> "Images":
        """Return the task of some images (N, C, H, W) with the classes of these names."""
        if images.ndim != 4:
            raise TaskError(f"images have shape {tuple(images.shape)}; (N, C, H, W) is needed")
        channels, size = images.shape[1:3]
        return cls(len(classes), channels, size, classes, mean, std, augment)

    @property
    def reference(self) -> str:
        """The task's own name."""
        return self.name

    @property
    def options(self) -> Mapping[str, Any]:
        """Classes, channels and side."""
        return {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
        }

    @property
    def inputs(self) -> Mapping[str, Input]:
        """One image, channels first."""
        return {
            IMAGES: Input(
                shape=(self.in_channels, self.image_size, self.image_size),
                dtype="uint8",
                low=0,
                high=255,
                scale=tuple(1 / (255 * std) for std in self.std),
                offset=tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True)),
            )
        }

    @property
    def outputs(self) -> Mapping[str, Output]:
        """One logit a class."""
        return {LOGITS: Output((self.num_classes,), self.classes)}

    @property
    def meaning(self) -> Mapping[str, str]:
        """The classes in the order of their labels, and the constants of the pixels."""
        found = {"classes": self.classes, "pixel-mean": self.mean, "pixel-std": self.std}
        return {what: json.dumps(value, ensure_ascii=False) for what, value in found.items()}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The share of right answers, and the mean cross-entropy."""
        return ACCURACY, LOSS

    def batch(
        self,
        fields: Tensors,
        targets: Tensors,
        rows: torch.Tensor | slice,
        device: torch.device,
        draws: torch.Generator | None = None,
    ) -> tuple[Inputs, Tensors]:
        """Return images as networks read them; with ``draws`` cropped, flipped and cut.

        All draws are made on the CPU, so one seed gives one batch on all devices.
        """
        images, prepare = fields[IMAGES][rows].to(device), self.inputs[IMAGES].prepare
        if draws is None:
            read = prepare(images)
        else:
            drawn = self.augment.draw(len(images), images.shape[-1], draws)
            read = self.augment.cut_(prepare(self.augment.move(images, drawn)), drawn)
        return (read,), {LABELS: targets[LABELS][rows].to(device)}

    def loss(
        self, outputs: torch.Tensor, targets: Tensors, *, smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the mean cross-entropy with smoothed labels."""
        return functional.cross_entropy(outputs, targets[LABELS], label_smoothing=smoothing)

    def distil(self, outputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy against a teacher's predictions (arXiv 1903.05134)."""
        return functional.cross_entropy(outputs, teacher.softmax(dim=1))

    def count(self, outputs: torch.Tensor, targets: Tensors) -> Tally:
        """Count right answers and add up cross-entropies."""
        labels = targets[LABELS]
        right = int((outputs.argmax(dim=1) == labels).sum())
        lost = float(functional.cross_entropy(outputs, labels, reduction="sum"))
        return Tally(len(labels), {ACCURACY.name: right, LOSS.name: lost})

    def strata(self, targets: Tensors) -> torch.Tensor:
        """Return the labels."""
        return targets[LABELS]

    def problem(self, fields: Tensors, targets: Tensors) -> str:
        """Say what is wrong with images or labels."""
        for name, tensors in ((IMAGES, fields), (LABELS, targets)):
            if name not in tensors:
                return f"has no {name}"
        images, labels = fields[IMAGES], targets[LABELS]
        if images.dtype != torch.uint8 or images.ndim != 4:
            return (
                f"images are {images.dtype} of shape {tuple(images.shape)}; uint8 (N, C, H, W) "
                "is needed."
            )
        if images.shape[2] != images.shape[3]:
            return (
                f"images are {images.shape[2]} x {images.shape[3]} pixels; they must be square "
                "(set resize to make them so)."
            )
        shape = (self.in_channels, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != shape:
            return f"images have shape {tuple(images.shape[1:])}; one, {shape}, is allowed."
        if labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
            return (
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; int64 of shape "
                f"({len(images)},) is needed, one an image."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            return (
                f"labels run from {int(labels.min())} to {int(labels.max())}; with "
                f"{self.num_classes} classes 0 to {self.num_classes - 1} is allowed."
            )
        return ""

    def differences(self, other: Task) -> list[tuple[str, Any, Any]]:
        """Compare classes, channels and side."""
        if not isinstance(other, Images):
            return super().differences(other)
        return [
            (what, getattr(self, key), getattr(other, key))
            for what, key in (
                ("classes", "num_classes"),
                ("image channels", "in_channels"),
                ("image size", "image_size"),
            )
            if getattr(self, key) != getattr(other, key)
        ]
