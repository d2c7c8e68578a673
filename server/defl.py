"""DeFL: detection by gradient norms that knows the critical period (Yan et al., AAAI 2023).

From the paper and its authors' published code:

- the *federated gradient norm vector* of a reply has one entry a layer, the squared norm of its
  gradient, here taken from the difference between the weights that came back and those sent;
- in every layer replies that are outliers get a vote, and votes over the layers decide who is
  malicious;
- a round lies in a *critical period* where the norms, averaged over the last ten rounds, have
  grown by at least δ = 5%; the first five rounds always do;
- in a critical period detected replies are left out. Outside, they stay, but every reply is
  weighted by the client's record p = α/(α + β): α counts its rounds as benign, β those as
  malicious, each from 1. So a mistake of the detector costs little.

Adapted to subnets of different shapes:

- only layers that at least three replies hold are judged, each reply over the layers that it holds
  (norms of subnets of different widths are compared as they are, see :mod:`server.robust`);
- the authors' outlier test (MUOD: pairwise regressions over vectors of equal length) is replaced
  by a robust z-score of the logarithm, (x − median) / (1.4826 · MAD) above 3; only too large a norm
  is an outlier, since too small a one changes little;
- half of the judged layers make a verdict. The authors lower the number of votes needed until
  somebody is found, which finds somebody among honest replies, too;
- for the critical period the median of the replies' squared norms stands in place of the mean,
  which one attacker can move (the authors let clients report it); images are not weighed: nobody's
  count is trusted;
- in cells that fewer than three remaining replies cover, where a weight decides little or nothing,
  replies are clipped (:mod:`server.robust`, where the memory is stated, too).

Norms have no sign: an update that is turned round but of usual size is not seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from server.robust import FEW, Held, HeldAverage

DELTA = 0.05
WINDOW = 10
FIRST = 5
OUTLIER = 3.0
VOTES = 0.5
_LEAST_SPREAD = 0.1  # of a layer's logarithms: nearly equal norms make no outliers
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
        """Take a round's norm and say whether it lies in a critical period."""
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
        """Take over :meth:`state` of a checkpoint."""
        self.norms = [float(norm) for norm in state["norms"]]
        self.good, self.bad = dict(state["good"]), dict(state["bad"])


class DeflAverage(HeldAverage):
    """Leave out or weigh down the replies whose gradient norms stand out.

    Parameters
    ----------
    state
        The supernet's tensors, from which the subnets were cut. They are not written to.
    records
        What is remembered; :meth:`result` adds this round.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], records: Records) -> None:
        super().__init__(state)
        self.records = records
        self._weights: list[float] = []

    def _judge(self) -> None:
        norms = [layer_norms(reply) for reply in self._held]
        votes = outlier_votes(norms)
        if not norms:
            return
        squares = [reply.length**2 for reply in self._held]
        critical = self.records.critical(float(np.median(squares)))
        for reply, (outliers, judged) in zip(self._held, votes, strict=True):
            flagged = judged > 0 and outliers >= VOTES * judged
            weight = self.records.trust(reply.client)
            self.records.count(reply.client, flagged)
            if flagged:
                what = f"weighed {weight:.2f}"
                if critical:
                    weight, what = 0.0, "left out (critical period)"
                self.verdicts[reply.client] = (
                    f"{what}: its gradient norm stands out in {outliers} of {judged} layers"
                )
            self._weights.append(weight)
        # Left-out replies go before cells are cut: they must not make a majority of three.
        kept = [k for k, weight in enumerate(self._weights) if weight]
        self._held = [self._held[k] for k in kept]
        self._weights = [self._weights[k] for k in kept]

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
    """Say for each reply in how many layers it is an outlier, and in how many it was judged."""
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
