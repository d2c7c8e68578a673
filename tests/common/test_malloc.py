"""Freed memory is kept: the second time, nothing fresh is touched."""

import subprocess
import sys

import pytest

from superfednas.common.malloc import keep_freed_memory

COUNT = """
import resource, sys
import numpy as np
from superfednas.common.malloc import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()

def use():
    return [np.full(3 << 20, number, np.uint8).tobytes() for number in range(8)]

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_what_was_freed_is_used_again() -> None:
    """24 MB are 6,000 pages."""
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", COUNT, how], text=True))
        for how in ("keep", "free")
    }
    assert faults["keep"] < 100 < faults["free"]
