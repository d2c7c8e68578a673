"""Images and labels in memory: three splits, the class names and the pixel constants."""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from supernet.digest import digest


class DataError(ValueError):
    """Data that cannot be used; one sentence names the thing, its value and what is allowed."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split.

    Attributes
    ----------
    images
        uint8, (N, C, H, W), contiguous, pixels 0 to 255.
    labels
        int64, (N,).
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.labels)

    def take(self, indices: np.ndarray | torch.Tensor) -> "Split":
        """Copy the rows at ``indices`` (integers, any order, repeats allowed)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Split(self.images[rows], self.labels[rows])

    def digest(self) -> str:
        """Hash the images and labels: which data a score was measured on."""
        return digest({"images": self.images, "labels": self.labels})


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole image classification task; shared within a process, so never written to.

    Attributes
    ----------
    classes
        One name a class; label ``k`` means ``classes[k]``.
    mean, std
        One constant a channel for pixels scaled to [0, 1].
    natural_ids
        Strings, (len(train),): the natural client of each training row, where the source knows it.

    Raises
    ------
    DataError
        Where the parts do not fit together.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    natural_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        for part in ("train", "validation", "test"):
            _check_split(f"{self.name}: {part}", getattr(self, part), len(self.classes))
        if not len(self.train):
            raise DataError(f"{self.name}: train holds 0 images; at least 1 is needed.")
        shapes = {tuple(s.images.shape[1:]) for s in (self.train, self.validation, self.test)}
        if len(shapes) > 1:
            raise DataError(
                f"{self.name}: images of the three splits have shapes {sorted(shapes)}; "
                "one (C, H, W) is allowed."
            )
        for word, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_channels:
                raise DataError(
                    f"{self.name}: {word} = {values} has {len(values)} numbers; one a channel "
                    f"({self.in_channels}) is needed."
                )
        if min(self.std) <= 0:
            raise DataError(f"{self.name}: std = {self.std}; every number must be above 0.")
        if self.natural_ids is not None and self.natural_ids.shape != (len(self.train),):
            raise DataError(
                f"{self.name}: natural ids have shape {self.natural_ids.shape}; one a training "
                f"row, ({len(self.train)},), is needed."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the (square) images in pixels."""
        return self.train.images.shape[2]


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Scale uint8 pixels (B, C, H, W) to ``(pixel / 255 - mean) / std`` in float32.

    One multiplication and one addition in place, on whatever device the images are.
    """
    scale, shift = _constants(mean, std, images.device)
    # A copy even of what is float32 already: what is given stays as it is.
    return images.to(torch.float32, copy=True).mul_(scale).add_(shift)


@functools.lru_cache(maxsize=64)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and summand of a normalisation, (C, 1, 1) each."""
    deviation = torch.tensor(std, dtype=torch.float64)
    scale = (1 / (255 * deviation)).float()
    shift = (-torch.tensor(mean, dtype=torch.float64) / deviation).float()
    return scale.to(device)[:, None, None], shift.to(device)[:, None, None]


def _check_split(what: str, split: Split, classes: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"{what} images are {images.dtype} of shape {tuple(images.shape)}; uint8 (N, C, H, W) "
            "is needed."
        )
    if images.shape[2] != images.shape[3]:
        raise DataError(
            f"{what} images are {images.shape[2]} x {images.shape[3]} pixels; they must be square "
            "(set resize to make them so)."
        )
    if labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
        raise DataError(
            f"{what} labels are {labels.dtype} of shape {tuple(labels.shape)}; int64 of shape "
            f"({len(images)},) is needed, one an image."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"{what} labels run from {int(labels.min())} to {int(labels.max())}; with {classes} "
            f"classes 0 to {classes - 1} is allowed."
        )
