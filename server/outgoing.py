"""Serialise subnets: one gather copy each, into a buffer that is kept from round to round."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from server.threads import spread
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
        cut = resolve(shapes_of(state), boxes)
        length = numel(cut.shapes)
        if length > self._buffer.size:
            self._buffer = np.empty(length, self._buffer.dtype)
        flat = self._buffer[:length]
        gather(state, cut, flat, self._wire_dtype)
        return ArrayRecord({SUBNET: Array(*flat_fields(flat))})


def gather(state: State, cut: Cut, flat: np.ndarray, wire_dtype: str = "float32") -> None:
    """Copy a subnet's tensors into a flat array of the right length and format."""
    source, places = _arrays(state, flat, cut.shapes, wire_dtype)

    def place(name: str) -> None:
        for outer, inner in cut.parts(name):
            places[name][inner] = source[name][outer]

    spread(place, {name: math.prod(shape) for name, shape in cut.shapes.items()})


def _arrays(
    state: State, flat: np.ndarray, shapes: Mapping[str, Shape], wire_dtype: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the supernet's tensors and their places in ``flat``, as what copies fastest.

    That is numpy, which takes a third of torch's time for a small tensor, but cannot convert.
    """
    if wire_dtype != "float32" or any(t.dtype != torch.float32 for t in state.values()):
        return state, unpack(flat, shapes, wire_dtype)
    places, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        places[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return {name: tensor.numpy() for name, tensor in state.items()}, places
