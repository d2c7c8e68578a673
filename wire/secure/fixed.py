"""Fixed-point numbers modulo 2³²: what can be masked, and added without rounding."""

import math

import numpy as np

_MOST = 2**31 - 1


def scale_of(clip: float, clients: int) -> float:
    """Return by how much numbers are multiplied: a power of two with which no sum can wrap.

    A sum of ``clients`` numbers, each of at most ``clip`` and rounded, stays within 31 bits.

    Parameters
    ----------
    clip
        Largest L2 norm, and so the largest number, of what a client sends.
    clients
        How many there are in the round.
    """
    return 2.0 ** math.floor(math.log2((_MOST - clients) / (clients * clip)))


def clipped(change: np.ndarray, clip: float) -> np.ndarray:
    """Return a change whose L2 norm is at most ``clip``; nothing if it is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(change))
    if not math.isfinite(length):
        return np.zeros_like(change)
    return change if length <= clip else change * (clip / length)


def to_fixed(numbers: np.ndarray, scale: float) -> np.ndarray:
    """Return numbers times ``scale``, rounded, as uint32 in two's complement."""
    return np.rint(numbers * scale).astype(np.int64).astype(np.uint32)


def from_fixed(sums: np.ndarray, scale: float) -> np.ndarray:
    """Return what sums of fixed-point numbers stand for, in float64."""
    return sums.view(np.int32).astype(np.float64) / scale
