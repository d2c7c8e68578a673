"""The weight folded into each cell of a tensor: cells between box edges, not counts per element."""

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from superfednas.supernet.boxes import Slices

_WHOLE = [(0, slice(None), slice(None))]  # a dimension that nothing cuts


class CellGrid:
    """Weight folded so far into each cell of one tensor's grid.

    Cells are refined when a box brings a new edge: ``edges[d]`` are the cuts of dimension d
    (including 0 and the size), ``weights`` has one number per cell.
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

        Yields, for each of the box's cells, its place in the tensor, its place in the box, and the
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
        """Yield the cells without any weight."""
        if self.weights.all():
            return
        for cell in np.argwhere(self.weights == 0).tolist():
            yield tuple(
                slice(edges[index], edges[index + 1])
                for edges, index in zip(self.edges, cell, strict=True)
            )


def rows(cell: Slices, within: Slices, low: int, high: int) -> tuple[Slices, Slices] | None:
    """Return the part of a cell that lies in rows ``low`` to ``high`` of its tensor, or None.

    Parameters
    ----------
    cell, within
        As :meth:`CellGrid.add` gives them; empty where the cell is the whole tensor.
    low, high
        Along the first dimension.
    """
    if not cell or cell[0].start is None:
        part = slice(low, high)
        return (part, *cell[1:]), (part, *within[1:])
    start, stop = max(low, cell[0].start), min(high, cell[0].stop)
    if start >= stop:
        return None
    offset = within[0].start - cell[0].start
    moved = slice(start + offset, stop + offset)
    return (slice(start, stop), *cell[1:]), (moved, *within[1:])
