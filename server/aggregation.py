"""Overlap-aware weighted averaging (MaxNet's merge; SuperFedNAS §4.3) without per-element counts.

For every scalar p, with S the clients whose subnet holds p::

    W(p) = Σ_{k∈S} a_k w_k(p) / Σ_{k∈S} a_k        S = ∅ keeps the server's value

The divisor is constant on each cell of the grid that the boxes' edges cut, so a few numbers a
tensor replace a count per element. The mean is kept running, ``m += (a_k / A)(w_k − m)`` with A the
weight folded into the cell so far: one read-modify-write pass a reply and no pass at the end, one
buffer whatever the number of clients, a cell's first client copied bit for bit, and clients that
agree leave their value untouched to the last bit.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from supernet.slicing import Boxes, Placement, Slices, pieces, placement_shape, resolve

Update = Mapping[str, torch.Tensor | np.ndarray]


class Aggregation(Protocol):
    """One round's merge: replies are added one after another, then the result is asked for once.

    Attributes
    ----------
    verdicts
        After :meth:`result`: client to what was done to its reply, where it was not taken as it is.
    """

    verdicts: dict[str, str]

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
    state: Mapping[str, torch.Tensor],
    update: Update,
    weight: float,
    boxes: Mapping[str, Any] | None,
) -> tuple[Boxes, dict[str, torch.Tensor]]:
    """Return where an update lies inside ``state``, and its tensors.

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
    placements = resolve(state, boxes)
    if placements.keys() != update.keys():
        raise ValueError("boxes and update must have the same names")
    for name, placement in placements.items():
        if tuple(update[name].shape) != placement_shape(placement):
            raise ValueError(
                f"{name!r}: shape {tuple(update[name].shape)} in place of "
                f"{placement_shape(placement)}"
            )
    return placements, {name: torch.as_tensor(update[name]) for name in placements}


class CellGrid:
    """Weight folded so far into each cell of one tensor's grid.

    Cells are refined when a box brings a new edge: ``edges[d]`` are the cuts of dimension d
    (0 and the size included), ``weights`` has one number a cell.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.edges = [[0, size] for size in shape]
        self.weights = np.zeros((1,) * len(shape))

    def cut(self, dimension: int, position: int) -> None:
        """Make ``position`` an edge: the cell that it cuts becomes two of equal weight."""
        edges = self.edges[dimension]
        index = bisect.bisect_left(edges, position)
        if edges[index] != position:
            edges.insert(index, position)
            self.weights = np.insert(
                self.weights, index, self.weights.take(index - 1, dimension), dimension
            )

    def add(self, box: Slices, weight: float) -> Iterator[tuple[Slices, float]]:
        """Add ``weight`` inside a box; yield each of its cells with the share it now has there."""
        spans = []
        for dimension, part in enumerate(box):
            self.cut(dimension, part.start)
            self.cut(dimension, part.stop)
        for dimension, part in enumerate(box):
            edges = self.edges[dimension]
            spans.append(
                range(bisect.bisect_left(edges, part.start), bisect.bisect_left(edges, part.stop))
            )
        for cell in itertools.product(*spans):
            self.weights[cell] += weight
            where = tuple(
                slice(self.edges[d][index], self.edges[d][index + 1])
                for d, index in enumerate(cell)
            )
            yield where, weight / float(self.weights[cell])


class OverlapAverage:
    """Average subnets of different shapes into the supernet that they were cut from.

    Parameters
    ----------
    state
        The supernet's tensors. They are not written to; what nobody covers is kept from here.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._mean = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._grids = {name: CellGrid(tensor.shape) for name, tensor in state.items()}
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
        placements, tensors = check_update(self._mean, update, weight, boxes)
        if weight:
            for name, placement in placements.items():
                self._fold(name, placement, tensors[name], weight)

    def _fold(self, name: str, placement: Placement, tensor: torch.Tensor, weight: float) -> None:
        mean, grid = self._mean[name], self._grids[name]
        for outer, inner in pieces(placement):
            part = tensor[inner]
            for cell, share in grid.add(outer, weight):
                within = tuple(
                    slice(c.start - o.start, c.stop - o.start)
                    for c, o in zip(cell, outer, strict=True)
                )
                new = part[within].to(mean.dtype)
                if share == 1:
                    mean[cell].copy_(new)
                else:
                    mean[cell].lerp_(new, share)

    def result(self) -> dict[str, torch.Tensor]:
        """Return the new state: the running means, and the server's values where nobody was.

        The tensors are the average's own buffers; fold nothing more after handing them on.
        """
        return self._mean
