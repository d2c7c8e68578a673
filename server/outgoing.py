"""Serialise subnets: one gather copy each, into a buffer that is kept from round to round."""

import numpy as np
from flwr.app import Array, ArrayRecord

from supernet import Architecture, SearchSpace, State, extract
from supernet.npy import flat_fields
from supernet.wire import SUBNET, numpy_dtype, pack


class Outgoing:
    """Turn subnets into what a message carries.

    Fresh memory is slow to write first, so all pass through one buffer as large as the largest that
    has been asked for.

    Parameters
    ----------
    space
        Says where a subnet's tensors lie.
    wire_dtype
        The number format of the flat array.
    """

    def __init__(self, space: SearchSpace, wire_dtype: str) -> None:
        self._space, self._wire_dtype = space, wire_dtype
        self._buffer = np.empty(0, numpy_dtype(wire_dtype))

    def record(self, state: State, arch: Architecture) -> ArrayRecord:
        """Return the record of an architecture's weights, cut out of ``state``."""
        tensors = extract(state, self._space.boxes(arch))
        length = sum(tensor.numel() for tensor in tensors.values())
        if length > self._buffer.size:
            self._buffer = np.empty(length, self._buffer.dtype)
        flat = pack(tensors, self._wire_dtype, into=self._buffer[:length])
        return ArrayRecord({SUBNET: Array(*flat_fields(flat))})
