"""Boxes: where a subnet's tensors lie inside the supernet's, and how to cut them out.

A *placement* says, for one tensor, which intervals of every dimension of the supernet's tensor a
subnet holds: one interval by default (a prefix; the centre of a kernel), two where a window rolls
over the end. Depth falls out of the names, width out of the placements. Nothing is stored per
element.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from supernet.architecture import Architecture, Shape

Interval = tuple[int, int]
Placement = tuple[tuple[Interval, ...], ...]
Boxes = dict[str, Placement]
Slices = tuple[slice, ...]


def prefix_boxes(shapes: Mapping[str, Shape]) -> Boxes:
    """Place every tensor at the leading part of each dimension (the default of all families)."""
    return {name: tuple(((0, size),) for size in shape) for name, shape in shapes.items()}


def placement_shape(placement: Placement) -> Shape:
    """Shape of the subnet's tensor: the intervals of a dimension lie one behind the other."""
    return tuple(sum(stop - start for start, stop in intervals) for intervals in placement)


def single_box(placement: Placement) -> Slices | None:
    """Return a placement's slices of the supernet's tensor where it has one box, else None."""
    if any(len(intervals) != 1 for intervals in placement):
        return None
    return tuple(slice(start, stop) for ((start, stop),) in placement)


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


def resolve(
    state: Mapping[str, torch.Tensor],
    what: Architecture | Mapping[str, Any],
) -> Boxes:
    """Turn an architecture, shapes or boxes into boxes that fit inside ``state``.

    Raises
    ------
    ValueError
        Where a name is not the supernet's or a box reaches outside its tensor.
    """
    if isinstance(what, Architecture):
        what = what.shapes_within({name: tuple(value.shape) for name, value in state.items()})
    boxes: Boxes = {}
    for name, entry in what.items():
        if name not in state:
            raise ValueError(f"{name!r} is not a tensor of the supernet")
        shape = tuple(state[name].shape)
        placement: Placement = tuple(
            ((0, size),) if isinstance(size, int) else tuple(size) for size in entry
        )
        inside = len(placement) == len(shape) and all(
            0 <= start <= stop <= size
            for intervals, size in zip(placement, shape, strict=True)
            for start, stop in intervals
        )
        if not inside:
            raise ValueError(f"{name!r}: {entry} does not fit inside the supernet's {shape}")
        boxes[name] = placement
    return boxes


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
        An architecture (where its family can be located from shapes), ``space.shapes(arch)`` or
        ``space.boxes(arch)``.

    Returns
    -------
    dict
        The subnet's tensors in the order of ``what``: views of ``state`` wherever a tensor is one
        box, copies where several boxes are joined. Clone them before writing.
    """
    subnet: dict[str, torch.Tensor] = {}
    for name, placement in resolve(state, what).items():
        box = single_box(placement)
        if box is not None:
            subnet[name] = state[name][box]
        else:
            joined = state[name].new_empty(placement_shape(placement))
            for outer, inner in pieces(placement):
                joined[inner] = state[name][outer]
            subnet[name] = joined
    return subnet
