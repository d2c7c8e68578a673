"""Decoding: from a client's reply to its subnet's new weights."""

import math

import numpy as np
import torch

from superfednas.server.average.threads import spread
from superfednas.supernet import State
from superfednas.supernet.boxes import Cut
from superfednas.wire.flat import numel, sends_change, unpack


def incoming(
    state: State, cut: Cut, flat: np.ndarray, wire_dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """Return a subnet's new weights: views of a float32 reply, else new tensors.

    Parameters
    ----------
    state
        The supernet before the round, to which a change is added.
    cut
        The subnet's place in it.
    flat
        The reply. In a 16-bit format it holds the change made by training, and ``state`` keeps the
        bits that were never sent: a reply of zeros returns its weights exactly.
    wire_dtype
        The reply's number format.

    Raises
    ------
    ValueError
        As :func:`superfednas.wire.flat.unpack`.
    """
    received = unpack(flat, cut.shapes, wire_dtype)
    if not sends_change(wire_dtype):
        return received
    weights = unpack(np.empty(numel(cut.shapes), np.float32), cut.shapes)

    def add(name: str) -> None:
        for outer, inner in cut.parts(name):
            torch.add(state[name][outer], received[name][inner], out=weights[name][inner])

    spread(add, {name: math.prod(shape) for name, shape in cut.shapes.items()})
    return weights
