"""Overlap-aware weighted averaging (MaxNet's merge; SuperFedNAS §4.3) without per-element counts.

For every scalar p, with S the clients whose subnet holds p::

    W(p) = Σ_{k∈S} a_k w_k(p) / Σ_{k∈S} a_k        S = ∅ keeps the server's value

The divisor is constant on each cell of the grid that the boxes' edges cut, so a few numbers a
tensor replace a count per element. The mean is kept running, ``m += (a_k / A)(w_k − m)`` with A the
weight folded into the cell so far: one read-modify-write pass a reply, one buffer whatever the
number of clients, a cell's first client copied bit for bit, and clients that agree leave their
value untouched to the last bit. The old state is copied only where nobody was.
"""

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from server.threads import spread
from supernet.architecture import Shape
from supernet.slicing import Cut, Slices, pieces, resolve, shapes_of

Update = Mapping[str, torch.Tensor | np.ndarray]
_ALIGNED = 64  # bytes, as torch's own tensors are
_WHOLE = [(0, slice(None), slice(None))]  # a dimension that nothing cuts
_BLOCK = 1 << 18  # numbers converted at a time


class Aggregation(Protocol):
    """One round's merge: replies are added one after another, then the result is asked for once.

    Attributes
    ----------
    verdicts
        After :meth:`result`: client to what was done to its reply, where it was not taken as it is.
    holds
        Whether replies are held until :meth:`result`, and must stay as they are until then.
    """

    verdicts: dict[str, str]
    holds: bool

    def add(
        self,
        update: Update,
        weight: float,
        boxes: Mapping[str, Any] | None = None,
        client: str = "",
    ) -> None:
        """Take one client's new weights."""

    def result(self) -> dict[str, torch.Tensor]:
        """Return the new state; what nobody covers is kept from the old one."""


def check_update(
    within: Mapping[str, Shape],
    update: Update,
    weight: float,
    boxes: Mapping[str, Any] | None,
) -> tuple[Cut, dict[str, torch.Tensor]]:
    """Return where an update lies inside a supernet of these shapes, and its tensors.

    Raises
    ------
    ValueError
        For a negative or non-finite weight, an unknown name, a shape that does not fit, or an array
        that torch cannot read.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight = {weight}: must be a finite number of at least 0")
    if boxes is None:
        boxes = {name: tuple(tensor.shape) for name, tensor in update.items()}
    cut = resolve(within, boxes)
    if cut.keys() != update.keys():
        raise ValueError("boxes and update must have the same names")
    tensors = {}
    for name, shape in cut.shapes.items():
        tensor = update[name]
        if tensor.shape != shape:
            raise ValueError(f"{name!r}: shape {tuple(tensor.shape)} in place of {shape}")
        tensors[name] = tensor if isinstance(tensor, torch.Tensor) else torch.as_tensor(tensor)
    return cut, tensors


class CellGrid:
    """Weight folded so far into each cell of one tensor's grid.

    Cells are refined when a box brings a new edge: ``edges[d]`` are the cuts of dimension d
    (0 and the size included), ``weights`` has one number a cell.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.edges = [[0, size] for size in shape]
        self.weights = np.zeros((1,) * len(shape))
        self._everything = tuple(slice(0, size) for size in shape)

    def cut(self, dimension: int, position: int) -> int:
        """Make ``position`` an edge and return its index.

        The cell that it cuts becomes two of equal weight.
        """
        edges = self.edges[dimension]
        index = bisect.bisect_left(edges, position)
        if edges[index] != position:
            edges.insert(index, position)
            copies = np.ones(self.weights.shape[dimension], int)
            copies[index - 1] = 2
            self.weights = self.weights.repeat(copies, dimension)
        return index

    def add(self, box: Slices, weight: float) -> Iterator[tuple[Slices, Slices, float]]:
        """Add ``weight`` inside a box.

        Yields, for each of the box's cells, where it lies in the tensor, where in the box, and the
        share that the weight now has there.
        """
        if self.weights.size == 1 and box == self._everything:
            total = self.weights.item() + weight
            self.weights.fill(total)
            yield (), (), weight / total
            return
        sides = [self._side(dimension, part) for dimension, part in enumerate(box)]
        for cell in itertools.product(*sides):
            index, outer, inner = zip(*cell, strict=True) if cell else ((), (), ())
            total = float(self.weights[index]) + weight
            self.weights[index] = total
            yield outer, inner, weight / total

    def _side(self, dimension: int, part: slice) -> list[tuple[int, slice, slice]]:
        """Return a box's cells along one dimension: number, place in the tensor and in the box."""
        edges, start = self.edges[dimension], part.start
        if start == 0 and part.stop == edges[-1] and len(edges) == 2:
            return _WHOLE
        first, last = self.cut(dimension, start), self.cut(dimension, part.stop)
        return [
            (index, slice(low, high), slice(low - start, high - start))
            for index, (low, high) in enumerate(itertools.pairwise(edges[first : last + 1]), first)
        ]

    def uncovered(self) -> Iterator[Slices]:
        """Yield the cells that no weight was added to."""
        if self.weights.all():
            return
        for cell in np.argwhere(self.weights == 0).tolist():
            yield tuple(
                slice(edges[index], edges[index + 1])
                for edges, index in zip(self.edges, cell, strict=True)
            )


def blank(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors like a state's, each in memory of its own that nothing was written to.

    numpy asks the system for huge pages, torch does not: the first write is several times faster.
    """
    tensors = {}
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        memory = np.empty(size + _ALIGNED, np.uint8)
        start = -memory.ctypes.data % _ALIGNED
        flat = torch.from_numpy(memory[start : start + size]).view(tensor.dtype)
        tensors[name] = flat.view(tensor.shape)
    return tensors


class OverlapAverage:
    """Average subnets of different shapes into the supernet that they were cut from.

    Parameters
    ----------
    state
        The supernet's tensors. They are not written to; what nobody covers is copied from here, so
        they stay as they are until :meth:`result`.
    into
        Tensors like the state's that become the result, whatever they hold: who keeps two states
        and swaps them every round allocates nothing. By default new ones.
    """

    holds = False

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        self._shapes = shapes_of(state)
        self._mean = blank(self._state) if into is None else dict(into)
        self._grids = {name: CellGrid(tensor.shape) for name, tensor in self._state.items()}
        self.verdicts: dict[str, str] = {}

    def add(
        self,
        update: Update,
        weight: float,
        boxes: Mapping[str, Any] | None = None,
        client: str = "",
    ) -> None:
        """Fold one client's new weights (not a difference); nothing of ``update`` is kept.

        Parameters
        ----------
        update
            The subnet's tensors by name.
        weight
            a_k ≥ 0; a client of weight 0 counts as absent.
        boxes
            Where the tensors lie; by default their shapes say it (the leading parts).
        client
            Not looked at: the average treats all alike.

        Raises
        ------
        ValueError
            As :func:`check_update`; the average is unchanged then.
        """
        # All before any is folded: torch refuses some arrays, and then nothing may have changed.
        cut, tensors = check_update(self._shapes, update, weight, boxes)

        def fold(name: str) -> None:
            box = cut.slices[name]
            if box is not None:
                self._fold(name, box, tensors[name], weight)
                return
            for outer, inner in pieces(cut[name]):
                self._fold(name, outer, tensors[name][inner], weight)

        if weight:
            spread(fold, {name: math.prod(shape) for name, shape in cut.shapes.items()})

    def _fold(self, name: str, outer: Slices, part: torch.Tensor, weight: float) -> None:
        mean = self._mean[name]
        for cell, within, share in self._grids[name].add(outer, weight):
            here, new = (mean[cell], part[within]) if cell else (mean, part)
            # The first of a cell is copied, which alone makes what the buffer held before harmless.
            if share == 1:
                here.copy_(new)
            else:
                _move(here, new, share)

    def result(self) -> dict[str, torch.Tensor]:
        """Return the new state: the running means, and the server's values where nobody was.

        The tensors are the average's own buffers; fold nothing more after handing them on.
        """

        def keep(name: str) -> None:
            for cell in self._grids[name].uncovered():
                self._mean[name][cell].copy_(self._state[name][cell])

        spread(keep, {name: tensor.numel() for name, tensor in self._mean.items()})
        return self._mean


def _move(mean: torch.Tensor, new: torch.Tensor, share: float) -> None:
    """Move a mean towards new values by a share of their difference."""
    if new.dtype == mean.dtype:
        mean.lerp_(new, share)
    elif new.numel() <= _BLOCK or not new.dim():
        mean.lerp_(new.to(mean.dtype), share)
    else:
        # Converted by parts: a whole tensor's copy would be fresh memory, slow to write first.
        rows = max(1, _BLOCK * len(new) // new.numel())
        for start in range(0, len(new), rows):
            part = slice(start, start + rows)
            mean[part].lerp_(new[part].to(mean.dtype), share)
