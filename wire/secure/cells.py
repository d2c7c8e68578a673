"""Cells: the parts of a supernet's tensors that the same clients of a round hold.

Server and clients know every client's boxes, so all of them find the same cells in the same order,
and nothing about them is sent. Masks are added cell by cell: in each, those of its holders cancel,
however the slices overlap.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from superfednas.supernet import Shape
from superfednas.supernet.boxes import Boxes, Placement, Slices

FEW = 3
"""In a cell of fewer holders, one of them who knows its own part would know another's."""


@dataclass(frozen=True)
class Cell:
    """A part of one tensor.

    Parameters
    ----------
    tensor
        Its name.
    place
        Where it lies in the supernet's tensor.
    holders
        Numbers of the clients that hold it, rising; at least one.
    """

    tensor: str
    place: Slices
    holders: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """The cell's shape."""
        return tuple(part.stop - part.start for part in self.place)

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def cells_of(shapes: Mapping[str, Shape], held: Mapping[int, Boxes]) -> list[Cell]:
    """Return the cells that the boxes of a round's clients cut out of a supernet.

    Parameters
    ----------
    shapes
        The supernet's, in ``state_dict`` order, which is the order of the cells.
    held
        Number of a client to its boxes; one that counts for nothing has none.
    """
    found = []
    for name, shape in shapes.items():
        placements = {who: boxes[name] for who, boxes in sorted(held.items()) if name in boxes}
        if not placements:
            continue
        edges = [_edges(dimension, placements.values()) for dimension in range(len(shape))]
        index = [{edge: k for k, edge in enumerate(along)} for along in edges]
        inside = np.zeros((*(len(along) - 1 for along in edges), len(placements)), bool)
        for column, placement in enumerate(placements.values()):
            for box in itertools.product(*placement):
                where = tuple(slice(at[a], at[b]) for at, (a, b) in zip(index, box, strict=True))
                inside[..., column][view(where)] = True
        who = list(placements)
        for cell in np.ndindex(*inside.shape[:-1]):
            holders = tuple(who[column] for column in np.flatnonzero(inside[cell]).tolist())
            if holders:
                place = tuple(slice(e[k], e[k + 1]) for e, k in zip(edges, cell, strict=True))
                found.append(Cell(name, place, holders))
    return found


def _edges(dimension: int, placements: Iterable[Placement]) -> list[int]:
    return sorted({end for p in placements for interval in p[dimension] for end in interval})


def view(place: Slices) -> Any:
    """Return the index that gives a part of a tensor as a view, even of a single number."""
    return (*place, ...)


def within(cell: Cell, placement: Placement) -> Slices:
    """Return where a cell lies in the tensor of a subnet with this placement, which holds it."""
    found = []
    for part, intervals in zip(cell.place, placement, strict=True):
        offset = 0
        for low, high in intervals:
            if low <= part.start and part.stop <= high:
                start = offset + part.start - low
                found.append(slice(start, start + part.stop - part.start))
                break
            offset += high - low
    return tuple(found)


@dataclass(frozen=True)
class Rule:
    """How many must hold a cell, before and after some have dropped out.

    A cell's *tier* tells how many of its holders can be spared: none, one, two or three, and so on
    by doubling, up to as many as can drop out of a round. Each client masks every tier with a
    secret of its own, so that tiers can be unmasked without those that drop-outs made too small.

    Parameters
    ----------
    least
        Holders that a cell needs: :data:`FEW`, or 1 where small cells are allowed.
    spare
        Clients that may drop out.
    """

    least: int
    spare: int

    def tier(self, cell: Cell) -> int | None:
        """Return a cell's tier, from 0; None if it has too few holders."""
        count = len(cell.holders)
        if count < self.least:
            return None
        return min(count - self.least, self.spare).bit_length()

    def released(self, cells: Sequence[Cell], survivors: Collection[int]) -> set[int]:
        """Return the tiers of which no cell has some, but too few, of these survivors."""
        tiers: set[int] = set()
        spoilt: set[int] = set()
        for cell in cells:
            tier = self.tier(cell)
            if tier is None:
                continue
            tiers.add(tier)
            if 0 < sum(who in survivors for who in cell.holders) < self.least:
                spoilt.add(tier)
        return tiers - spoilt
