"""What a subnet costs a device, one network at a time or as tables over a whole chain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.exact import Front, Tables, cheapest, pareto
from supernet import Architecture, SearchSpace
from supernet.chain import Chain

BYTES = 4  # of a float32
FILE = 50_000
"""What an ONNX or safetensors file holds beside the weights (graph, card), at most, in bytes."""
_ROUNDING = 1e-9  # share by which one latency, added up in another order, may differ


@dataclass(frozen=True)
class CostKind:
    """How a cost is said."""

    title: str
    unit: str
    scale: float

    def say(self, value: float) -> str:
        """Return a value in its unit."""
        scaled = value / self.scale
        return f"{scaled:,.2f} {self.unit}" if scaled >= 1 else f"{scaled:.3g} {self.unit}"


COSTS = {
    "macs": CostKind("multiply-accumulates of one image", "MMACs", 1e6),
    "params": CostKind("parameters", "M parameters", 1e6),
    "bytes": CostKind("bytes of an exported file, float32, at most", "MB", 1e6),
    "memory": CostKind("peak bytes of activations, one image, float32", "kB", 1e3),
    "latency": CostKind("milliseconds a batch", "ms", 1.0),
}


class LatencyModel(Protocol):
    """Predicts milliseconds a batch (:class:`nas.latency.LatencyTable`)."""

    def predict(self, arch: Architecture, batch: int) -> float:
        """Return the predicted latency of one network."""
        ...

    def tables(self, chain: Chain, batch: int) -> list[np.ndarray]:
        """Return for each segment (states, options) what it adds."""
        ...

    def overhead(self, batch: int) -> float:
        """Return what is added once."""
        ...


class NothingFits(ValueError):  # noqa: N818 (says what happened)
    """No subnet keeps the limits; the message and ``nearest`` say what is possible.

    Parameters
    ----------
    message
        One sentence.
    nearest
        For each limit that alone, or beside the others, cannot be kept: its least possible value.
    """

    def __init__(self, message: str, nearest: Mapping[str, float]) -> None:
        super().__init__(message)
        self.nearest = dict(nearest)


class Costs:
    """Costs of the networks of one space.

    Parameters
    ----------
    space
        The search space.
    latency
        For the cost ``latency``; without it that cannot be asked.
    batch
        Images a batch whose latency counts.
    """

    def __init__(
        self, space: SearchSpace, latency: LatencyModel | None = None, batch: int = 1
    ) -> None:
        self.space = space
        self.latency = latency
        self.batch = batch

    @property
    def names(self) -> tuple[str, ...]:
        """The costs that can be told."""
        return tuple(name for name in COSTS if name != "latency" or self.latency is not None)

    def of(self, name: str, arch: Architecture) -> float:
        """Return one cost of a network."""
        if name == "macs":
            return self.space.macs(arch)
        if name == "params":
            return self.space.params(arch)
        if name == "bytes":
            return FILE + BYTES * self.space.params(arch)
        if name == "memory":
            return BYTES * self.space.activations(arch)
        if name == "latency":
            return self._latency().predict(arch, self.batch)
        raise ValueError(f"cost {name!r}: must be one of {', '.join(COSTS)}")

    def all(self, arch: Architecture) -> dict[str, float]:
        """Return every cost of a network that can be told."""
        return {name: self.of(name, arch) for name in self.names}

    def fits(self, arch: Architecture, limits: Mapping[str, float]) -> bool:
        """Say whether a network keeps all limits."""
        return all(self.of(name, arch) <= _most(name, limits) for name in limits)

    # Over a chain

    def table(self, name: str) -> list[np.ndarray]:
        """Return a cost that is a sum, for each segment (states, options), and ``base`` apart."""
        chain = self._chain()
        blocks = chain.inventory.blocks
        if name == "latency":
            return self._latency().tables(chain, self.batch)
        if name == "macs":
            return chain.inventory.totals(np.array([float(b.macs) for b in blocks]))
        if name in ("params", "bytes"):
            scale = BYTES if name == "bytes" else 1
            return chain.inventory.totals(np.array([float(scale * b.params) for b in blocks]))
        raise ValueError(f"cost {name!r} is no sum over blocks")

    def base(self, name: str) -> float:
        """Return what every network costs beside the table."""
        if name == "bytes":
            return float(FILE)
        return self._latency().overhead(self.batch) if name == "latency" else 0.0

    def peaks(self) -> list[np.ndarray]:
        """Return each option's own peak of activation bytes."""
        inventory = self._chain().inventory
        return inventory.peaks(np.array([BYTES * b.activations for b in inventory.blocks]))

    def allowed(self, limits: Mapping[str, float]) -> list[np.ndarray] | None:
        """Return which options the limit on memory leaves; None where there is no such limit."""
        if "memory" not in limits:
            return None
        return [table <= limits["memory"] for table in self.peaks()]

    def sums(self, limits: Mapping[str, float]) -> tuple[list[Tables], list[float]]:
        """Return the tables of all limited sums and what the tables may sum to."""
        names = [name for name in limits if name != "memory"]
        room = [_most(name, limits) - self.base(name) for name in names]
        return [self.table(name) for name in names], room

    # What is possible at all

    def least(self, name: str) -> float:
        """Return the least of one cost over the whole space."""
        if self.space.chain is None:
            return self.of(name, self.space.smallest)
        if name == "memory":
            found, _ = self._least_memory({})
            assert found is not None
            return found
        return self.base(name) + float(cheapest(self._chain(), self.table(name))[0][0])

    def most(self, name: str) -> float:
        """Return the cost of the largest network."""
        return self.of(name, self.space.largest)

    def check(self, limits: Mapping[str, float]) -> None:
        """Raise :class:`NothingFits` where no network keeps all limits.

        A limit that cannot be kept is answered with the least possible value: of that cost alone
        or, where each could be kept alone, beside the others (where these can be kept). Where so
        many networks compete that some had to be left out, nothing is proven and nothing raised.
        """
        if self.fits(self.space.smallest, limits):
            return
        alone = {name: self.least(name) for name in limits}
        broken = {name: least for name, least in alone.items() if least > _most(name, limits)}
        if broken:
            said = ", ".join(self._excess(n, v, limits) for n, v in broken.items())
            raise NothingFits(
                f"no subnet of {self.space.name} is that small: the least possible is {said}",
                broken,
            )
        beside, proven = self._beside_the_others(limits)
        if not proven or any(least <= _most(name, limits) for name, least in beside.items()):
            return
        said = " or ".join(self._excess(n, v, limits) for n, v in beside.items())
        hint = f"; with the others kept the least possible is {said}"
        raise NothingFits(
            f"no subnet of {self.space.name} keeps all limits together"
            + (hint if said else ", nor all but one of them"),
            beside,
        )

    def _excess(self, name: str, least: float, limits: Mapping[str, float]) -> str:
        if name == "latency":  # not rounded to less than is possible
            return f"max-latency = {1.0005 * least:.4g} ms (asked: {limits[name]:.4g})"
        unit = " bytes" if name in ("bytes", "memory") else ""
        return f"max-{name} = {least:,.0f}{unit} (asked: {limits[name]:,.0f})"

    def _beside_the_others(self, limits: Mapping[str, float]) -> tuple[dict[str, float], bool]:
        """Return the least of each cost with the other limits kept, where these can be kept.

        Also whether no network can have less: not where parts of networks were left out.
        """
        found: dict[str, float] = {}
        proven = True
        for name in limits:
            others = {n: most for n, most in limits.items() if n != name}
            if name == "memory":
                least, exact = self._least_memory(others)
            else:
                front = self._front([-table for table in self.table(name)], others)
                least = self.base(name) - float(front.score.max()) if len(front) else None
                exact = front.exact
            proven &= exact
            if least is not None:
                found[name] = least
        return found, proven

    def _least_memory(self, others: Mapping[str, float]) -> tuple[float | None, bool]:
        """Return the least peak of the networks that keep other limits, and whether it is proven.

        Bisection. Among networks of one score only the cheapest compete, so parts are seldom left
        out, and where none is found although some were, a smaller peak may be possible.
        """
        values = np.unique(np.concatenate([table.ravel() for table in self.peaks()]))
        free = [np.zeros(table.shape) for table in self.peaks()]
        front = self._front(free, others)
        if not len(front):
            return None, front.exact
        low, high, proven = 0, len(values) - 1, True
        while low < high:
            middle = (low + high) // 2
            front = self._front(free, {**others, "memory": float(values[middle])})
            if len(front):
                high = middle
            else:
                low, proven = middle + 1, proven and front.exact
        return float(values[low]), proven

    def _front(self, score: Tables, limits: Mapping[str, float]) -> Front:
        """Return the networks that keep limits, the best score among them."""
        tables, room = self.sums(limits)
        if not tables:
            tables, room = [[np.zeros(table.shape) for table in score]], [0.0]
        return pareto(self._chain(), score, tables, room, self.allowed(limits))

    def _chain(self) -> Chain:
        if self.space.chain is None:
            raise TypeError(f"the space {self.space.name!r} is no chain")
        return self.space.chain

    def _latency(self) -> LatencyModel:
        if self.latency is None:
            raise ValueError("latency cannot be told without a latency table")
        return self.latency


def _most(name: str, limits: Mapping[str, float]) -> float:
    return limits[name] * (1 + _ROUNDING) if name == "latency" else limits[name]
