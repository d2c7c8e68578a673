"""Turn what a client sends back into its subnet's new weights."""

import math

import numpy as np
import torch

from server.threads import spread
from supernet import State
from supernet.slicing import Cut
from supernet.wire import numel, sends_change, unpack


def incoming(
    state: State, cut: Cut, flat: np.ndarray, wire_dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """Return a subnet's new weights: views of a float32 reply, else tensors of their own.

    Parameters
    ----------
    state
        The supernet that a change is added to: the one before the round.
    cut
        Where the subnet lies in it.
    flat
        The reply. In a format of 16 bits it holds what training changed, and ``state`` keeps the
        bits that never travelled: a reply of zeros gives its weights back exactly.
    wire_dtype
        The reply's number format.

    Raises
    ------
    ValueError
        As :func:`supernet.wire.unpack`.
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
