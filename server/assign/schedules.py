"""Schedules over rounds: MaxNet's β (SuperFedNAS, §4.3) and the learning rate.

A schedule is a function of the round, counted from 0. It starts at ``start``, reaches ``end`` after
``rounds`` and stays there.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def cosine(start: float, end: float, rounds: float) -> Schedule:
    """Half a cosine: slow, fast, slow. The paper's choice for β.

    Returns
    -------
    Schedule
        ``t -> end + (start - end) · ½(1 + cos(π · min(t, rounds) / rounds))``.
    """
    return lambda t: end + (start - end) * 0.5 * (1 + math.cos(math.pi * _share(t, rounds)))


def linear(start: float, end: float, rounds: float) -> Schedule:
    """Return a straight line, ``t -> start + (end - start) · min(t, rounds) / rounds``."""
    return lambda t: start + (end - start) * _share(t, rounds)


def constant(start: float, end: float | None = None, rounds: float | None = None) -> Schedule:
    """Return ``start`` forever; the other two exist so that schedules are interchangeable."""
    return lambda t: start


def warmed_up(then: Schedule, start: float, rounds: int) -> Schedule:
    """Rise in equal steps to ``start`` over the first rounds, then follow ``then`` from its 0.

    FedSup's recipe: 20 rounds, then a cosine (Kim and Yun, §4.1).
    """
    return lambda t: start * (t + 1) / rounds if t < rounds else then(t - rounds)


def _share(t: float, rounds: float) -> float:
    return min(t, rounds) / rounds if rounds > 0 else 1.0


SCHEDULES: dict[str, Callable[[float, float, float], Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}
