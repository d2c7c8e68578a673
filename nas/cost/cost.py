"""Costs: what an architecture requires of a device, by name, including costs of your own.

Everything that names costs (the search's limits, the command's ``--max-NAME``, a node's budget, the
menu of an elastic file) takes them from :data:`COSTS`. Nothing here imports torch.
"""

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

from superfednas.common.imports import import_object
from superfednas.common.words import prefix_of

if TYPE_CHECKING:
    import numpy as np

    from superfednas.supernet import Architecture, SearchSpace
    from superfednas.supernet.chain import Block, Chain

BYTES = 4  # of a float32
FILE = 50_000
"""The most an ONNX or safetensors file holds besides the weights (graph, card), in bytes."""
ROUNDING = 1e-9
"""Relative difference that summing floats in another order may make."""


class Quantity:
    """How to print a number: what it is, its unit, and the size of the unit."""

    title: str
    unit: str
    scale: float = 1.0

    def say(self, value: float) -> str:
        """Return a value in its unit."""
        scaled = value / self.scale
        return f"{scaled:,.2f} {self.unit}" if scaled >= 1 else f"{scaled:.3g} {self.unit}"


class Noted(Quantity):
    """A quantity as recorded in a plan, for readers without the cost itself."""

    def __init__(self, title: str, unit: str, scale: float = 1.0) -> None:
        self.title, self.unit, self.scale = title, unit, float(scale)


class Cost(Quantity, ABC):
    """What an architecture requires of a device, less is better: a sum over blocks, or a maximum.

    A cost of your own defines ``name``, ``title``, ``unit`` and :meth:`of_block`; everything else
    has a default.

    Attributes
    ----------
    name
        Lower-case letters, digits and hyphens; its option is ``--max-NAME``.
    help
        The option's help text; by default the title.
    limit_unit
        Unit of a limit, which is never scaled.
    base
        What every architecture costs in addition to its blocks.
    peak
        Whether the cost is that of the most expensive block instead of the sum.
    whole
        Whether it is an integer, so that a limit is kept to the last digit.
    told
        Whether the architecture alone determines it; latency needs a device.
    """

    name: ClassVar[str]
    help: ClassVar[str] = ""
    limit_unit: ClassVar[str] = ""
    base: float = 0.0
    peak: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    told: ClassVar[bool] = True

    @abstractmethod
    def of_block(self, block: "Block") -> float:
        """Return what one block costs."""

    def of(self, space: "SearchSpace", arch: "Architecture") -> float:
        """Return what an architecture costs."""
        values = [self.of_block(block) for block in space.blocks(arch)]
        return self.base + (max(values) if self.peak else sum(values))

    def table(self, chain: "Chain") -> "list[np.ndarray]":
        """Return what each segment adds (states, options), or its own peak."""
        inventory = chain.inventory
        values = [float(self.of_block(block)) for block in inventory.blocks]
        return inventory.peaks(values) if self.peak else inventory.totals(values)

    def most(self, limit: float) -> float:
        """Return the largest sum that keeps a limit, with an allowance for rounding."""
        return limit if self.whole else limit * (1 + ROUNDING)

    def least_limit(self, least: float, asked: float) -> str:
        """Return, as text, the lowest limit that can be kept, for a lower one that was asked."""
        unit = f" {self.limit_unit}" if self.limit_unit else ""
        if self.whole:
            return f"max-{self.name} = {least:,.0f}{unit} (asked: {asked:,.0f})"
        # Not rounded to less than is possible.
        return f"max-{self.name} = {1.0005 * least:.4g}{unit} (asked: {asked:.4g})"


class Counted(Cost):
    """A cost in millions, or in thousands or ones where the network is that small."""

    scale = 1e6
    whole = True
    said: ClassVar[str]
    """The unit behind its prefix."""

    def say(self, value: float) -> str:
        """Return a value in a unit that fits."""
        prefix = prefix_of([value])
        if not prefix.letter:
            return f"{value:,.0f} {self.said.strip()}"
        return Noted(self.title, prefix.letter + self.said, prefix.size).say(value)


class Macs(Counted):
    """Multiply-accumulates."""

    name = "macs"
    title, unit, said = "multiply-accumulates of one example", "MMACs", "MACs"
    help = "Multiply-accumulates of one image."

    def of_block(self, block: "Block") -> float:
        """Return the block's count."""
        return block.macs

    def of(self, space: "SearchSpace", arch: "Architecture") -> float:
        """Return the space's own count."""
        return space.macs(arch)


class Params(Counted):
    """Parameters."""

    name = "params"
    title, unit, said = "parameters", "M parameters", " parameters"
    help = "Parameters."

    def of_block(self, block: "Block") -> float:
        """Return the block's count."""
        return block.params

    def of(self, space: "SearchSpace", arch: "Architecture") -> float:
        """Return the space's own count."""
        return space.params(arch)


class Bytes(Cost):
    """Size of a file: its weights as the traits store them, and what a file holds besides."""

    name = "bytes"
    title, unit, scale = "bytes of an exported file, float32, at most", "MB", 1e6
    help = "Bytes of the file (ONNX or safetensors)."
    limit_unit = "bytes"
    base = float(FILE)
    whole = True

    def of_block(self, block: "Block") -> float:
        """Return the bytes of the block's weights."""
        return block.weight_bytes

    def of(self, space: "SearchSpace", arch: "Architecture") -> float:
        """Return the file's size."""
        return FILE + space.weight_bytes(arch)


class Memory(Cost):
    """Peak of activations."""

    name = "memory"
    title, unit, scale = "peak bytes of activations, one example, float32", "kB", 1e3
    help = "Peak bytes of activations, one image, float32."
    limit_unit = "bytes"
    peak = whole = True

    def of_block(self, block: "Block") -> float:
        """Return the block's own peak."""
        return BYTES * block.activations

    def of(self, space: "SearchSpace", arch: "Architecture") -> float:
        """Return the architecture's peak."""
        return BYTES * space.activations(arch)


class LatencyModel(Protocol):
    """Predicts milliseconds per batch (:class:`superfednas.nas.cost.latency.LatencyTable`)."""

    def predict(self, arch: "Architecture", batch: int) -> float:
        """Return the predicted latency of one architecture."""
        ...

    def tables(self, chain: "Chain", batch: int) -> "list[np.ndarray]":
        """Return what each segment adds (states, options)."""
        ...

    def overhead(self, batch: int) -> float:
        """Return what is added once."""
        ...


class Latency(Cost):
    """Milliseconds per batch on one device, as predicted by its table.

    Parameters
    ----------
    model
        The device's table; without it, the cost has only a name.
    batch
        Images a batch.
    """

    name = "latency"
    title = "milliseconds a batch"
    unit = limit_unit = "ms"
    help = "Milliseconds a batch, as a latency table says: this device's, or another's."
    told = False

    def __init__(self, model: LatencyModel | None = None, batch: int = 1) -> None:
        self._model, self._batch = model, batch

    @property
    def model(self) -> LatencyModel:
        """The device's table; ``ValueError`` if there is none."""
        if self._model is None:
            raise ValueError("latency cannot be told without a latency table")
        return self._model

    @property
    def base(self) -> float:  # type: ignore[override]
        """What a batch takes in addition to the blocks."""
        return self.model.overhead(self._batch)

    def of_block(self, block: "Block") -> float:
        """Raise, because a block has no latency outside its device's table."""
        raise TypeError("latency is told of networks and tables, not of one block")

    def of(self, space: "SearchSpace", arch: "Architecture") -> float:
        """Return the predicted latency."""
        return self.model.predict(arch, self._batch)

    def table(self, chain: "Chain") -> "list[np.ndarray]":
        """Return what each option adds."""
        return self.model.tables(chain, self._batch)


COSTS: dict[str, Cost] = {c.name: c for c in (Macs(), Params(), Bytes(), Memory(), Latency())}
"""All costs by name: these five, and those added by :func:`add_costs`."""
BUILT_IN = frozenset(COSTS)
"""Names of the built-in costs."""


def add_costs(references: str) -> None:
    """Add costs of your own, so that they have limits like the others.

    Parameters
    ----------
    references
        ``module:Name`` of :class:`Cost` classes, separated by commas; empty adds nothing.

    Raises
    ------
    ValueError
        If one cannot be imported, is no cost, or has a name that is taken.
    """
    for reference in filter(None, map(str.strip, references.split(","))):
        found = import_object(reference, "cost")
        if not (isinstance(found, type) and issubclass(found, Cost)):
            raise ValueError(f"cost {reference!r} is no subclass of superfednas.nas.cost.cost.Cost")
        missing = [name for name in ("name", "title", "unit") if not hasattr(found, name)]
        missing += sorted(found.__abstractmethods__)
        if missing:
            raise ValueError(f"cost {reference!r} lacks {', '.join(missing)}")
        if not re.fullmatch("[a-z][a-z0-9-]*", found.name):
            raise ValueError(
                f"cost {reference!r}: name = {found.name!r}: must be lower-case letters, digits "
                "and hyphens"
            )
        if found.name in COSTS and _origin(type(COSTS[found.name])) != _origin(found):
            raise ValueError(f"cost {reference!r}: there is a cost {found.name!r} already")
        COSTS[found.name] = found()


def _origin(kind: type[Cost]) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def cost(name: str) -> Cost:
    """Return the cost of a name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in COSTS:
        raise ValueError(f"cost {name!r}: must be one of {', '.join(COSTS)}")
    return COSTS[name]
