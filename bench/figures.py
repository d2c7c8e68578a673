"""Figures: results of measures, each a ratio to something measured in the same call."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Effort = Literal["quick", "normal", "full"]
EFFORTS: tuple[Effort, ...] = ("quick", "normal", "full")


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Parameters
    ----------
    measure
        The measure that it belongs to, as ``superfednas bench --only`` takes it.
    what, against
        What was measured, and what it is compared with.
    ratio
        Ours over the other's: of speeds, or of bytes if ``what`` says so. None: not measured.
    ours, other
        Both, with their units; if nothing was measured, ``ours`` says why.
    asked
        The limit that the ratio should keep, None without one.
    more
        Whether the ratio should be at least ``asked``; at most otherwise.
    failed
        Whether the measure raised or was killed.
    """

    measure: str
    what: str
    against: str
    ratio: float | None
    ours: str
    other: str
    asked: float | None = None
    more: bool = True
    failed: bool = False

    @property
    def kept(self) -> bool | None:
        """Whether the ratio keeps its limit; None without a limit or a measurement."""
        if self.asked is None or self.ratio is None:
            return None
        return self.ratio >= self.asked if self.more else self.ratio <= self.asked

    @property
    def limit(self) -> str:
        """The limit as text."""
        return "" if self.asked is None else f"{'≥' if self.more else '≤'} {self.asked:.3g}"


def seconds(action: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    turns: int,
    *,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of several alternatives that take turns.

    The first turn does not count, nor does the time of ``ready`` before each alternative.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, turns):
        # Every second turn runs backwards, so that the order favours none.
        for name in ways if turn % 2 == 0 else reversed(list(ways)):
            ready()
            found = seconds(ways[name])
            if turn >= 0:
                taken[name].append(found)
    return taken


def faster(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return how many times as fast ours is: the median of the ratios within each turn."""
    return statistics.median(other / our for our, other in zip(ours, others, strict=True))


def rate(call: Callable[[], object], least: float = 0.2) -> float:
    """Return the calls a second: the median of five stretches of at least so many seconds."""
    call()
    rates = []
    for _ in range(5):
        start, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < least:
            call()
            count += 1
        rates.append(count / passed)
    return statistics.median(rates)


def milliseconds(values: Sequence[float]) -> str:
    """Return the median of some seconds as text in milliseconds."""
    middle = 1e3 * statistics.median(values)
    return f"{middle:,.0f} ms" if middle >= 100 else f"{middle:.3g} ms"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use this many torch threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
