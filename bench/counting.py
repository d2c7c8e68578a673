"""Costs of counting and searching, each against what it replaces.

- ``macs`` and ``params`` in closed form against reading the module on torch's meta device
  (:func:`superfednas.supernet.space.count_macs`), which gives the same number.
- The exact search over all architectures of a space against predicting one architecture after the
  other with the same regression (256 are timed; the rest is that times their number).
- A prediction against measuring the same architecture on a few images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from superfednas.bench.figures import Effort, Figure, rate, torch_threads
from superfednas.bench.loops import pictures
from superfednas.nas.cost.costs import Costs
from superfednas.nas.engine.choose import search
from superfednas.nas.score.regression import Regression
from superfednas.nas.score.tallies import score
from superfednas.supernet import extract, load_space
from superfednas.supernet.space import count_macs


@dataclass(frozen=True)
class Rate:
    """A rate per second, and that of what it replaces."""

    what: str
    ours: float
    against: str
    other: float


def rates(name: str, *, measure: bool = True, least: float = 0.2) -> Iterator[Rate]:
    """Measure a space; without ``measure``, no subnet is measured on images.

    Every rate is the median of five stretches of at least ``least`` seconds.
    """
    space = load_space(name)
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(256)]
    turn = iter(range(10**12))
    read = rate(lambda: count_macs(space, archs[next(turn) % 256]), least)
    for what, count in (("`macs`", space.macs), ("`params`", space.params)):
        closed = rate(lambda: count(archs[next(turn) % 256]), least)  # noqa: B023 (called at once)
        yield Rate(f"{what} of an architecture of `{name}`", closed, "reading the module", read)
    noise = rng.normal(size=55)
    scores = {arch: space.macs(arch) ** 0.1 + n for arch, n in zip(archs[:55], noise, strict=True)}
    guess, costs = Regression(space, scores), Costs(space)
    limits = {"macs": space.macs(space.largest) / 2}
    exact = rate(lambda: search(guess, costs, limits), least)
    guesses = rate(lambda: guess(archs), least) * len(archs)
    best = f"the best of {space.size:,} networks under a limit"
    yield Rate(best, exact, "predicting each of them", guesses / space.size)
    if not measure:
        return
    shown = 360 if space.macs(space.largest) < 1e8 else 32
    data = pictures(shown, 32, 3)
    modules = []
    for arch in archs[:8]:
        modules.append(space.build(arch))
        modules[-1].load_state_dict(extract(space.init(0), space.boxes(arch)))
    images = rate(lambda: [score(m, data, data.train) for m in modules], least)
    what = f"predicting a network of `{name}`"
    yield Rate(what, guesses, f"measuring it on {shown} images", images * len(modules))


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure counting and searching."""
    with torch_threads(1):
        name = "resnet-tiny" if effort == "quick" else "resnet10-26"
        least = 0.01 if effort == "quick" else 0.2
        for found in rates(name, measure=effort == "full", least=least):
            yield Figure(
                "search",
                found.what,
                found.against,
                found.ours / found.other,
                said(found.ours),
                said(found.other),
            )


def said(each: float) -> str:
    """Return a rate as text: times a second, or seconds each if it is slow."""
    if each >= 1:
        return f"{each:,.0f} a second"
    return f"{1 / each:,.2g} s each" if each > 1e-3 else f"{1 / each / 3600:,.3g} h each"
