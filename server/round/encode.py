"""Serialisation of subnets: one gather copy each, into a buffer kept from round to round."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from superfednas.server.average.threads import Tile, spread, tiles
from superfednas.supernet import State
from superfednas.supernet.boxes import Boxes, Cut, resolve, shapes_of
from superfednas.wire.flat import arrays_of, numel, numpy_dtype, unpack
from superfednas.wire.npy import flat_fields
from superfednas.wire.order import SUBNET


class Outgoing:
    """Turn subnets into the arrays of messages.

    The first write into fresh memory is slow, so all subnets pass through one buffer, as large as
    the largest so far.

    Parameters
    ----------
    wire_dtype
        The number format of the flat array.
    """

    def __init__(self, wire_dtype: str) -> None:
        self._wire_dtype = wire_dtype
        self._buffer = np.empty(0, numpy_dtype(wire_dtype))

    def record(self, state: State, boxes: Boxes) -> ArrayRecord:
        """Return the record of a subnet's weights, extracted from ``state``.

        Its boxes are checked, unless they are a :class:`superfednas.supernet.boxes.Cut`.
        """
        return next(self.records(state, [boxes]))

    def records(self, state: State, subnets: Iterable[Boxes]) -> Iterator[ArrayRecord]:
        """Return one record per subnet, all from the same ``state``, as :meth:`record`."""
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
    """Return a supernet's tensors in the form that copies fastest.

    That is numpy, which takes a third of torch's time for a small tensor but cannot convert.
    """
    if wire_dtype != "float32" or any(t.dtype != torch.float32 for t in state.values()):
        return state
    return {name: tensor.numpy() for name, tensor in state.items()}


def _copy(source: Mapping[str, Any], cut: Cut, flat: np.ndarray, wire_dtype: str) -> None:
    if isinstance(next(iter(source.values()), None), np.ndarray):
        places: Mapping[str, Any] = arrays_of(flat, cut.shapes)
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
