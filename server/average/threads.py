"""Threads for averaging: tensors are spread over a few threads of our own.

torch's threads synchronise after every operation: if one of them has no core, as when clients run
on the same machine, all others wait for it, and a merge takes ten times as long
(``benchmarks/results/merge-extract.md``). These threads take one tensor after another, large ones
in tiles, and synchronise once per subnet.
"""

import collections
import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from superfednas.supernet import Shape

T = TypeVar("T")
Tile = tuple[str, int, int]  # a tensor's name, its first row and the row after its last
_TILE = 1 << 20  # numbers; a tile read again soon is then still in the processor's cache
_MOST = 8  # more do not make memory faster
_WORTH = 1 << 22  # numbers per additional thread


def tiles(shapes: Mapping[str, Shape]) -> dict[Tile, int]:
    """Return every tensor as one tile, or as several of its rows if it is large, with their sizes.

    A scalar is one row.
    """
    found: dict[Tile, int] = {}
    for name, shape in shapes.items():
        size, rows = math.prod(shape), shape[0] if shape else 1
        if size <= _TILE:
            found[name, 0, rows] = size
            continue
        step = max(1, _TILE * rows // size)
        for low in range(0, rows, step):
            high = min(low + step, rows)
            found[name, low, high] = size // rows * (high - low)
    return found


def spread(work: Callable[[T], object], sizes: Mapping[T, int], most: int | None = None) -> None:
    """Call ``work`` with every key, the largest first, on as many threads as are useful.

    Parameters
    ----------
    work
        Must not depend on the order of the keys.
    sizes
        Numbers behind every key: a tensor's name, or a :data:`Tile`.
    most
        Threads; by default the processors of this process, but no more than 8.
    """
    limit = min(_MOST, _processors()) if most is None else most
    threads = min(limit, sum(sizes.values()) // _WORTH)
    with _one_torch_thread():
        if threads < 2:
            for key in sizes:
                work(key)
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
    if hasattr(os, "sched_getaffinity"):  # a container or taskset may have reduced them
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
