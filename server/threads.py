"""Spread tensors over a few threads of our own.

torch's threads meet after every operation: where one of them has no core, as beside clients on the
same machine, all others wait for it, and a merge takes ten times as long
(``benchmarks/results/merge-extract.md``). These take one tensor after the other and meet once a
subnet.
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

_MOST = 8  # more do not make memory faster
_WORTH = 1 << 22  # numbers for which a thread more is woken


def spread(
    work: Callable[[str], object], sizes: Mapping[str, int], most: int | None = None
) -> None:
    """Call ``work`` with every name, the largest first, on as many threads as pay.

    Parameters
    ----------
    work
        Must not depend on the order of the names.
    sizes
        Numbers behind every name.
    most
        Threads; by default the processors of this process, but no more than 8.
    """
    limit = min(_MOST, _processors()) if most is None else most
    threads = min(limit, sum(sizes.values()) // _WORTH)
    with _one_torch_thread():
        if threads < 2:
            for name in sizes:
                work(name)
            return
        todo = collections.deque(sorted(sizes, key=sizes.__getitem__, reverse=True))

        def take() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    work(todo.popleft())

        others = [_pool().submit(take) for _ in range(threads - 1)]
        try:
            take()
        finally:
            for other in others:
                other.result()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # which a container or taskset has made fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        _MOST - 1, thread_name_prefix="merge", initializer=torch.set_num_threads, initargs=(1,)
    )
