"""Serialise subnets: one gather copy each, into a buffer that is kept from round to round."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from server.threads import Tile, spread, tiles
from supernet import Shape, State
from supernet.npy import flat_fields
from supernet.slicing import Boxes, Cut, resolve, shapes_of
from supernet.wire import SUBNET, numel, numpy_dtype, unpack


class Outgoing:
    """Turn subnets into what a message carries.

    Fresh memory is slow to write first, so all pass through one buffer as large as the largest that
    has been asked for.

    Parameters
    ----------
    wire_dtype
        The number format of the flat array.
    """

    def __init__(self, wire_dtype: str) -> None:
        self._wire_dtype = wire_dtype
        self._buffer = np.empty(0, numpy_dtype(wire_dtype))

    def record(self, state: State, boxes: Boxes) -> ArrayRecord:
        """Return the record of a subnet's weights, cut out of ``state``.

        Its boxes are checked, unless they are a :class:`supernet.slicing.Cut`.
        """
        return next(self.records(state, [boxes]))

    def records(self, state: State, subnets: Iterable[Boxes]) -> Iterator[ArrayRecord]:
        """Return one record a subnet, all of the same ``state``, as :meth:`record`."""
        shapes, source = shapes_of(state), _readable(state, self._wire_dtype)
        for boxes in subnets:
            cut = resolve(shapes, boxes)
            length = numel(cut.shapes)
            if length > self._buffer.size:
                self._buffer = np.empty(length, self._buffer.dtype)
            flat = self._buffer[:length]
            _copy(source, cut, flat, self._wire_dtype)
            yield ArrayRecord({SUBNET: Array(*flat_fields(flat))})


def gather(state: State, cut: Cut, flat: np.ndarray, wire_dtype: str = "float32") -> None:
    """Copy a subnet's tensors into a flat array of the right length and format."""
    _copy(_readable(state, wire_dtype), cut, flat, wire_dtype)


def _readable(state: State, wire_dtype: str) -> Mapping[str, Any]:
    """Return a supernet's tensors as what copies fastest.

    That is numpy, which takes a third of torch's time for a small tensor, but cannot convert.
    """
    if wire_dtype != "float32" or any(t.dtype != torch.float32 for t in state.values()):
        return state
    return {name: tensor.numpy() for name, tensor in state.items()}


def _copy(source: Mapping[str, Any], cut: Cut, flat: np.ndarray, wire_dtype: str) -> None:
    if isinstance(next(iter(source.values()), None), np.ndarray):
        places: Mapping[str, Any] = _parts(flat, cut.shapes)
    else:
        places = unpack(flat, cut.shapes, wire_dtype)

    def place(tile: Tile) -> None:
        name, low, high = tile
        box = cut.slices[name]
        if box and high - low < cut.shapes[name][0]:
            first = box[0].start
            places[name][low:high] = source[name][(slice(first + low, first + high), *box[1:])]
        elif low == 0:  # whole; several boxes are not cut into rows
            for outer, inner in cut.parts(name):
                places[name][inner] = source[name][outer]

    spread(place, tiles(cut.shapes))


def _parts(flat: np.ndarray, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Return the places of tensors in a flat array."""
    places, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        places[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return places
