"""Axes: what the dimensions of a network's tensors are, and which part of each a subnet holds.

A dimension that one layer writes and others read is one axis, named once. From the axes of a subnet
and of the supernet follow shapes, boxes, windows that roll, and which entries may change places.
What is chosen of a network without any geometry is a :class:`Trait`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch

from superfednas.supernet.architecture import Shape
from superfednas.supernet.boxes import Boxes, Interval, centre, window
from superfednas.supernet.chain import FLOAT_BYTES


class Kind(Enum):
    """How a smaller network's part of an axis lies in a larger one's."""

    CHANNELS = "channels"
    """Entries of equal rights: the leading part, or a window that rolls over the end."""
    ORDERED = "ordered"
    """Entries with a meaning of their own (classes, pixels): the leading part, never moved."""
    KERNEL = "kernel"
    """Places around a middle: the centre, never moved."""


class Axis(NamedTuple):
    """One axis of a network.

    Parameters
    ----------
    name
        The same for every dimension that it is: ``stage1.out`` where all of a stage's blocks add
        to one sum.
    size
        Entries that the network has of it.
    kind
        How they lie in the supernet's.
    """

    name: str
    size: int
    kind: Kind = Kind.CHANNELS


Axes = dict[str, tuple[Axis, ...]]
"""Name of a tensor to the axis of each of its dimensions, in ``state_dict`` order."""


@dataclass(frozen=True)
class Trait:
    """A choice without geometry: the bits that a layer's weights have, the N of its N:M sparsity.

    It moves no tensor, so a network of 4 bits trains the same weights as one of 8.

    Parameters
    ----------
    level
        How much it is: a network lies inside another one only where none of its traits is at a
        higher level.
    tensors
        The tensors that it is a trait of.
    share
        What these take in a file, as a share of float32's bytes.
    """

    level: float
    tensors: tuple[str, ...] = ()
    share: float = 1.0


def shapes_of_axes(axes: Axes) -> dict[str, Shape]:
    """Return name to shape."""
    return {name: tuple(axis.size for axis in dimensions) for name, dimensions in axes.items()}


def boxes_of_axes(axes: Axes, whole: Axes, shift: int = 0) -> Boxes:
    """Place a subnet in the supernet.

    Parameters
    ----------
    axes, whole
        Of the subnet, and of the supernet.
    shift
        Entries by which every window over channels is moved.
    """
    boxes: Boxes = {}
    known: dict[tuple[str, int], tuple[Interval, ...]] = {}  # most axes are many tensors'
    for name, dimensions in axes.items():
        placement = []
        for axis, full in zip(dimensions, whole[name], strict=True):
            held = known.get((axis.name, full.size))
            if held is None:
                held = known[axis.name, full.size] = _held(axis, full.size, shift)
            placement.append(held)
        boxes[name] = tuple(placement)
    return boxes


def _held(axis: Axis, full: int, shift: int) -> tuple[Interval, ...]:
    if axis.kind is Kind.KERNEL:
        return centre(axis.size, full)
    return window(axis.size, full, shift if axis.kind is Kind.CHANNELS else 0)


def axes_by_name(axes: Axes) -> dict[str, Axis]:
    """Return every axis of a network once, in the order of its tensors."""
    return {axis.name: axis for dimensions in axes.values() for axis in dimensions}


def permuted(
    state: Mapping[str, torch.Tensor], axes: Axes, name: str, order: Iterable[int]
) -> dict[str, torch.Tensor]:
    """Return a network's tensors with the entries of one axis in another order, wherever it is.

    Over channels that is the same network: it answers alike, as far as sums of floats in another
    order do (with norm groups, where these stay together).
    """
    index = torch.tensor(list(order))
    moved = dict(state)
    for tensor, dimensions in axes.items():
        for dimension, axis in enumerate(dimensions):
            if axis.name == name:
                moved[tensor] = moved[tensor].index_select(dimension, index)
    return moved


def lies_within(inner: Mapping[str, Trait], outer: Mapping[str, Trait]) -> bool:
    """Say whether a network's traits are all there in another one, at no lower level."""
    return all(name in outer and trait.level <= outer[name].level for name, trait in inner.items())


def weight_bytes(shapes: Mapping[str, Shape], traits: Mapping[str, Trait]) -> int:
    """Return what weights take in a file: whole bytes a tensor, float32 but for their traits."""
    each = dict.fromkeys(shapes, float(FLOAT_BYTES))
    for trait in traits.values():
        for name in trait.tensors:
            each[name] *= trait.share
    return sum(math.ceil(each[name] * math.prod(shape)) for name, shape in shapes.items())
