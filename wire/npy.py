"""A flat array as the bytes that Flower sends: numpy's file format, without extra copies.

Flower writes an array into a growing buffer and reads it back into fresh memory, piece by piece.
Both cost several times as much as the copy. This module writes the same bytes, and reads an array
as a view of them.
"""

import functools
import io
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

FlatFields = tuple[str, tuple[int, ...], str, bytes]


@functools.lru_cache(maxsize=1024)
def header(dtype: np.dtype, length: int) -> bytes:
    """Return what ``np.save`` writes before the numbers of a flat array."""
    written = io.BytesIO()
    what = {
        "descr": npy_format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length,),
    }
    npy_format.write_array_header_1_0(written, what)
    return written.getvalue()


def flat_size(dtype: np.dtype, length: int) -> int:
    """Return a flat array as the bytes that are sent."""
    return len(header(dtype, length)) + length * dtype.itemsize


def flat_fields(flat: np.ndarray) -> FlatFields:
    """Return dtype, shape, kind and data of a flat array, as Flower's ``Array`` takes them."""
    numbers = np.ascontiguousarray(flat).view(np.uint8).data
    data = b"".join((header(flat.dtype, flat.size), numbers))
    return str(flat.dtype), flat.shape, "numpy.ndarray", data


def flat_view(data: bytes, dtype: np.dtype) -> np.ndarray | None:
    """Return a flat array as a read-only view of its bytes.

    None if they differ in any byte from what ``np.save`` writes: untrusted headers are not parsed.
    """
    length = (len(data) - len(header(dtype, 0))) // dtype.itemsize
    start = header(dtype, max(0, length))  # as long as the header of an empty array: numpy pads it
    if not data.startswith(start) or len(data) != len(start) + length * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype, offset=len(start))


def flat_numbers(array: Any, dtype: np.dtype) -> Any:
    """Return what a Flower ``Array`` holds, as a view if it is a flat array of ``dtype``.

    For anything else, numpy's reader decides what is raised.
    """
    if array.stype == "numpy.ndarray" and isinstance(array.data, bytes):
        view = flat_view(array.data, dtype)
        if view is not None:
            return view
    return array.numpy()
