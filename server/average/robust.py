"""Averages that a few bad replies cannot move far, on subnets of different shapes.

A *cell* is a part of a tensor that the same replies cover. In each cell, for every scalar
separately (Yin et al., ICML 2018):

``trimmed-mean``
    the mean without the share of largest and the share of smallest values;
``median``
    the middle value, or the mean of the two middle ones;
``clip``
    the mean of replies whose difference from the weights sent was clipped.

**Clipping.** A reply's *length* is the norm of its difference from the weights sent, over its own
parameters. A reply longer than :data:`MULTIPLE` times the round's (lower) median length is scaled
back to that. Lengths of subnets of different sizes are compared directly: local training moves a
small subnet about as far as a large one, so each of its parameters further. (Over 40 rounds of
digits no honest reply was longer than 1.7 times the median; divided by √parameters, up to 2.7
times, and the smallest subnets would be clipped for being small.) Cells covered by fewer than
:data:`FEW` replies have no majority, so the first two rules fall back to the mean of clipped
replies there. Cells that nobody covers keep the server's values.

Each reply counts once, whatever its weight: neither β nor a declared number of images buys
influence. Clipping cannot detect a false reply of usual length that is alone in its cell.

**Memory.** Order statistics need all values at once, so a round's replies are held until the last
has arrived: clients-per-round × the subnet's bytes in float32, whatever ``wire-dtype``
(``hold-back`` does not bound this). In addition to that and the new state: one tensor's differences
in double precision, then blocks of a few megabytes. Five subnets of ``resnet10-26`` (745 MB) take
about 5 s of one core per round, the plain average 0.2 s.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from superfednas.server.average.overlap import Given, Update, check_update
from superfednas.supernet.boxes import Boxes, Slices, pieces, shapes_of

FEW = 3
MULTIPLE = 2.0
_BLOCK = 1 << 18  # elements of a cell merged at a time


@dataclass(frozen=True)
class Held:
    """A reply that waits for the others.

    ``squares`` has, for every tensor, the sum of squares of its difference from the weights sent.
    """

    client: str
    tensors: dict[str, torch.Tensor]
    boxes: Boxes
    squares: dict[str, float]

    @property
    def length(self) -> float:
        """Norm of the difference over all parameters."""
        return math.sqrt(sum(self.squares.values()))


class HeldAverage(ABC):
    """Hold a round's replies, then merge them cell by cell.

    Parameters
    ----------
    state
        The supernet's tensors, from which the subnets were extracted; not written to.

    Attributes
    ----------
    clips_below
        In cells with fewer replies than this, clipped replies are merged.
    """

    clips_below: float = FEW

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        self._shapes = shapes_of(state)
        self._held: list[Held] = []
        self.verdicts: dict[str, str] = {}

    def add(
        self,
        update: Update,
        weight: float,
        boxes: Mapping[str, Any] | None = None,
        client: str = "",
    ) -> None:
        """Hold one client's new weights (not a difference) until :meth:`result`.

        Parameters
        ----------
        update
            The subnet's tensors by name; they must not change any more.
        weight
            0 counts as absent; all other weights are equivalent.
        boxes
            The places of the tensors; by default the leading parts of their shapes.
        client
            Who sent it.

        Raises
        ------
        ValueError
            As :func:`superfednas.server.average.overlap.check_update`; nothing is held then.
        """
        cut, tensors = check_update(self._shapes, update, weight, boxes)
        if not weight:
            return
        squares = {}
        for name, placement in cut.items():
            old, new = self._state[name], tensors[name]
            squares[name] = sum(
                float((new[inner].double() - old[outer].double()).square().sum())
                for outer, inner in pieces(placement)
            )
        self._held.append(Held(client, tensors, cut, squares))

    def add_all(self, replies: Iterable[Given]) -> None:
        """Hold several."""
        for each in replies:
            self.add(*each)

    def result(self) -> dict[str, torch.Tensor]:
        """Return the new state; what nobody covers is kept from the old one."""
        self._judge()
        factors = self._factors()
        everywhere = math.isinf(self.clips_below)
        where = "" if everywhere else f" where fewer than {FEW} replies meet"
        for reply, factor in zip(self._held, factors, strict=True):
            if factor < 1:
                clipped = f"its change was clipped to {factor:.0%}{where}"
                self.verdicts.setdefault(reply.client, clipped)
        return {name: self._merge(name, tensor, factors) for name, tensor in self._state.items()}

    def _judge(self) -> None:  # noqa: B027 (most rules judge nobody)
        """Judge all replies before they are merged: write verdicts, leave some out."""

    def _factors(self) -> list[float]:
        """Return each reply's factor in cells where replies are clipped."""
        return clip_factors([reply.length for reply in self._held])

    @abstractmethod
    def _combine(self, values: np.ndarray, holders: Sequence[int]) -> np.ndarray:
        """Merge one block of a cell.

        Parameters
        ----------
        values
            float64 (replies, …); may be overwritten.
        holders
            The reply's position for each row; at least one.

        Returns
        -------
        numpy.ndarray
            The new values (…).
        """

    def _merge(self, name: str, old: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
        new = old.clone()
        placed = [
            (k, outer, reply.tensors[name][inner])
            for k, reply in enumerate(self._held)
            if name in reply.boxes
            for outer, inner in pieces(reply.boxes[name])
        ]
        for cell, holders, values in meetings(old.shape, placed):
            if len(holders) < self.clips_below:
                sent = old[cell].double().numpy()
                for row, k in enumerate(holders):
                    if factors[k] < 1:  # the others stay as received, to the last bit
                        values[row] = sent + factors[k] * (values[row] - sent)
            merged = self._combine(values, holders)
            new[cell] = torch.as_tensor(merged).to(new.dtype)
        return new


class RobustAverage(HeldAverage):
    """Merge subnets of different shapes by trimmed mean, median or clipped mean.

    The result does not depend on the order of the replies, to the last bit.

    Parameters
    ----------
    state
        The supernet's tensors, from which the subnets were extracted; not written to.
    rule
        ``trimmed-mean``, ``median`` or ``clip``.
    trim_share
        Share of a cell's replies that the trimmed mean cuts from either end: at least one reply,
        and at most so many that the median is left.
    """

    def __init__(
        self, state: Mapping[str, torch.Tensor], rule: str, trim_share: float = 0.2
    ) -> None:
        super().__init__(state)
        self.rule = rule
        self.trim_share = trim_share
        if rule == "clip":
            self.clips_below = math.inf

    def _combine(self, values: np.ndarray, holders: Sequence[int]) -> np.ndarray:
        count = len(values)
        cut = 0 if count < self.clips_below else trimmed(count, self.rule, self.trim_share)
        # Sorted even if nothing is cut, so that sums do not depend on the order of replies.
        values.sort(axis=0)
        found: np.ndarray = values[cut : count - cut].mean(axis=0)
        return found


def trimmed(count: int, rule: str, share: float) -> int:
    """Return how many of ``count`` ≥ 3 values are cut from either end."""
    most = (count - 1) // 2  # which leaves the median
    if rule == "median":
        return most
    # A share of 0.07 of 100 is 7, not 8 because of its last bit.
    return min(max(1, math.ceil(share * count - 1e-9)), most)


def clip_factors(lengths: Sequence[float]) -> list[float]:
    """Return for each reply the factor, at most 1, that keeps its length within the limit.

    The lower median: of two replies of very different lengths, the shorter is trusted.
    """
    if not lengths:
        return []
    limit = MULTIPLE * sorted(lengths)[(len(lengths) - 1) // 2]
    return [1.0 if length <= limit else limit / length for length in lengths]


def cells(shape: Sequence[int], boxes: Iterable[Slices]) -> Iterator[Slices]:
    """Cut a tensor at all edges of some boxes, and into blocks of at most ``_BLOCK`` elements."""
    edges = [{0, size} for size in shape]
    for box in boxes:
        for found, part in zip(edges, box, strict=True):
            found |= {part.start, part.stop}
    if shape:
        rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
        edges[0] |= set(range(0, shape[0], rows))
    spans = [list(itertools.pairwise(sorted(found))) for found in edges]
    for cell in itertools.product(*spans):
        yield tuple(slice(start, stop) for start, stop in cell)


def meetings(
    shape: Sequence[int], placed: Sequence[tuple[int, Slices, torch.Tensor]]
) -> Iterator[tuple[Slices, list[int], np.ndarray]]:
    """Yield the cells that replies cover.

    Parameters
    ----------
    shape
        The supernet's tensor.
    placed
        The reply's position, a box, and the reply's numbers there.

    Yields
    ------
    tuple
        The cell, the positions of the n replies that cover it, and their numbers: float64 (n, …).
    """
    for cell in cells(shape, [box for _, box, _ in placed]):
        here = [(k, part[_shift(cell, box)]) for k, box, part in placed if _inside(cell, box)]
        if here:
            yield cell, [k for k, _ in here], np.stack([part.double().numpy() for _, part in here])


def _inside(cell: Slices, box: Slices) -> bool:
    return all(b.start <= c.start and c.stop <= b.stop for c, b in zip(cell, box, strict=True))


def _shift(cell: Slices, box: Slices) -> Slices:
    return tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(cell, box, strict=True))
