"""Inputs and outputs of a network, described so plainly that a device without torch can read them.

What is stored (pixels of 8 bits, a column of a table, the number of a category) is *raw*; where an
input has a scale, a network reads ``raw * scale + offset`` in float32, else the raw numbers.
"""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Input:
    """One tensor that a network reads, and the raw numbers that it is made of.

    Attributes
    ----------
    shape
        Of one example, without the batch.
    dtype
        Of the raw numbers, as torch and numpy name it (``uint8``, ``int64``, ``float32``).
    low, high
        The least and the greatest raw number; None where there is no such bound.
    scale, offset
        One number for each entry of the first axis of ``shape``; empty where networks read the raw
        numbers.
    categories
        What raw number k stands for, where numbers are names; empty otherwise.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # noqa: D105
        numbers = len(self.scale), len(self.offset)
        if any(numbers) and numbers != (self.shape[0],) * 2:
            raise ValueError(
                f"scale and offset have {numbers[0]} and {numbers[1]} numbers; one for each of "
                f"the {self.shape[0]} entries of the first axis is needed"
            )

    @property
    def raw_type(self) -> torch.dtype:
        """The raw numbers' type."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def read_type(self) -> torch.dtype:
        """The type of the numbers that a network reads."""
        return torch.float32 if self.scale else self.raw_type

    def prepare(self, raw: torch.Tensor) -> torch.Tensor:
        """Return what a network reads of raw rows, on the device where they are.

        One multiplication and one addition in place, on a copy: what is given stays as it is.
        """
        if not self.scale:
            return raw
        scale, offset = _constants(self.scale, self.offset, len(self.shape), raw.device)
        return raw.to(torch.float32, copy=True).mul_(scale).add_(offset)

    def example(
        self, batch: int, device: torch.device, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return made-up rows as a network reads them: numbers in [0, 1), or whole ones in range.

        The generator, where there is one, is the device's.
        """
        shape = (batch, *self.shape)
        if self.read_type.is_floating_point:
            return torch.rand(shape, generator=generator, device=device, dtype=self.read_type)
        low, high = int(self.low or 0), int(1 if self.high is None else self.high)
        return torch.randint(
            low, high + 1, shape, generator=generator, device=device, dtype=self.read_type
        )

    def problem(self, raw: torch.Tensor) -> str:
        """Say why rows cannot be this input; empty where they can."""
        if raw.dtype != self.raw_type or tuple(raw.shape[1:]) != self.shape:
            axes = ", ".join(("N", *map(str, self.shape)))
            return f"{raw.dtype} of shape {tuple(raw.shape)}; {self.dtype} ({axes}) is needed"
        if raw.is_floating_point() and not (finite := raw.isfinite()).all():
            row = int((~finite).flatten(1).any(1).nonzero()[0]) if raw.dim() > 1 else 0
            return f"not all finite numbers (first in row {row})"
        if not raw.numel() or (self.low is None and self.high is None):
            return ""
        least, most = raw.min().item(), raw.max().item()
        fits = (self.low is None or least >= self.low) and (self.high is None or most <= self.high)
        return "" if fits else f"numbers from {least:g} to {most:g}; {self._allowed()} is allowed"

    def _allowed(self) -> str:
        low = "any" if self.low is None else f"{self.low:g}"
        high = "any" if self.high is None else f"{self.high:g}"
        return f"{low} to {high}"


@dataclass(frozen=True)
class Output:
    """One tensor that a network answers.

    Attributes
    ----------
    shape
        Of one example, without the batch.
    names
        What the entries of its first axis are; empty where they have no names.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


@functools.lru_cache(maxsize=64)
def _constants(
    scale: tuple[float, ...], offset: tuple[float, ...], axes: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and summand of a normalisation, along the first of so many axes."""
    shape = (-1, *[1] * (axes - 1))
    first, second = (
        torch.tensor(numbers, dtype=torch.float64).float().to(device).view(shape)
        for numbers in (scale, offset)
    )
    return first, second
