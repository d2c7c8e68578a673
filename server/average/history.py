"""Histories: colluding clients are told by what they have sent over the rounds, cell by cell.

A round alone does not show collusion: changes of honest clients differ so much that false ones can
stay within their spread (*A little is enough*, Baruch et al., NeurIPS 2019). Over several rounds
the noise of honest clients cancels, and what attackers add does not (Karimireddy, He and Jaggi,
*Learning from history*, ICML 2021). So the server keeps each client's *momentum*: the mean of its
changes, number by number, where each weighs :data:`DECAY` of the next one. In every cell that at
least three of a round's replies cover, a client's *deviation* is its momentum's difference from the
median of theirs. Over all these cells:

- *agreement*: two clients whose deviations have a cosine above :data:`AGREES` are left out, since
  those of honest clients point to different sides (after FoolsGold, Fung et al., RAID 2020, which
  compares the sums of the updates themselves);
- *distance*: a client with at least :data:`HEARD` replies is left out if its deviation is longer
  than :data:`FAR` times the median of the deviations in the same cells.

The worst go first, agreement before distance, while fewer than half of the round's replies are left
out. A client that is left out is judged again in the next round. What is left is clipped
(:mod:`superfednas.server.average.robust`) and averaged as it came: momenta judge and are not
merged, since merging them slows training down by as many rounds as they remember. (Clipped round
the last merge's direction, as in the paper, and with a decay of .9, digits came to 72% in place of
91% after 20 rounds without any attack.)

Over 20 rounds of digits (ten label-skewed clients, a seed of its own, every fourth round looked at)
honest clients agreed by at most .43, and from the fifth reply on lay at most 1.3 times as far as
the median. Two that sent mean − 1.5 · s.d. agreed by .97 or more and lay 1.9 to 2.6 times as far.

**Memory**, beside that of all averages that hold replies: for each client that has answered within
the last :data:`FORGET` rounds, in float32, the tensors of the supernet of which it has trained a
part. That is at most (FORGET + 1) × clients-per-round × the supernet, and at most clients × the
supernet; as much again is in every checkpoint.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from superfednas.server.average.robust import FEW, Held, HeldAverage, clip_factors, meetings
from superfednas.supernet import State
from superfednas.supernet.boxes import pieces

DECAY = 0.8
AGREES = 0.6
FAR = 1.5
HEARD = 5
FORGET = 10  # rounds without a reply: what is left of its momentum weighs a tenth
_LARGEST = torch.finfo(torch.float32).max


class Histories:
    """Each client's momentum, and when it was heard.

    Attributes
    ----------
    momenta
        Client to tensors of the supernet's shapes, float32, with NaN where it has not trained yet.
        Tensors are replaced, never written to: a checkpoint may be reading them.
    replies
        Client to the number of its replies.
    silent
        Client to the number of rounds since its last reply.
    """

    def __init__(self) -> None:
        self.momenta: dict[str, State] = {}
        self.replies: dict[str, int] = {}
        self.silent: dict[str, int] = {}

    def add(self, reply: Held, sent: Mapping[str, torch.Tensor], factor: float) -> State:
        """Take in a reply's change, times ``factor``, and return its client's momentum."""
        found = dict(self.momenta.get(reply.client, {}))
        for name, placement in reply.boxes.items():
            old, new, before = sent[name], reply.tensors[name], found.get(name)
            after = torch.full(old.shape, torch.nan) if before is None else before.clone()
            for outer, inner in pieces(placement):
                change = factor * (new[inner].double() - old[outer].double())
                past = after[outer].double()
                mixed = torch.where(past.isnan(), change, DECAY * past + (1 - DECAY) * change)
                after[outer] = mixed.clamp(-_LARGEST, _LARGEST).float()
            found[name] = after
        self.momenta[reply.client] = found
        self.replies[reply.client] = self.replies.get(reply.client, 0) + 1
        self.silent[reply.client] = 0
        return found

    def end_round(self, heard: Sequence[str]) -> None:
        """Count a round of silence for all but these clients; forget who is silent for long."""
        for client in self.silent.keys() - set(heard):
            self.silent[client] += 1
            if self.silent[client] > FORGET:
                del self.momenta[client], self.replies[client], self.silent[client]

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside :meth:`tensors`, as JSON values."""
        return {"replies": self.replies, "silent": self.silent}

    def tensors(self) -> list[State]:
        """Return the momenta, in the order of ``replies``."""
        return [self.momenta[client] for client in self.replies]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state` from a checkpoint."""
        self.replies, self.silent = dict(state["replies"]), dict(state["silent"])

    def recall(self, tensors: Sequence[State], within: State) -> None:
        """Restore :meth:`tensors` from a checkpoint, after :meth:`restore`.

        Raises
        ------
        ValueError
            If there are not as many as clients, or their shapes are not those of ``within``.
        """
        for momentum in tensors:
            for name, tensor in momentum.items():
                if name not in within or tensor.shape != within[name].shape:
                    raise ValueError(f"what it remembers of {name!r} does not fit the supernet")
        self.momenta = dict(zip(self.replies, tensors, strict=True))


class HistoryAverage(HeldAverage):
    """Average clipped replies, without those whose clients' histories agree or stand out.

    With clients of different names the result does not depend on the order of the replies, to the
    last bit. In a cell of n replies one of them moves the result by at most
    :data:`~superfednas.server.average.robust.MULTIPLE` / n times the median length of the replies
    that are averaged.

    Parameters
    ----------
    state
        The supernet's tensors, from which the subnets were extracted; not written to.
    histories
        The memory between rounds; :meth:`result` adds this round.
    """

    clips_below = math.inf

    def __init__(self, state: Mapping[str, torch.Tensor], histories: Histories) -> None:
        super().__init__(state)
        self._histories = histories

    def _judge(self) -> None:
        self._held.sort(key=lambda reply: reply.client)
        factors = clip_factors([reply.length for reply in self._held])
        momenta = [
            self._histories.add(reply, self._state, factor)
            for reply, factor in zip(self._held, factors, strict=True)
        ]
        clients = [reply.client for reply in self._held]
        self._histories.end_round(clients)
        agreement, distance = deviations(self._held, momenta, self._state)
        heard = [self._histories.replies[client] >= HEARD for client in clients]
        found = {}
        for k, other in stand_out(agreement, np.where(heard, distance, 0.0)).items():
            why = (
                f"lies {distance[k]:.1f} times as far from the others' as the median"
                if other is None
                else f"agrees with that of client {clients[other]} ({agreement[k, other]:.2f})"
            )
            found[k] = self.verdicts[clients[k]] = f"left out: its history {why}"
        self._held = [reply for k, reply in enumerate(self._held) if k not in found]

    def _combine(self, values: np.ndarray, holders: Sequence[int]) -> np.ndarray:
        found: np.ndarray = values.mean(axis=0)
        return found


def deviations(
    held: Sequence[Held], momenta: Sequence[State], state: Mapping[str, torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare momenta where at least three replies meet.

    Parameters
    ----------
    held, momenta
        The replies, and the momentum of each one's client.
    state
        The weights that were sent.

    Returns
    -------
    tuple
        Cosines of the deviations from the median, (replies, replies), 0 where two share no cell;
        and the length of each deviation, in units of the (lower) median length of the same cells,
        (replies,), 1 where nothing was compared.
    """
    count = len(held)
    products, squares = np.zeros((count, count)), np.zeros((count, count))
    usual = np.zeros(count)
    for name, old in state.items():
        placed = [
            (k, outer, momenta[k][name][outer])
            for k, reply in enumerate(held)
            if name in reply.boxes
            for outer, _ in pieces(reply.boxes[name])
        ]
        for _, holders, values in meetings(old.shape, placed):
            if len(holders) < FEW:
                continue
            rows = values.reshape(len(holders), -1)
            rows -= np.median(rows, axis=0)
            product = rows @ rows.T
            own = np.diag(product)
            both = np.ix_(holders, holders)
            products[both] += product
            squares[both] += own[:, None]
            usual[holders] += np.sort(own)[(len(own) - 1) // 2]
    lengths = np.sqrt(squares * squares.T)
    agreement = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    distance = np.sqrt(np.divide(np.diag(squares), usual, out=np.ones(count), where=usual > 0))
    return agreement, distance


def stand_out(agreement: np.ndarray, distance: np.ndarray) -> dict[int, int | None]:
    """Return who is left out, with the one it agrees with, or None for its distance.

    Parameters
    ----------
    agreement, distance
        As :func:`deviations` returns them.
    """
    count = len(distance)
    pairs = [(i, j) for i in range(count) for j in range(i) if agreement[i, j] > AGREES]
    found: dict[int, int | None] = {}
    for i, j in sorted(pairs, key=lambda pair: -agreement[pair]):
        if len(found.keys() | {i, j}) < count / 2:
            found.setdefault(i, j)
            found.setdefault(j, i)
    for k in sorted(range(count), key=lambda k: -distance[k]):
        if distance[k] > FAR and k not in found and len(found) + 1 < count / 2:
            found[k] = None
    return found
