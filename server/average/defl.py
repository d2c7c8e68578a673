"""DeFL: detection by gradient norms that knows the critical period (Yan et al., AAAI 2023).

From the paper and its authors' published code:

- the *federated gradient norm vector* of a reply has one entry a layer, the squared norm of its
  gradient, here taken from the difference between the weights that came back and those sent;
- in every layer replies that are outliers get a vote, and votes over the layers decide who is
  malicious;
- a round lies in a *critical period* where the norms, averaged over the last ten rounds, have
  grown by at least δ = 5%; the first five rounds always do;
- in a critical period, detected replies are left out. Otherwise they stay, but every reply is
  weighted by the client's record p = α/(α + β): α counts its rounds as benign, β those as
  malicious, each from 1. So a mistake of the detector costs little.

Adapted to subnets of different shapes:

- only layers that at least three replies hold are judged, each reply over the layers that it holds
  (norms of subnets of different widths are compared as they are, see
  :mod:`superfednas.server.average.robust`);
- the authors' outlier test (MUOD: pairwise regressions over vectors of equal length) is replaced
  by a robust z-score of the logarithm, (x − median) / (1.4826 · MAD) above 3; only too large a norm
  is an outlier, since too small a one changes little;
- votes of half of the judged layers make a verdict. The authors lower the number of votes needed
  until they find somebody, which also finds somebody among honest replies;
- for the critical period, the median of the replies' squared norms replaces the mean, which a
  single attacker can move (the authors let clients report it); images are not weighed, because no
  client's count is trusted;
- in cells that fewer than three remaining replies cover, where a weight decides little or nothing,
  replies are clipped (:mod:`superfednas.server.average.robust`, where the memory is stated, too),
  and the change of a detected one does not count.

Added, because norms have no sign and cannot see a flipped update: *directions*. For every pair of
replies the cosine of their differences is taken over the parameters that both hold. The reply whose
mean cosine with the others is lowest is detected if that is negative, then the same among the rest,
while fewer than half are detected. (On digits with label-skewed clients, honest replies have mean
cosines of 0.02 to 0.12 with each other, flipped ones the negative of that.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from superfednas.server.average.robust import FEW, Held, HeldAverage
from superfednas.supernet.boxes import Slices, pieces

DELTA = 0.05
WINDOW = 10
FIRST = 5
OUTLIER = 3.0
VOTES = 0.5
_LEAST_SPREAD = 0.1  # of a layer's logarithms: nearly equal norms are no outliers
_TINY = 1e-30


class Records:
    """What DeFL remembers between rounds: norms, and each client's good and bad rounds."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.good: dict[str, int] = {}
        self.bad: dict[str, int] = {}

    def trust(self, client: str) -> float:
        """Return p, the share of a client's rounds in which it was benign, from ½ on."""
        good, bad = 1 + self.good.get(client, 0), 1 + self.bad.get(client, 0)
        return good / (good + bad)

    def count(self, client: str, flagged: bool) -> None:
        """Count a round of a client."""
        which = self.bad if flagged else self.good
        which[client] = which.get(client, 0) + 1

    def critical(self, norm: float) -> bool:
        """Record a round's norm and return whether the round is in a critical period."""
        before = self.norms[-WINDOW:]
        self.norms = [*before, norm]
        if len(before) < FIRST:
            return True
        old, new = float(np.mean(before)), float(np.mean(self.norms[-WINDOW:]))
        return new - old >= DELTA * old

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return {"norms": self.norms, "good": self.good, "bad": self.bad}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state` from a checkpoint."""
        self.norms = [float(norm) for norm in state["norms"]]
        self.good, self.bad = dict(state["good"]), dict(state["bad"])


class DeflAverage(HeldAverage):
    """Leave out, or give less weight to, replies whose gradient norms stand out.

    Parameters
    ----------
    state
        The supernet's tensors, from which the subnets were extracted; not written to.
    records
        The memory between rounds; :meth:`result` adds this round.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], records: Records) -> None:
        super().__init__(state)
        self.records = records
        self._weights: list[float] = []
        self._flagged: list[bool] = []

    def _judge(self) -> None:
        norms = [layer_norms(reply) for reply in self._held]
        votes = outlier_votes(norms)
        if not norms:
            return
        squares = [reply.length**2 for reply in self._held]
        critical = self.records.critical(float(np.median(squares)))
        found = {
            k: f"its gradient norm stands out in {outliers} of {judged} layers"
            for k, (outliers, judged) in enumerate(votes)
            if judged and outliers >= VOTES * judged
        }
        others = [k for k in range(len(self._held)) if k not in found]
        against = opposed(cosines([self._held[k] for k in others], self._state))
        for place, mean in against.items():
            found[others[place]] = f"it points against the others (mean cosine {mean:.2f})"
        kept = []
        for k, reply in enumerate(self._held):
            weight = self.records.trust(reply.client)
            self.records.count(reply.client, k in found)
            if k in found:
                what = "left out (critical period)" if critical else f"weighed {weight:.2f}"
                self.verdicts[reply.client] = f"{what}: {found[k]}"
            if critical and k in found:
                continue
            kept.append(reply)
            self._weights.append(weight)
            self._flagged.append(k in found)
        # Replies to leave out go before cells are cut: they must not count towards a majority of
        # three.
        self._held = kept

    def _factors(self) -> list[float]:
        clipped = zip(super()._factors(), self._flagged, strict=True)
        return [0.0 if flagged else factor for factor, flagged in clipped]

    def _combine(self, values: np.ndarray, holders: Sequence[int]) -> np.ndarray:
        weights = np.array([self._weights[k] for k in holders])
        return np.tensordot(weights / weights.sum(), values, 1)


def layer_norms(reply: Held) -> dict[str, float]:
    """Return the squared norm of a reply's difference in every layer (a module's tensors)."""
    norms: dict[str, float] = {}
    for name, square in reply.squares.items():
        layer = name.rpartition(".")[0] or name
        norms[layer] = norms.get(layer, 0.0) + square
    return norms


def outlier_votes(norms: Sequence[Mapping[str, float]]) -> list[tuple[int, int]]:
    """Return for each reply in how many layers it is an outlier, and in how many it was judged."""
    outliers, judged = [0] * len(norms), [0] * len(norms)
    for layer in dict.fromkeys(name for vector in norms for name in vector):
        holders = [k for k, vector in enumerate(norms) if layer in vector]
        if len(holders) < FEW:
            continue
        logs = np.log([norms[k][layer] + _TINY for k in holders])
        spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
        scores = (logs - np.median(logs)) / max(spread, _LEAST_SPREAD)
        for k, score in zip(holders, scores, strict=True):
            judged[k] += 1
            outliers[k] += int(score > OUTLIER)
    return list(zip(outliers, judged, strict=True))


def cosines(held: Sequence[Held], state: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return the cosine of every pair's differences over the parameters that both hold.

    Parameters
    ----------
    held
        The replies.
    state
        The weights that were sent.

    Returns
    -------
    numpy.ndarray
        (replies, replies); 0 if two share nothing or one did not change.
    """
    count = len(held)
    dots, squares = np.zeros((count, count)), np.zeros((count, count))
    for name, old in state.items():
        parts = [
            (k, outer, reply.tensors[name][inner].double() - old[outer].double())
            for k, reply in enumerate(held)
            if name in reply.boxes
            for outer, inner in pieces(reply.boxes[name])
        ]
        for i, box, one in parts:
            for j, other, two in parts:
                if i < j and (both := _overlap(box, other)):
                    a, b = one[both[0]], two[both[1]]
                    dots[i, j] += float((a * b).sum())
                    squares[i, j] += float(a.square().sum())
                    squares[j, i] += float(b.square().sum())
    lengths = np.sqrt(squares * squares.T)
    found = np.divide(dots + dots.T, lengths, out=np.zeros_like(dots), where=lengths > 0)
    np.fill_diagonal(found, 1.0)
    return found


def _overlap(a: Slices, b: Slices) -> tuple[Slices, Slices] | None:
    """Return the intersection of two boxes as slices of each, or None."""
    starts = [max(x.start, y.start) for x, y in zip(a, b, strict=True)]
    stops = [min(x.stop, y.stop) for x, y in zip(a, b, strict=True)]
    if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
        return None

    def within(box: Slices) -> Slices:
        ends = zip(box, starts, stops, strict=True)
        return tuple(slice(start - x.start, stop - x.start) for x, start, stop in ends)

    return within(a), within(b)


def opposed(cosine: np.ndarray) -> dict[int, float]:
    """Return which replies point against the others, with their mean cosine."""
    rest = list(range(len(cosine)))
    found: dict[int, float] = {}
    while len(found) + 1 < len(cosine) / 2:
        means = {k: float(np.mean([cosine[k, j] for j in rest if j != k])) for k in rest}
        worst = min(rest, key=lambda k: means[k])
        if means[worst] >= 0:
            break
        found[worst] = means[worst]
        rest.remove(worst)
    return found
