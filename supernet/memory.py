"""Keep freed memory for the next round: to write into fresh memory costs more than what is written.

glibc gives large blocks back to the system when they are freed. A round asks for the same sizes
again, and the system then hands out pages that it must find and clear first: on the machine of
``benchmarks/results/round-overhead.md`` that was seven eighths of the time of serialising messages
and a tenth of a large subnet's training.
"""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1
# Older versions of glibc refuse more than the second.
_BLOCKS = (1 << 30, 1 << 25)


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep what it has freed; its size stays at its peak.

    Returns
    -------
    bool
        Whether the C library could be told. Others than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    blocks = any(mallopt(_MMAP_THRESHOLD, size) for size in _BLOCKS)
    return bool(mallopt(_TRIM_THRESHOLD, _LARGEST)) and blocks
