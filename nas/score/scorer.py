"""Scores: what a search maximises, measured, predicted or computed from the architecture."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from superfednas.supernet import Architecture, SearchSpace


class Scorer(Protocol):
    """Anything that ranks architectures.

    Attributes
    ----------
    name
        One word for tables and files.
    """

    name: str

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return one score per architecture: (architectures,), higher is better."""
        ...


@runtime_checkable
class AdditiveScorer(Scorer, Protocol):
    """A scorer that is a sum over the segments of a chain: its optimum can be computed exactly."""

    def tables(self) -> list[np.ndarray]:
        """Return what each segment adds (states, options), without constants."""
        ...


class MacsScorer:
    """More multiply-accumulates are better: the baseline that every other score must beat."""

    name = "macs"

    def __init__(self, space: SearchSpace) -> None:
        self._space = space

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return the MACs of each architecture."""
        return np.array([self._space.macs(arch) for arch in archs], dtype=float)

    def tables(self) -> list[np.ndarray]:
        """Return the MACs of each option of each segment."""
        chain = self._space.chain
        if chain is None:
            raise TypeError(f"the space {self._space.name!r} is no chain")
        inventory = chain.inventory
        return [
            table.astype(float) for table in inventory.totals([b.macs for b in inventory.blocks])
        ]
