"""Durations of calls on this device: measured in turns, many times, judged by the fastest sample.

Whatever disturbs a machine (other processes, interrupts, throttling) comes and goes over seconds
and only ever adds time. So everything to be compared is visited in turn, pass after pass, and the
fastest sample counts, as in the standard library's ``timeit``. The median and the spread show how
much the machine was disturbed.

This needs uninterrupted samples, and on a busy machine calls longer than some milliseconds have
none. The clock ``cpu`` counts only the time during which the calling thread had a core: for a
single thread on an idle machine's CPU it equals ``wall``; on a busy machine it is the better
choice.
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
        The fastest sample: what the device needs when undisturbed.
    median_ms
        Median of all samples.
    spread_ms
        The distance between their quartiles.
    samples
        Their number.
    """

    fastest_ms: float
    median_ms: float
    spread_ms: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Summarise samples, each in seconds per call."""
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
        Each returns a call to time. They are called again at every visit, so that a call's weights
        and inputs are in memory only while it is timed.
    seconds
        Approximate total duration, by ``clock``: the first pass determines how many more fit. There
        are at least 3 passes, however long they take, and at most 100.
    synchronise
        Waits for an asynchronous device; called before the clock is read.
    clock
        Returns seconds.
    progress
        Called after every visit with the numbers of visits made and planned.

    Returns
    -------
    list
        One timing per maker.
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
    """Warm up, then take a few samples, each in seconds per call."""

    def sample(calls: int) -> float:
        start = clock()
        for _ in range(calls):
            call()
        synchronise()
        return (clock() - start) / calls

    took = sample(1)
    if took < _VISIT:  # the first call may have compiled kernels, the second has not
        took = sample(1)
    took = max(took, 1e-9)
    calls = math.ceil(_SAMPLE / took)
    count = min(max(int(_VISIT / (calls * took)), 1), _SAMPLES)
    return [sample(calls) for _ in range(count)]


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Let torch use this many threads per operation within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """Let glibc keep the memory it has taken from the system, for the rest of this process.

    By default it may return the memory of activations after every call and take it again, page by
    page, at the next; whether it does depends on what the process has allocated before. The same
    subnet was seen to take 9.7 ms in one process and 5.9 ms in another. Blocks larger than 32 MiB
    are still mapped anew at every call. Deployed programs get the same effect with
    ``MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=33554432`` in their environment.
    Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
