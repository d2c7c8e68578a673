"""Latency tables: milliseconds of every block of a space on a device, and predictions from them.

A subnet's latency is predicted as a constant plus a factor times the sum of its blocks' latencies.
Blocks are timed alone (:mod:`superfednas.nas.cost.profiling`), where code and weights are warmer in
the caches than inside a subnet, so constant and factor are fitted to a few whole subnets. The
prediction remains a sum over blocks, so an exact search can use latency like MACs. Its error is
measured on subnets outside the fit and recorded in the table.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from superfednas.common.damage import damage_of, read_object
from superfednas.common.files import write_whole
from superfednas.nas.cost.timing import Timing
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.chain import Block, Chain

KIND, FORMAT = "latency table", 1


class LatencyError(ValueError):
    """A table that cannot be used or made; one sentence says what is wrong."""


@dataclass(frozen=True)
class Network:
    """A whole subnet that was timed.

    Parameters
    ----------
    architecture
        Its JSON.
    timing
        The measurement; its fastest sample counts.
    predicted_ms
        The table's prediction.
    """

    architecture: str
    timing: Timing
    predicted_ms: float

    @property
    def error(self) -> float:
        """The error of the prediction, relative to the measurement."""
        return abs(self.predicted_ms - self.timing.fastest_ms) / self.timing.fastest_ms


@dataclass(frozen=True)
class Errors:
    """Absolute relative errors over some subnets (.05 is 5%)."""

    median: float
    p90: float
    max: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> "Errors":
        """Summarise the errors of at least one subnet."""
        median, p90, most = (float(q) for q in np.quantile(errors, (0.5, 0.9, 1.0)))
        return cls(median, p90, most)


@dataclass(frozen=True)
class BatchTable:
    """The measurements for one batch size.

    Parameters
    ----------
    blocks
        Name to timing of every block, timed alone.
    constant_ms, factor
        A subnet takes ``constant_ms + factor * (sum of its blocks)``.
    fitted
        The subnets to which these two are fitted.
    held_out
        Subnets that were only predicted.
    """

    blocks: Mapping[str, Timing]
    constant_ms: float
    factor: float
    fitted: tuple[Network, ...]
    held_out: tuple[Network, ...]

    @property
    def errors(self) -> Errors:
        """The errors of predictions on subnets outside the fit."""
        return Errors.of([network.error for network in self.held_out])

    def predict(self, blocks: Iterable[Block]) -> float:
        """Return the predicted milliseconds of the subnet with these blocks."""
        return self.constant_ms + self.factor * together(self.blocks, blocks)


@dataclass(frozen=True)
class LatencyTable:
    """The latencies of one space's blocks on one device.

    Parameters
    ----------
    space
        The space's options: :func:`space_options`.
    device
        Processor, torch version, date and so on, for human readers.
    threads
        Threads an operation.
    clock
        One of :data:`superfednas.nas.cost.timing.CLOCKS`.
    batches
        Images per batch to the measurements with them.
    seconds
        How long the measurement took.
    """

    space: Mapping[str, Any]
    device: Mapping[str, Any]
    threads: int
    clock: str
    batches: Mapping[int, BatchTable]
    seconds: float

    def batch(self, images: int) -> BatchTable:
        """Return the measurements for one batch size.

        Raises
        ------
        LatencyError
            Naming the batch sizes that were measured.
        """
        if images not in self.batches:
            known = ", ".join(map(str, sorted(self.batches)))
            raise LatencyError(f"batch = {images}: the latency table was measured for {known}")
        return self.batches[images]

    def of(self, space: SearchSpace) -> "Predictor":
        """Return the predictor for the architectures of ``space``.

        Raises
        ------
        LatencyError
            If the table is for another space or other options; it names the difference.
        """
        self.check(space)
        return Predictor(self, space)

    def check(self, space: SearchSpace) -> None:
        """Refuse a space that was not measured; see :meth:`of`."""
        chain = chain_of(space)
        for key, has in space_options(space).items():
            if self.space.get(key) != has:
                raise LatencyError(
                    f"the latency table was measured for {key} = {self.space.get(key)!r}, "
                    f"the space has {key} = {has!r}"
                )
        for images, part in self.batches.items():
            lacking = [b.name for b in chain.inventory.blocks if b.name not in part.blocks]
            if lacking:
                raise LatencyError(
                    f"the latency table lacks {len(lacking)} blocks of the space {space.name!r} at "
                    f"batch {images} ({lacking[0]!r}, …): it was measured on another version of it"
                )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table as JSON, whole.

        Raises
        ------
        LatencyError
            If the file exists and ``overwrite`` is False.
        """
        path = Path(path)
        fields = {"kind": KIND, "format": FORMAT, **dataclasses.asdict(self)}
        for images, part in self.batches.items():  # for readers; recomputed on reading
            fields["batches"][images]["errors"] = dataclasses.asdict(part.errors)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_whole(path, json.dumps(fields, indent=1, allow_nan=False), overwrite=overwrite)
        except FileExistsError as error:
            raise LatencyError(str(error)) from None

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read a file that :meth:`save` wrote, on this or another machine.

        Raises
        ------
        LatencyError
            For a file that is not a table, has another format version, or is damaged.
        """
        path = Path(path)
        with damage_of(path, LatencyError, "holds no latency table"):
            fields = read_object(path)
        if fields.get("kind") != KIND:
            raise LatencyError(f"{str(path)!r} holds no latency table")
        if fields.get("format") != FORMAT:
            raise LatencyError(
                f"{str(path)!r} has latency-table format {fields.get('format')!r}; {FORMAT} is read"
            )
        with damage_of(path, LatencyError):
            return cls(
                space=dict(fields["space"]),
                device=dict(fields["device"]),
                threads=int(fields["threads"]),
                clock=str(fields["clock"]),
                batches={int(n): _batch_table(part) for n, part in fields["batches"].items()},
                seconds=float(fields["seconds"]),
            )


class Predictor:
    """Predicted milliseconds of the architectures of one space on one device.

    Parameters
    ----------
    table, space
        A matching pair: use :meth:`LatencyTable.of`.
    """

    def __init__(self, table: LatencyTable, space: SearchSpace) -> None:
        self.table = table
        self.space = space

    def predict(self, arch: Architecture, batch: int) -> float:
        """Return an architecture's predicted latency: the overhead plus an entry per segment."""
        return self.table.batch(batch).predict(self.space.blocks(arch))

    def overhead(self, batch: int) -> float:
        """Return what every subnet takes in addition to its blocks."""
        return self.table.batch(batch).constant_ms

    def tables(self, chain: Chain, batch: int) -> list[np.ndarray]:
        """Return what each segment adds (states, options)."""
        part, inventory = self.table.batch(batch), chain.inventory
        alone = np.array([part.blocks[block.name].fastest_ms for block in inventory.blocks])
        return inventory.totals(part.factor * alone)


def together(timings: Mapping[str, Timing], blocks: Iterable[Block]) -> float:
    """Sum the blocks' own latencies, in milliseconds."""
    return sum(timings[block.name].fastest_ms for block in blocks)


def chain_of(space: SearchSpace) -> Chain:
    """Return the space's chain.

    Raises
    ------
    LatencyError
        If it has none; the message says what to define.
    """
    if space.chain is None:
        raise LatencyError(
            f"the space {space.name!r} has no blocks to time, so no table can predict its "
            f"networks: define `chain` and `blocks` in {type(space).__name__} (supernet/chain.py)"
        )
    return space.chain


def space_options(space: SearchSpace) -> dict[str, Any]:
    """Return the options that determine a space's blocks."""
    return {
        "space": space.name,
        "norm": space.norm,
        **space.task.options,
    }


def _batch_table(fields: Mapping[str, Any]) -> BatchTable:
    if not fields["held_out"]:
        raise ValueError("no network is held out")
    return BatchTable(
        blocks={str(name): _timing(timing) for name, timing in fields["blocks"].items()},
        constant_ms=_finite(fields["constant_ms"]),
        factor=_positive(fields["factor"]),
        fitted=tuple(map(_network, fields["fitted"])),
        held_out=tuple(map(_network, fields["held_out"])),
    )


def _network(fields: Mapping[str, Any]) -> Network:
    return Network(
        architecture=str(fields["architecture"]),
        timing=_timing(fields["timing"]),
        predicted_ms=_finite(fields["predicted_ms"]),
    )


def _timing(fields: Mapping[str, Any]) -> Timing:
    return Timing(
        fastest_ms=_positive(fields["fastest_ms"]),
        median_ms=_positive(fields["median_ms"]),
        spread_ms=_finite(fields["spread_ms"]),
        samples=int(fields["samples"]),
    )


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _positive(value: Any) -> float:
    if _finite(value) <= 0:
        raise ValueError(f"{value!r} is not above 0")
    return float(value)
