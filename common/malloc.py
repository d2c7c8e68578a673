"""Freed memory, kept for the next round: writing into fresh memory costs more than the writing.

glibc returns large blocks to the system when they are freed. Each round asks for the same sizes
again, and the system must then find and clear the pages it hands out: on the machine of
``benchmarks/results/round-overhead.md`` that was seven eighths of the time of serialising messages
and a tenth of a large subnet's training.
"""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1
# Older versions of glibc refuse values above the second.
_BLOCKS = (1 << 30, 1 << 25)


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees; its size stays at its peak.

    Returns
    -------
    bool
        Whether the C library accepted this. C libraries other than glibc are left as they are.
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
