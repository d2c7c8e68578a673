"""Turn what a client sends back into its subnet's new weights."""

import math

import numpy as np
import torch

from server.threads import spread
from supernet import State
from supernet.slicing import Cut
from supernet.wire import numel, sends_change, unpack


class Incoming:
    """Read replies; those of 16 bits through one kept buffer as large as the largest of them.

    Parameters
    ----------
    wire_dtype
        The number format of the flat array.
    """

    def __init__(self, wire_dtype: str) -> None:
        self._wire_dtype = wire_dtype
        self._buffer = np.empty(0, np.float32)

    def weights(
        self, state: State, cut: Cut, flat: np.ndarray, *, held: bool
    ) -> dict[str, torch.Tensor]:
        """Return a subnet's new weights.

        Parameters
        ----------
        state
            The supernet that a change is added to: the one before the round.
        cut
            Where the subnet lies in it.
        flat
            The reply. In a format of 16 bits it holds what training changed, and ``state`` keeps
            the bits that never travelled: a reply of zeros gives its weights back exactly.
        held
            Whether the weights must outlast the next call. Otherwise they lie in the buffer.

        Raises
        ------
        ValueError
            As :func:`supernet.wire.unpack`.
        """
        received = unpack(flat, cut.shapes, self._wire_dtype)
        if not sends_change(self._wire_dtype):
            return received
        length = numel(cut.shapes)
        if held:
            whole = np.empty(length, np.float32)
        else:
            if length > self._buffer.size:
                self._buffer = np.empty(length, np.float32)
            whole = self._buffer[:length]
        weights = unpack(whole, cut.shapes)

        def add(name: str) -> None:
            for outer, inner in cut.parts(name):
                change = received[name][inner]
                torch.add(state[name][outer], change, out=weights[name][inner])

        spread(add, {name: math.prod(shape) for name, shape in cut.shapes.items()})
        return weights
