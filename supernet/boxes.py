"""Boxes: where a subnet's tensors lie inside the supernet's, and how to cut them out.

A *placement* says, for one tensor, which intervals of every dimension of the supernet's tensor a
subnet holds: one interval by default (a prefix; the centre of a kernel), two where a window rolls
over the end. Depth falls out of the names, width out of the placements. Nothing is stored per
element.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from superfednas.supernet.architecture import Architecture, Shape

Interval = tuple[int, int]
Placement = tuple[tuple[Interval, ...], ...]
Boxes = dict[str, Placement]
Slices = tuple[slice, ...]


def prefix_boxes(shapes: Mapping[str, Shape]) -> Boxes:
    """Place every tensor at the leading part of each dimension (the default of all families)."""
    return {name: tuple(((0, size),) for size in shape) for name, shape in shapes.items()}


def window(size: int, full: int, shift: int = 0) -> tuple[Interval, ...]:
    """Return the part of an axis that a window holds which starts at ``shift`` and rolls over.

    Parameters
    ----------
    size, full
        Entries of the window, and of the whole axis.
    shift
        Where the window starts, modulo ``full``; a window as large as its axis does not roll.
    """
    start = shift % full if size < full else 0
    if start + size <= full:
        return ((start, start + size),)
    return ((start, full), (0, start + size - full))


def centre(size: int, full: int) -> tuple[Interval, ...]:
    """Return the middle part of an axis: where a small kernel lies in a large one (both odd)."""
    return (((full - size) // 2, (full + size) // 2),)


def inside(inner: Mapping[str, Placement], outer: Mapping[str, Placement]) -> Boxes | None:
    """Say where a subnet lies within another one that was cut out of the same supernet.

    Parameters
    ----------
    inner, outer
        Where both lie in the supernet (``space.boxes``), one interval a dimension.

    Returns
    -------
    dict or None
        The boxes of ``inner`` in the tensors of ``outer``; None where it is not wholly there, or
        where a window of either rolls over.
    """
    found: Boxes = {}
    for name, placement in inner.items():
        if name not in outer:
            return None
        moved = []
        for mine, theirs in zip(placement, outer[name], strict=True):
            if not len(mine) == len(theirs) == 1:
                return None
            (start, stop), (low, high) = mine[0], theirs[0]
            if not low <= start <= stop <= high:
                return None
            moved.append(((start - low, stop - low),))
        found[name] = tuple(moved)
    return found


def placement_shape(placement: Placement) -> Shape:
    """Shape of the subnet's tensor: the intervals of a dimension lie one behind the other."""
    return tuple(sum(stop - start for start, stop in intervals) for intervals in placement)


def pieces(placement: Placement) -> Iterator[tuple[Slices, Slices]]:
    """Yield (slices of the supernet's tensor, slices of the subnet's tensor) for every box.

    A placement of single intervals has one box; two intervals in n dimensions make 2^n.
    """
    by_dimension: list[list[tuple[slice, slice]]] = []
    for intervals in placement:
        offset, parts = 0, []
        for start, stop in intervals:
            parts.append((slice(start, stop), slice(offset, offset + stop - start)))
            offset += stop - start
        by_dimension.append(parts)
    for combination in itertools.product(*by_dimension):
        yield tuple(outer for outer, _ in combination), tuple(inner for _, inner in combination)


class Cut(dict[str, Placement]):
    """The placements of one subnet, known to fit inside one supernet. Not to be changed.

    Checking boxes and turning them into slices costs a small subnet more than moving its numbers:
    whoever cuts out, unpacks and averages the same subnet in one round makes its cut once.

    Parameters
    ----------
    within
        The supernet's shapes.
    boxes
        Where each tensor lies, as intervals or, for leading parts, as a shape.

    Attributes
    ----------
    shapes
        The subnet's, in the order of the boxes.
    slices
        Each tensor's one box; None where several are joined.

    Raises
    ------
    ValueError
        Where a name is not the supernet's or a box reaches outside its tensor.
    """

    def __init__(self, within: Mapping[str, Shape], boxes: Mapping[str, Any]) -> None:
        super().__init__()
        self.within = within
        self.shapes: dict[str, Shape] = {}
        self.slices: dict[str, Slices | None] = {}
        for name, entry in boxes.items():
            if name not in within:
                raise ValueError(f"{name!r} is not a tensor of the supernet")
            limits = within[name]
            try:
                found = _placed(entry, limits)
            except TypeError:  # lists, as JSON has them, have no hash
                found = _placed(tuple(_frozen(part) for part in entry), limits)
            if found is None:
                raise ValueError(f"{name!r}: {entry} does not fit inside the supernet's {limits}")
            self[name], self.slices[name], self.shapes[name] = found

    def parts(self, name: str) -> Iterable[tuple[Slices, Any]]:
        """Give (slices of the supernet's tensor, index into the subnet's) for every box."""
        box = self.slices[name]
        return pieces(self[name]) if box is None else ((box, ...),)


@functools.lru_cache(maxsize=1 << 16)
def _placed(entry: tuple[Any, ...], limits: Shape) -> tuple[Placement, Slices | None, Shape] | None:
    """Return a tensor's placement, its one box and its shape; None where it does not fit.

    Kept, since the same few widths come again in every subnet, tensor and round.
    """
    placement = tuple(((0, part),) if isinstance(part, int) else part for part in entry)
    if len(placement) != len(limits):
        return None
    for intervals, size in zip(placement, limits, strict=True):
        if not all(0 <= start <= stop <= size for start, stop in intervals):
            return None
    single = all(len(intervals) == 1 for intervals in placement)
    box = tuple(slice(*intervals[0]) for intervals in placement) if single else None
    return placement, box, placement_shape(placement)


def _frozen(part: Any) -> Any:
    return part if isinstance(part, int) else tuple(map(tuple, part))


def resolve(within: Mapping[str, Shape], what: Architecture | Mapping[str, Any]) -> Cut:
    """Turn an architecture, shapes or boxes into a cut of a supernet with these shapes.

    A cut of such a supernet is returned as it is.

    Raises
    ------
    ValueError
        As :class:`Cut`.
    """
    if isinstance(what, Cut) and (what.within is within or what.within == within):
        return what
    return Cut(within, what.shapes_within(within) if isinstance(what, Architecture) else what)


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """Return name to shape of a state's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def extract(
    state: Mapping[str, torch.Tensor],
    what: Architecture | Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """Cut a subnet's tensors out of a supernet.

    Parameters
    ----------
    state
        The supernet's tensors by name.
    what
        An architecture (where its family can be located from shapes), ``space.shapes(arch)``,
        ``space.boxes(arch)`` or a :class:`Cut`.

    Returns
    -------
    dict
        The subnet's tensors in the order of ``what``: views of ``state`` wherever a tensor is one
        box, copies where several boxes are joined. Clone them before writing.
    """
    subnet: dict[str, torch.Tensor] = {}
    cut = resolve(shapes_of(state), what)
    for name, box in cut.slices.items():
        if box is not None:
            subnet[name] = state[name][box]
        else:
            joined = state[name].new_empty(cut.shapes[name])
            for outer, inner in pieces(cut[name]):
                joined[inner] = state[name][outer]
            subnet[name] = joined
    return subnet
