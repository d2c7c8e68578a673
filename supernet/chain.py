"""Spaces whose networks are chains of blocks: what makes exact search and latency tables possible.

A network is one *option* a *segment* (for a ResNet: a stage with its depth and ratios). What a
segment costs depends on its own option and on the *state* that the segment before leaves (the
channels handed on), on nothing else. Costs are sums, and peaks maxima, over *blocks*; equal blocks
have equal names, so a space of 10⁸ networks has some dozen blocks to count or to time.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from superfednas.supernet.architecture import Architecture, Shape

FLOAT_BYTES = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Block:
    """A piece of network that is counted and timed as a whole.

    Parameters
    ----------
    name
        What it is; within one space, blocks of equal names are equal.
    inputs
        Shape of what it reads, for one image.
    macs, params
        Its exact cost for one image, and its parameters.
    activations
        The most numbers alive at once while it runs on one image
        (:mod:`superfednas.supernet.activations`).
    module
        Constructs it, parameters left as torch makes them.
    stored
        What its weights take in a file, in bytes; None for float32.
    """

    name: str
    inputs: Shape
    macs: int
    params: int
    activations: int
    module: Callable[[], nn.Module] = field(compare=False, repr=False)
    stored: int | None = None

    @property
    def weight_bytes(self) -> int:
        """What its weights take in a file, in bytes."""
        return FLOAT_BYTES * self.params if self.stored is None else self.stored


@dataclass(frozen=True, eq=False)
class Segment:
    """One link of the chain.

    Parameters
    ----------
    name
        For people.
    options
        What may be chosen here; the meaning is the chain's own.
    leaves
        For each option the state that the next segment meets, counted from 0.
    features
        (options, features), float: what a regression sees of each option.
    """

    name: str
    options: tuple[Any, ...]
    leaves: np.ndarray
    features: np.ndarray


@dataclass(frozen=True, eq=False)
class Inventory:
    """The distinct blocks of a chain, and where each is used.

    Parameters
    ----------
    blocks
        The distinct blocks.
    used
        For each segment (states, options, most blocks of an option): indices into ``blocks``, and
        ``len(blocks)`` where an option has fewer.
    """

    blocks: tuple[Block, ...]
    used: tuple[np.ndarray, ...]

    def totals(self, values: Sequence[float] | np.ndarray) -> list[np.ndarray]:
        """Sum one value a block: for each segment (states, options)."""
        padded = np.append(np.asarray(values), 0)
        return [padded[use].sum(axis=2) for use in self.used]

    def peaks(self, values: Sequence[float] | np.ndarray) -> list[np.ndarray]:
        """Give the maximum of one value a block: for each segment (states, options)."""
        padded = np.append(np.asarray(values), 0)
        return [padded[use].max(axis=2) for use in self.used]


class Chain(ABC):
    """A search space as segments; architectures are vectors of one option index a segment."""

    @property
    @abstractmethod
    def segments(self) -> tuple[Segment, ...]:
        """The links, from the input on. The first meets state 0."""

    @abstractmethod
    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        """Return the blocks of an option of a segment that meets ``state``."""

    @abstractmethod
    def assemble(self, options: Sequence[int]) -> Architecture:
        """Return the architecture of one option a segment."""

    @abstractmethod
    def locate(self, arch: Architecture) -> tuple[int, ...]:
        """Undo :meth:`assemble`."""

    def states(self, segment: int) -> int:
        """Return how many states a segment may meet."""
        return 1 if segment == 0 else 1 + int(self.segments[segment - 1].leaves.max())

    @functools.cached_property
    def inventory(self) -> Inventory:
        """The distinct blocks, and where each is used."""
        numbers: dict[str, int] = {}
        distinct: list[Block] = []
        found: list[list[list[list[int]]]] = []
        for s, segment in enumerate(self.segments):
            found.append([])
            for state in range(self.states(s)):
                row = []
                for option in range(len(segment.options)):
                    used = self.blocks(s, state, option)
                    for block in used:
                        if block.name not in numbers:
                            numbers[block.name] = len(distinct)
                            distinct.append(block)
                    row.append([numbers[block.name] for block in used])
                found[-1].append(row)
        arrays = []
        for rows in found:
            most = max(len(option) for row in rows for option in row)
            use = np.full((len(rows), len(rows[0]), most), len(distinct), dtype=np.int32)
            for state, row in enumerate(rows):
                for index, numbered in enumerate(row):
                    use[state, index, : len(numbered)] = numbered
            arrays.append(use)
        return Inventory(tuple(distinct), tuple(arrays))

    def gather(self, tables: Sequence[np.ndarray], options: np.ndarray) -> np.ndarray:
        """Look up what each segment of each network contributes.

        Parameters
        ----------
        tables
            For each segment (states, options, ...).
        options
            (networks, segments) option indices.

        Returns
        -------
        np.ndarray
            (segments, networks, ...).
        """
        state = np.zeros(len(options), dtype=np.int64)
        found = []
        for s, (segment, table) in enumerate(zip(self.segments, tables, strict=True)):
            found.append(table[state, options[:, s]])
            state = segment.leaves[options[:, s]]
        return np.stack(found)

    def features(self, options: np.ndarray) -> np.ndarray:
        """(networks, segments) option indices to (networks, features), segment after segment."""
        parts = [segment.features[options[:, s]] for s, segment in enumerate(self.segments)]
        return np.concatenate(parts, axis=1)


class ListedChain(Chain):
    """A chain whose options are all listed when it is made; options are hashable.

    Parameters
    ----------
    segments
        The links, from the input on.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = tuple(segments)
        self._index = [
            {option: index for index, option in enumerate(segment.options)}
            for segment in self._segments
        ]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The links."""
        return self._segments

    def chosen(self, options: Sequence[int]) -> list[Any]:
        """Return what is chosen in every segment, of one option index a segment."""
        return [s.options[int(o)] for s, o in zip(self._segments, options, strict=True)]

    def indices(self, chosen: Sequence[Any]) -> tuple[int, ...]:
        """Undo :meth:`chosen`."""
        return tuple(index[option] for index, option in zip(self._index, chosen, strict=True))
