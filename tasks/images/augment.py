"""Augmentation of whole batches: random crop, horizontal flip, Cutout.

The recipe of SuperFedNAS for CIFAR: crop from an image padded with zeros (black), flip with
probability one half, normalise, then Cutout. Cutout (DeVries and Taylor, 2017) fills with zeros
*after* normalisation, which is the mean colour; its centre is uniform over the image and the square
is clipped at the borders.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from superfednas.tasks.task import TaskError

CIFAR_RECIPE = "crop:4,flip,cutout:16"
CIFAR = ("cifar10", "cifar100")
ALLOWED = "auto, none, or a comma list of crop:PADDING, flip and cutout:SIDE"


class Draws(NamedTuple):
    """Random choices for a batch of B images, each a CPU tensor (B,).

    ``top`` and ``left`` place the crop in the padded image (0 to 2 x padding), ``flipped`` is bool,
    ``row`` and ``column`` are the centre of the cut square.
    """

    top: torch.Tensor
    left: torch.Tensor
    flipped: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor


@dataclass(frozen=True)
class Augment:
    """What is done to a training batch.

    Attributes
    ----------
    crop
        Zero padding on every side, in pixels, before a crop to the old size; 0 for none.
    flip
        Mirror each image left to right with probability one half.
    cutout
        Side of the cut square in pixels; 0 for none.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    @classmethod
    def parse(cls, text: str, channels: int, size: int, name: str = "") -> "Augment":
        """Read the ``augment`` setting; ``auto`` is CIFAR's recipe for such images, else none.

        Parameters
        ----------
        channels, size
            Of the images; the side in pixels.
        name
            Of their data set.

        Raises
        ------
        TaskError
            For an unknown word, or a size that does not fit the images.
        """
        if text == "auto":
            text = CIFAR_RECIPE if (channels, size) == (3, 32) or name in CIFAR else "none"
        if text == "none":
            return cls()
        found: dict[str, int] = {}
        for item in text.split(","):
            word, _, number = item.strip().partition(":")
            limit = {"crop": size, "cutout": size}.get(word)
            if word == "flip" and not number and word not in found:
                found[word] = 1
            elif limit and number.isdecimal() and 1 <= int(number) <= limit and word not in found:
                found[word] = int(number)
            else:
                raise TaskError(
                    f"augment = {text!r}: {item.strip()!r} is not allowed; allowed is {ALLOWED}, "
                    f"each once, with sizes from 1 to the image size {size}."
                )
        return cls(found.get("crop", 0), "flip" in found, found.get("cutout", 0))

    def draw(self, batch: int, size: int, generator: torch.Generator) -> Draws:
        """Draw the choices for ``batch`` images of ``size`` x ``size`` pixels on the CPU.

        All are drawn whatever is switched on, so switching one part off leaves the others alike.
        """

        def integers(high: int) -> torch.Tensor:
            return torch.randint(high, (batch,), generator=generator)

        top, left = integers(2 * self.crop + 1), integers(2 * self.crop + 1)
        flipped = (integers(2) == 1) & self.flip
        return Draws(top, left, flipped, integers(size), integers(size))

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Augment (B, C, H, W) images of any type; both padding and the cut square are zero.

        Training cuts after normalisation (:meth:`superfednas.tasks.images.Images.batch`).
        """
        draws = self.draw(len(images), images.shape[-1], generator)
        return self.cut(self.move(images, draws), draws)

    def move(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Crop and flip each image (B, C, H, W).

        On the CPU one image after the other, which is four times as fast as what is done elsewhere:
        one gather of rows and one of columns.
        """
        if not (self.crop or self.flip):
            return images
        if _by_numpy(images):
            return self._move_here(images, draws)
        return self._gather(images, draws)

    def _move_here(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        batch, channels, size = images.shape[:3]
        side, crop = size + 2 * self.crop, self.crop
        padded = np.zeros((batch, channels, side, side), images.numpy().dtype)
        padded[:, :, crop : crop + size, crop : crop + size] = images.numpy()
        moved = np.empty(images.shape, padded.dtype)
        places = zip(draws.top.tolist(), draws.left.tolist(), draws.flipped.tolist(), strict=True)
        for number, (top, left, flipped) in enumerate(places):
            window = padded[number, :, top : top + size, left : left + size]
            moved[number] = window[..., ::-1] if flipped else window
        return torch.from_numpy(moved)

    def _gather(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        batch, channels, size = images.shape[:3]
        padded = torch.nn.functional.pad(images, (self.crop,) * 4)
        ahead = torch.arange(size)
        rows = draws.top[:, None] + ahead
        columns = draws.left[:, None] + torch.where(draws.flipped[:, None], ahead.flip(0), ahead)
        wide = padded.shape[-1]
        by_row = rows.to(images.device)[:, None, :, None].expand(batch, channels, size, wide)
        by_column = columns.to(images.device)[:, None, None].expand(batch, channels, size, size)
        return padded.gather(2, by_row).gather(3, by_column)

    def cut(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Set the cut squares of (B, C, H, W) images to zero, in a copy."""
        return self.cut_(images.clone(), draws) if self.cutout else images

    def cut_(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Set the cut squares of (B, C, H, W) images to zero, in place."""
        if not self.cutout:
            return images
        if _by_numpy(images):
            pixels, side, half = images.numpy(), self.cutout, self.cutout // 2
            centres = zip(draws.row.tolist(), draws.column.tolist(), strict=True)
            for number, (row, column) in enumerate(centres):
                top, left = max(0, row - half), max(0, column - half)
                pixels[number, :, top : row - half + side, left : column - half + side] = 0
            return images
        ahead = torch.arange(images.shape[-1])

        def inside(centre: torch.Tensor) -> torch.Tensor:
            start = centre[:, None] - self.cutout // 2
            return (ahead >= start) & (ahead < start + self.cutout)

        hole = inside(draws.row)[:, None, :, None] & inside(draws.column)[:, None, None, :]
        return images.masked_fill_(hole.to(images.device), 0)


NONE = Augment()


def _by_numpy(images: torch.Tensor) -> bool:
    """Say whether images can be cut image by image, where numpy takes 1 µs and torch 5."""
    return images.device.type == "cpu" and images.dtype != torch.bfloat16
