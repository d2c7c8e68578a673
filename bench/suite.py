"""All measures in order, each in its own process.

A measure begins with fresh memory and its own number of threads, and one that fails or runs out of
memory does not affect the others' figures.
"""

import importlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from superfednas.bench.figures import Effort, Figure

# Name to the module whose ``figures`` it is, and whether it takes minutes.
_MODULES = {
    "merge": ("superfednas.bench.merging", False),
    "rounds": ("superfednas.bench.rounds", False),
    "wire": ("superfednas.bench.messages", False),
    "training": ("superfednas.bench.loops", False),
    "gpu": ("superfednas.bench.gpu", False),
    "search": ("superfednas.bench.counting", False),
    "growth": ("superfednas.bench.growth", True),
    "ray": ("superfednas.bench.simulated", True),
}
MEASURES = tuple(_MODULES)


def chosen(effort: Effort, only: Sequence[str]) -> list[str]:
    """Return the measures to take: ``only`` these, else all of an effort, in order.

    Raises
    ------
    ValueError
        For a name that is not a measure.
    """
    for name in only:
        if name not in _MODULES:
            raise ValueError(f"--only {name}: must be one of {', '.join(MEASURES)}")
    if only:
        return [name for name in MEASURES if name in only]
    return [name for name, (_, long) in _MODULES.items() if effort == "full" or not long]


def take(name: str, effort: Effort) -> list[Figure]:
    """Take one measure in this process."""
    return _take(_MODULES[name][0], effort)


def _take(module: str, effort: Effort) -> list[Figure]:
    figures: Iterator[Figure] = importlib.import_module(module).figures(effort)
    return list(figures)


def take_apart(name: str, effort: Effort) -> list[Figure]:
    """Take one measure in a fresh process; if it fails, one figure says why."""
    fresh = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            return pool.submit(_take, _MODULES[name][0], effort).result()
    except BrokenProcessPool:
        reason = "its process was killed (too little memory?)"
    except Exception as error:  # noqa: BLE001 (one measure's failure is not the others')
        reason = f"{type(error).__name__}: {error}"
    return [Figure(name, name, "", None, f"not measured: {reason:.200}", "", failed=True)]
