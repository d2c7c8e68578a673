"""Costs of a subnet on a device, for one architecture or as tables over a whole chain."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from superfednas.nas.cost.cost import BUILT_IN, COSTS, Cost, Latency, LatencyModel
from superfednas.nas.front import Front, Tables, cheapest, pareto
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.chain import Chain


class NothingFits(ValueError):  # noqa: N818 (says what happened)
    """No subnet keeps the limits; the message and ``nearest`` give the nearest possible values.

    Parameters
    ----------
    message
        One sentence.
    nearest
        The lowest possible value of each limit that cannot be kept, alone or together with the
        others.
    """

    def __init__(self, message: str, nearest: Mapping[str, float]) -> None:
        super().__init__(message)
        self.nearest = dict(nearest)


class Costs:
    """Costs of the architectures of one space.

    Parameters
    ----------
    space
        The search space.
    latency
        For the cost ``latency``, which is not available without it.
    batch
        Images per batch for the latency.
    """

    def __init__(
        self, space: SearchSpace, latency: LatencyModel | None = None, batch: int = 1
    ) -> None:
        self.space = space
        self.latency = latency
        self._kinds = {**COSTS, "latency": Latency(latency, batch)}

    @property
    def names(self) -> tuple[str, ...]:
        """The available costs."""
        return tuple(n for n, cost in self._kinds.items() if cost.told or self.latency is not None)

    def kind(self, name: str) -> Cost:
        """Return the cost of a name; ``ValueError`` where there is none."""
        if name not in self._kinds:
            raise ValueError(f"cost {name!r}: must be one of {', '.join(self._kinds)}")
        return self._kinds[name]

    def own(self) -> dict[str, dict[str, Any]]:
        """Return how costs of the user's own are said, for whoever has them not at hand."""
        return {
            name: {"title": cost.title, "unit": cost.unit, "scale": cost.scale}
            for name, cost in self._kinds.items()
            if name not in BUILT_IN
        }

    def of(self, name: str, arch: Architecture) -> float:
        """Return one cost of an architecture."""
        return self.kind(name).of(self.space, arch)

    def all(self, arch: Architecture) -> dict[str, float]:
        """Return all available costs of an architecture."""
        return {name: self.of(name, arch) for name in self.names}

    def fits(self, arch: Architecture, limits: Mapping[str, float]) -> bool:
        """Return whether an architecture keeps all limits."""
        return all(self.of(name, arch) <= self._most(name, limits) for name in limits)

    def _most(self, name: str, limits: Mapping[str, float]) -> float:
        return self.kind(name).most(limits[name])

    # Over a chain

    def table(self, name: str) -> list[np.ndarray]:
        """Return for each segment (states, options) what it adds, ``base`` apart, or its peak."""
        return self.kind(name).table(self._chain())

    def base(self, name: str) -> float:
        """Return what every architecture costs in addition to the table."""
        return self.kind(name).base

    def allowed(self, limits: Mapping[str, float]) -> list[np.ndarray] | None:
        """Return which options the limits on peaks leave; None where there is no such limit."""
        left: list[np.ndarray] | None = None
        for name in limits:
            if self.kind(name).peak:
                room = self._most(name, limits) - self.base(name)
                kept = [table <= room for table in self.table(name)]
                left = kept if left is None else [a & b for a, b in zip(left, kept, strict=True)]
        return left

    def sums(self, limits: Mapping[str, float]) -> tuple[list[Tables], list[float]]:
        """Return the tables of all limited sums, and the limits of their sums."""
        names = [name for name in limits if not self.kind(name).peak]
        room = [self._most(name, limits) - self.base(name) for name in names]
        return [self.table(name) for name in names], room

    # What is possible at all

    def least(self, name: str) -> float:
        """Return the minimum of one cost over the whole space."""
        if self.space.chain is None:
            return self.of(name, self.space.smallest)
        if self.kind(name).peak:
            found, _ = self._least_peak(name, {})
            assert found is not None
            return found
        return self.base(name) + float(cheapest(self._chain(), self.table(name))[0][0])

    def most(self, name: str) -> float:
        """Return the cost of the largest architecture."""
        return self.of(name, self.space.largest)

    def check(self, limits: Mapping[str, float]) -> None:
        """Raise :class:`NothingFits` if no architecture keeps all limits.

        For a limit that cannot be kept, it gives the lowest possible value: of that cost alone or,
        if each could be kept alone, with the others kept (if these can be). If so many partial
        architectures compete that some had to be dropped, nothing is proven and nothing is raised.
        """
        if self.fits(self.space.smallest, limits):
            return
        alone = {name: self.least(name) for name in limits}
        broken = {n: least for n, least in alone.items() if least > self._most(n, limits)}
        if broken:
            said = ", ".join(self.kind(n).least_limit(v, limits[n]) for n, v in broken.items())
            raise NothingFits(
                f"no subnet of {self.space.name} is that small: the least possible is {said}",
                broken,
            )
        beside, proven = self._beside_the_others(limits)
        if not proven or any(least <= self._most(n, limits) for n, least in beside.items()):
            return
        said = " or ".join(self.kind(n).least_limit(v, limits[n]) for n, v in beside.items())
        hint = f"; with the others kept the least possible is {said}"
        raise NothingFits(
            f"no subnet of {self.space.name} keeps all limits together"
            + (hint if said else ", nor all but one of them"),
            beside,
        )

    def _beside_the_others(self, limits: Mapping[str, float]) -> tuple[dict[str, float], bool]:
        """Return the minimum of each cost with the other limits kept, if these can be kept.

        Also whether the minimum is proven, which it is not if partial architectures were dropped.
        """
        found: dict[str, float] = {}
        proven = True
        for name in limits:
            others = {n: most for n, most in limits.items() if n != name}
            if self.kind(name).peak:
                least, exact = self._least_peak(name, others)
            else:
                front = self._front([-table for table in self.table(name)], others)
                least = self.base(name) - float(front.score.max()) if len(front) else None
                exact = front.exact
            proven &= exact
            if least is not None:
                found[name] = least
        return found, proven

    def _least_peak(self, name: str, others: Mapping[str, float]) -> tuple[float | None, bool]:
        """Return the lowest peak under the other limits, and whether it is proven.

        By bisection. With equal scores only the cheapest compete, so partial architectures are
        seldom dropped; if some were dropped and nothing is found, a lower peak may be possible.
        """
        peaks, base = self.table(name), self.base(name)
        values = base + np.unique(np.concatenate([table.ravel() for table in peaks]))
        free = [np.zeros(table.shape) for table in peaks]
        front = self._front(free, others)
        if not len(front):
            return None, front.exact
        low, high, proven = 0, len(values) - 1, True
        while low < high:
            middle = (low + high) // 2
            front = self._front(free, {**others, name: float(values[middle])})
            if len(front):
                high = middle
            else:
                low, proven = middle + 1, proven and front.exact
        return float(values[low]), proven

    def _front(self, score: Tables, limits: Mapping[str, float]) -> Front:
        """Return architectures that keep the limits; the best score is among them."""
        tables, room = self.sums(limits)
        if not tables:
            tables, room = [[np.zeros(table.shape) for table in score]], [0.0]
        return pareto(self._chain(), score, tables, room, self.allowed(limits))

    def _chain(self) -> Chain:
        if self.space.chain is None:
            raise TypeError(f"the space {self.space.name!r} is no chain")
        return self.space.chain
