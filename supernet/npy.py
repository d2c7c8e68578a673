"""A flat array as the bytes that Flower carries: numpy's file format, without detours.

Flower writes an array into a buffer that grows and reads it back into fresh memory, by parts. Both
cost several times what the copy does. What is written here is the same to the byte; what is read is
a view of the bytes.
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


def flat_fields(flat: np.ndarray) -> FlatFields:
    """Return dtype, shape, kind and data of a flat array, as Flower's ``Array`` takes them."""
    numbers = np.ascontiguousarray(flat).view(np.uint8).data
    data = b"".join((header(flat.dtype, flat.size), numbers))
    return str(flat.dtype), flat.shape, "numpy.ndarray", data


def flat_view(data: bytes, dtype: np.dtype) -> np.ndarray | None:
    """Return a flat array as a view of its bytes, which cannot be written to.

    None where they are not to the byte what ``np.save`` writes: nothing of a stranger's is parsed.
    """
    length = (len(data) - len(header(dtype, 0))) // dtype.itemsize
    start = header(dtype, max(0, length))  # as long as that of no numbers: numpy fills it up
    if not data.startswith(start) or len(data) != len(start) + length * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype, offset=len(start))


def flat_numbers(array: Any, dtype: np.dtype) -> Any:
    """Return what a Flower ``Array`` holds: where that is a flat array of ``dtype``, a view of it.

    Whatever numpy's reader raises for anything else is raised here.
    """
    if array.stype == "numpy.ndarray" and isinstance(array.data, bytes):
        view = flat_view(array.data, dtype)
        if view is not None:
            return view
    return array.numpy()
