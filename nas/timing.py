"""How long calls take on this device: in turns, many times over, told by the fastest sample.

Whatever disturbs a machine (other processes, interrupts, throttling) comes and goes over seconds
and only ever adds time. So all that is to be compared is visited in turn, pass after pass, and the
fastest sample counts, as in the standard library's ``timeit``. The median and the spread beside it
say how undisturbed the machine was.

That needs samples that nothing interrupted, and on a busy machine calls of more than some
milliseconds have none. The clock ``cpu`` counts only the time in which the calling thread had a
core: for one thread on the CPU of an idle machine the same as ``wall``, on a busy one the better.
"""

import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

Clock = Callable[[], float]
Call = Callable[[], object]
Progress = Callable[[int, int], object]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}
_SAMPLE = 2e-4  # seconds: a thousand times the resolution of a coarse clock
_VISIT = 2e-2
_SAMPLES = 5
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LEAST_PASSES, _MOST_PASSES = 3, 100


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call.

    Parameters
    ----------
    fastest_ms
        Of the fastest sample: what the device needs when nothing disturbs it.
    median_ms
        Median of all samples.
    spread_ms
        Distance between their quartiles.
    samples
        Their number.
    """

    fastest_ms: float
    median_ms: float
    spread_ms: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Sum up samples, each in seconds a call."""
        low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
        return cls(1e3 * min(seconds), 1e3 * median, 1e3 * (high - low), len(seconds))


def timed(
    makers: Sequence[Callable[[], Call]],
    *,
    seconds: float,
    synchronise: Call = lambda: None,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> list[Timing]:
    """Time several calls, in turns.

    Parameters
    ----------
    makers
        Each returns a call to time; asked anew at every visit, so that what a call needs (weights,
        inputs) is held in memory only while it is timed.
    seconds
        About how long to measure in all, by ``clock``: the first pass says how many more fit. At
        least 3 are made, however long they take, and at most 100.
    synchronise
        Waits for a device that works on its own; called before the clock is read.
    clock
        Returns seconds.
    progress
        Called after every visit with the visits made and those planned.

    Returns
    -------
    list
        One timing a maker.
    """
    samples: list[list[float]] = [[] for _ in makers]
    started = clock()
    passes, planned = 0, _LEAST_PASSES
    while passes < planned:
        for number, make in enumerate(makers):
            samples[number] += _visit(make(), synchronise, clock)
            if progress is not None:
                progress(passes * len(makers) + number + 1, planned * len(makers))
        passes += 1
        if passes == 1:
            fit = int(seconds / max(clock() - started, 1e-9))
            planned = min(max(fit, _LEAST_PASSES), _MOST_PASSES)
    return [Timing.of(found) for found in samples]


def _visit(call: Call, synchronise: Call, clock: Clock) -> list[float]:
    """Warm up, then take a few samples, each in seconds a call."""

    def sample(calls: int) -> float:
        start = clock()
        for _ in range(calls):
            call()
        synchronise()
        return (clock() - start) / calls

    took = sample(1)
    if took < _VISIT:  # the first call may have compiled kernels: the second says how long one is
        took = sample(1)
    took = max(took, 1e-9)
    calls = math.ceil(_SAMPLE / took)
    count = min(max(int(_VISIT / (calls * took)), 1), _SAMPLES)
    return [sample(calls) for _ in range(count)]


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads an operation; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """Let glibc keep the memory that it has taken from the system, for the rest of this process.

    By default it may give the memory of activations back after every call, and take it anew, page
    by page, at the next; whether it does hangs on what the process has allocated before. The same
    network was seen to take 9.7 ms in one process and 5.9 ms in another. What is larger than 32 MiB
    is mapped anew at every call, as always. Deployed programs get the same by
    ``MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=33554432`` in their environment.
    Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
