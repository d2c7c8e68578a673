"""Inputs and outputs of a model, as its card describes them to a machine without torch.

The fields are those of ``superfednas.tasks.Input`` and ``Output``, and so is the arithmetic, bit
for bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of one example: what is more would only fill the memory of whoever opens the file.
_MOST_AXES, _MOST_NUMBERS = 16, 1 << 28


@dataclass(frozen=True)
class Input:
    """One array that a model reads, and the raw numbers that it is made of.

    Parameters
    ----------
    shape
        Of one example, without the batch.
    dtype
        Of the raw numbers, as numpy names it.
    low, high
        The smallest and the largest raw number; None without such a bound.
    scale, offset
        One number for each entry of the first axis of ``shape``: the model reads ``raw * scale +
        offset`` in float32. Empty where it reads the raw numbers.
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

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Input":
        """Return the input that a card's JSON describes; ValueError or TypeError for no such."""
        found = cls(**{key: _tuple(value) for key, value in fields.items()})
        np.dtype(found.dtype)
        _check(found.shape, found.categories)
        for number in (*found.scale, *found.offset, found.low or 0, found.high or 0):
            if not math.isfinite(number):
                raise ValueError(f"scale, offset and bounds cannot be {number}")
        numbers = len(found.scale), len(found.offset)
        if any(numbers) and numbers != (found.shape[0],) * 2:
            raise ValueError(f"scale and offset need {found.shape[0]} numbers")
        return found

    def take(self, raw: np.ndarray) -> np.ndarray:
        """Return rows as this input's raw numbers, of its type.

        Names are looked up among the categories; whole numbers become this type where it holds
        them, and any finite numbers become floating-point ones.

        Parameters
        ----------
        raw
            Numbers or names, (N, ...) of this input's shape.

        Raises
        ------
        ValueError
            If they cannot be this input; the sentence says why.
        """
        if raw.ndim < 1 or raw.shape[1:] != self.shape:
            raise ValueError(self._needed(raw))
        if self.categories and raw.dtype.kind in "OTU":
            raw = self._codes(raw)
        found = self._cast(raw)
        if not found.size or self._all_allowed():
            return found
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        least, most = found.min(), found.max()
        if not (low <= least and most <= high):  # NaN is nowhere between
            raise ValueError(f"from {least:g} to {most:g}; {low:g} to {high:g} is allowed")
        return found

    def _cast(self, raw: np.ndarray) -> np.ndarray:
        """Return numbers as this input's type, none of them another number but for rounding."""
        wanted = np.dtype(self.dtype)
        if raw.dtype == wanted:
            return raw
        if wanted.kind == "f" and raw.dtype.kind in "fiu":
            with np.errstate(over="ignore"):
                found = raw.astype(wanted)
            if not np.isfinite(found).all():
                raise ValueError(f"{raw.dtype}, of which some are not finite as {wanted}")
            return found
        if wanted.kind in "iu" and raw.dtype.kind in "iu":
            kept = np.iinfo(wanted)
            if raw.size and not (kept.min <= raw.min() and raw.max() <= kept.max):
                low = kept.min if self.low is None else self.low
                high = kept.max if self.high is None else self.high
                raise ValueError(f"from {raw.min()} to {raw.max()}; {low:g} to {high:g} is allowed")
            return raw.astype(wanted)
        raise ValueError(self._needed(raw))

    def _codes(self, names: np.ndarray) -> np.ndarray:
        """Return the numbers of categories, of this input's type."""
        number = {name: code for code, name in enumerate(self.categories)}
        given = names.ravel().tolist()
        for name in given:
            if not isinstance(name, str) or name not in number:
                raise ValueError(f"{name!r} somewhere; {', '.join(self.categories)} are allowed")
        codes = np.array([number[name] for name in given], self.dtype)
        return codes.reshape(names.shape)

    def _needed(self, raw: np.ndarray) -> str:
        axes = ", ".join(("N", *map(str, self.shape)))
        return f"{raw.dtype} of shape {raw.shape}; {self.dtype} of shape ({axes}) is needed"

    def prepare(self, raw: np.ndarray) -> np.ndarray:
        """Return what a model reads of raw rows (N, ...)."""
        if not self.scale:
            return raw
        shape = (-1, *[1] * (len(self.shape) - 1))
        scale, offset = (
            np.array(numbers, np.float64).astype(np.float32).reshape(shape)
            for numbers in (self.scale, self.offset)
        )
        scaled: np.ndarray = raw.astype(np.float32) * scale + offset
        return scaled

    def _all_allowed(self) -> bool:
        """Return whether every number of the raw type is allowed, so that none need be checked."""
        if self.low is None and self.high is None:
            return True
        if np.dtype(self.dtype).kind not in "iu":
            return False
        every = np.iinfo(self.dtype)
        return (self.low is None or self.low <= every.min) and (
            self.high is None or every.max <= self.high
        )


@dataclass(frozen=True)
class Output:
    """One array that a model answers.

    Parameters
    ----------
    shape
        Of one example, without the batch.
    names
        What the entries of its first axis are; empty where they have no names.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Output":
        """Return the output that a card's JSON describes; ValueError or TypeError for no such."""
        found = cls(**{key: _tuple(value) for key, value in fields.items()})
        _check(found.shape, found.names)
        if found.names and len(found.names) != found.shape[0]:
            raise ValueError(f"{len(found.names)} names for an output of shape {found.shape}")
        return found


def _check(shape: Any, names: Any) -> None:
    if not (isinstance(shape, tuple) and all(type(size) is int and size > 0 for size in shape)):
        raise ValueError(f"an array has shape {shape!r:.60}")
    if len(shape) > _MOST_AXES or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"an array of shape {shape!r:.60} is more than any model reads or answers")
    if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"names are {names!r:.60}")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON has lists only
