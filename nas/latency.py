"""Latency tables: milliseconds of every block of a space on one device, and what they predict.

A network is predicted as a constant plus a factor times the sum of its blocks' latencies. Blocks
are timed alone (:mod:`nas.profiling`), where code and weights are warmer in the caches than inside
a network, so constant and factor are fitted to a few whole networks. The prediction stays a sum
over blocks, and an exact search takes latency as it takes MACs. How far it is off is measured on
networks that the fit has not seen, and stands in the table.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.timing import Timing
from supernet import Architecture, SearchSpace
from supernet.chain import Block, Chain
from supernet.files import write_whole

KIND, FORMAT = "latency table", 1


class LatencyError(ValueError):
    """A table that cannot be used or made; one sentence names what is wrong."""


@dataclass(frozen=True)
class Network:
    """A whole network that was timed.

    Parameters
    ----------
    architecture
        Its JSON.
    timing
        What was measured; its fastest sample counts.
    predicted_ms
        What the table says.
    """

    architecture: str
    timing: Timing
    predicted_ms: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return abs(self.predicted_ms - self.timing.fastest_ms) / self.timing.fastest_ms


@dataclass(frozen=True)
class Errors:
    """Absolute relative errors over some networks (.05 is 5%)."""

    median: float
    p90: float
    max: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> "Errors":
        """Sum up the errors of at least one network."""
        median, p90, most = (float(q) for q in np.quantile(errors, (0.5, 0.9, 1.0)))
        return cls(median, p90, most)


@dataclass(frozen=True)
class BatchTable:
    """All that is known for one batch size.

    Parameters
    ----------
    blocks
        Name to timing of every block, timed alone.
    constant_ms, factor
        A network takes ``constant_ms + factor * (sum of its blocks)``.
    fitted
        The networks that these two are fitted to.
    held_out
        Networks that were only predicted.
    """

    blocks: Mapping[str, Timing]
    constant_ms: float
    factor: float
    fitted: tuple[Network, ...]
    held_out: tuple[Network, ...]

    @property
    def errors(self) -> Errors:
        """How far predictions are off on networks that the fit has not seen."""
        return Errors.of([network.error for network in self.held_out])

    def predict(self, blocks: Iterable[Block]) -> float:
        """Return the predicted milliseconds of the network of these blocks."""
        return self.constant_ms + self.factor * together(self.blocks, blocks)


@dataclass(frozen=True)
class LatencyTable:
    """What one device needs for the blocks of one space.

    Parameters
    ----------
    space
        The space's options: :func:`space_options`.
    device
        Processor, torch version, date and the like, for people.
    threads
        Threads an operation.
    clock
        One of :data:`nas.timing.CLOCKS`.
    batches
        Images a batch to what was measured with them.
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
        """Return the part for one batch size.

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
        """Return what predicts the networks of ``space``.

        Raises
        ------
        LatencyError
            Where the table is of another space or of other options, naming what differs.
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
            Where there is a file already and ``overwrite`` is not said.
        """
        path = Path(path)
        fields = {"kind": KIND, "format": FORMAT, **dataclasses.asdict(self)}
        for images, part in self.batches.items():  # for people; read, it is computed anew
            fields["batches"][images]["errors"] = dataclasses.asdict(part.errors)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_whole(path, json.dumps(fields, indent=1, allow_nan=False), overwrite=overwrite)
        except FileExistsError as error:
            raise LatencyError(str(error)) from None

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read what :meth:`save` wrote, on this or another machine.

        Raises
        ------
        LatencyError
            For a file that is no table, of another format version, or damaged.
        """
        path = Path(path)
        try:
            fields = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise LatencyError(f"{str(path)!r} holds no latency table: {error}") from None
        if not isinstance(fields, dict) or fields.get("kind") != KIND:
            raise LatencyError(f"{str(path)!r} holds no latency table")
        if fields.get("format") != FORMAT:
            raise LatencyError(
                f"{str(path)!r} has latency-table format {fields.get('format')!r}; {FORMAT} is read"
            )
        try:
            return cls(
                space=dict(fields["space"]),
                device=dict(fields["device"]),
                threads=int(fields["threads"]),
                clock=str(fields["clock"]),
                batches={int(n): _batch_table(part) for n, part in fields["batches"].items()},
                seconds=float(fields["seconds"]),
            )
        except KeyError as error:
            raise LatencyError(f"the latency table {str(path)!r} lacks {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise LatencyError(f"the latency table {str(path)!r} is damaged: {error}") from None


class Predictor:
    """Predicted milliseconds of the networks of one space on one device.

    Parameters
    ----------
    table, space
        They fit each other: use :meth:`LatencyTable.of`.
    """

    def __init__(self, table: LatencyTable, space: SearchSpace) -> None:
        self.table = table
        self.space = space

    def predict(self, arch: Architecture, batch: int) -> float:
        """Return the predicted latency of one network: the overhead and an entry a segment."""
        return self.table.batch(batch).predict(self.space.blocks(arch))

    def overhead(self, batch: int) -> float:
        """Return what every network takes beside its blocks."""
        return self.table.batch(batch).constant_ms

    def tables(self, chain: Chain, batch: int) -> list[np.ndarray]:
        """Return for each segment (states, options) what it adds."""
        part, inventory = self.table.batch(batch), chain.inventory
        alone = np.array([part.blocks[block.name].fastest_ms for block in inventory.blocks])
        return inventory.totals(part.factor * alone)


def together(timings: Mapping[str, Timing], blocks: Iterable[Block]) -> float:
    """Sum what blocks take alone, in milliseconds."""
    return sum(timings[block.name].fastest_ms for block in blocks)


def chain_of(space: SearchSpace) -> Chain:
    """Return the space's chain.

    Raises
    ------
    LatencyError
        Where it has none, saying what to define.
    """
    if space.chain is None:
        raise LatencyError(
            f"the space {space.name!r} has no blocks to time, so no table can predict its "
            f"networks: define `chain` and `blocks` in {type(space).__name__} (supernet/chain.py)"
        )
    return space.chain


def space_options(space: SearchSpace) -> dict[str, Any]:
    """Return what two spaces must have in common for their blocks to be the same."""
    return {
        "space": space.name,
        "norm": space.norm,
        "num_classes": space.num_classes,
        "in_channels": space.in_channels,
        "image_size": space.image_size,
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
