"""The one flat array of a message: a subnet's tensors, one after another.

They are in ``state_dict`` order at ``wire-dtype``; a 16-bit reply holds the change made by training
(:func:`sends_change`). Both sides rebuild names, shapes and offsets from the architecture, so
nothing else is sent and nothing is pickled.
"""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from superfednas.supernet.architecture import Shape

# Only float32 is sent as numbers. The 16-bit formats are opaque to numpy, so that nothing can
# compute with them in transit: a mod would take bfloat16's bits for integers, and a change for
# weights.
_WIRE: dict[str, tuple[torch.dtype, np.dtype]] = {
    "float32": (torch.float32, np.dtype(np.float32)),
    "float16": (torch.float16, np.dtype("V2")),
    "bfloat16": (torch.bfloat16, np.dtype("V2")),
}
WIRE_DTYPES = tuple(_WIRE)
MASKED = "uint32"
"""Format of replies under secure aggregation; torch computes nothing with them."""


def numel(shapes: Mapping[str, Shape]) -> int:
    """Return how many numbers a flat array of these tensors holds."""
    return sum(map(math.prod, shapes.values()))


def arrays_of(flat: np.ndarray, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Return the tensors of a flat array as views."""
    found, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        found[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return found


def numpy_dtype(wire_dtype: str) -> np.dtype:
    """Return the dtype of a flat array at ``wire_dtype``, or :data:`MASKED`."""
    return np.dtype(np.uint32) if wire_dtype == MASKED else _WIRE[wire_dtype][1]


def sends_change(wire_dtype: str) -> bool:
    """Return whether a reply holds the change made by training instead of the new weights.

    In 16 bits it does: rounding is then relative to the change, and the server adds the change to
    its own float32 weights, which are never rounded. Whole weights in bfloat16 would lose every
    change below half a step (.2 to .4% of the weight).
    """
    return wire_dtype != "float32"


def pack(
    tensors: Mapping[str, torch.Tensor],
    wire_dtype: str = "float32",
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Write tensors one after another, in their order, into one flat array.

    Parameters
    ----------
    tensors
        The tensors.
    wire_dtype
        The number format of the array.
    into
        A flat array of the right length to write into; by default a new one.

    Raises
    ------
    ValueError
        As :func:`unpack`, for ``into``; also if it is read-only.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if into is None:
        into = np.empty(numel(shapes), numpy_dtype(wire_dtype))
    if not into.flags.writeable:
        raise ValueError("an array that cannot be written to holds no result")
    for name, view in unpack(into, shapes, wire_dtype).items():
        view.copy_(tensors[name].detach())
    return into


def unpack(
    flat: np.ndarray, shapes: Mapping[str, Shape], wire_dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """Return the tensors of a flat array as views into it.

    torch has no read-only tensors: views of a read-only array look writable.

    Raises
    ------
    ValueError
        If dtype, dimensions or length are not those of ``shapes`` at ``wire_dtype``.
    """
    number, expected = _WIRE[wire_dtype]
    if flat.ndim != 1 or flat.size != numel(shapes):
        raise ValueError(f"shape {flat.shape} in place of ({numel(shapes)},)")
    if flat.dtype != expected:
        raise ValueError(f"dtype {flat.dtype} in place of {expected} for wire-dtype {wire_dtype}")
    whole = _tensor(flat.view(np.uint8)).view(number)
    parts = torch.split_with_sizes(whole, list(map(math.prod, shapes.values())))
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, without torch's warning about read-only arrays."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
