"""The masked sum: what is added modulo 2³² while it cannot be read, and what it stands for."""

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch

from superfednas.server.secure.answers import SEED
from superfednas.supernet import SearchSpace, State
from superfednas.supernet.boxes import Cut
from superfednas.wire.flat import arrays_of
from superfednas.wire.secure.cells import Cell, view
from superfednas.wire.secure.fixed import from_fixed
from superfednas.wire.secure.keys import add_mask, own_key, pair_key
from superfednas.wire.secure.parties import Parties

_ROUNDED = 1.001  # what clipping in floating point may be off by


class MaskedSum:
    """The sum of a round's masked changes, in the supernet's shapes.

    Parameters
    ----------
    space
        The run's.
    parties
        The round's.
    members
        Numbers of those that have given shares.
    """

    def __init__(self, space: SearchSpace, parties: Parties, members: Collection[int]) -> None:
        self._parties, self._members = parties, members
        self.rule = parties.rule(members)
        self.cells = parties.cells(space, members)
        self._shapes = space.shapes(space.largest)
        self._sums = {name: np.zeros(shape, np.uint32) for name, shape in self._shapes.items()}

    def add(self, number: int, flat: np.ndarray, cut: Cut) -> None:
        """Add a member's masked change: a flat uint32 array."""
        if not self._parties.parties[number].weight:
            return
        for name, part in arrays_of(flat, cut.shapes).items():
            for outer, inner in cut.parts(name):
                place = self._sums[name][view(outer)]
                np.add(place, part[inner], out=place)

    def unmask(
        self,
        survivors: Collection[int],
        tiers: Collection[int],
        secrets: Mapping[tuple[int, str], bytes],
    ) -> None:
        """Take the masks off: the survivors' own in these tiers, and those shared with others.

        Parameters
        ----------
        survivors
            Numbers of those whose changes have been added.
        tiers
            What is unmasked; the rest stays masked for good.
        secrets
            As :class:`superfednas.server.secure.answers.Recovery` restores them.
        """
        parties = self._parties
        weighty = {n for n in self._members if parties.parties[n].weight}
        for number in weighty & set(survivors):
            for tier in tiers:
                parts = [
                    self._part(cell)
                    for cell in self.cells
                    if number in cell.holders and self.rule.tier(cell) == tier
                ]
                key = own_key(secrets[number, str(tier)])
                add_mask(parts, key, subtract=True)
        for gone in weighty - set(survivors):
            for number in weighty & set(survivors):
                parts = [
                    self._part(cell)
                    for cell in self.cells
                    if {number, gone} <= set(cell.holders) and self.rule.tier(cell) is not None
                ]
                public = parties.parties[number].public
                key = pair_key(secrets[gone, SEED], public, parties.pair(number, gone))
                add_mask(parts, key, subtract=number < gone)

    def merged(
        self, state: State, survivors: Collection[int], tiers: Collection[int]
    ) -> State | None:
        """Return a state to which the weighted mean of the changes has been added, cell by cell.

        Returns
        -------
        dict or None
            New tensors. None if the sum is longer than clipped changes can make it, so that some
            client has not clipped its change, or has masked it wrongly.
        """
        parties = self._parties
        weights = {number: parties.parties[number].weight for number in survivors}
        new, square, count = {name: t.clone() for name, t in state.items()}, 0.0, 0
        for cell in self.cells:
            weight = sum(weights.get(number, 0.0) for number in cell.holders)
            if self.rule.tier(cell) not in tiers or not weight:
                continue
            total = from_fixed(np.ascontiguousarray(self._part(cell)), parties.scale)
            square += float(np.square(total).sum())
            count += cell.size
            here = view(cell.place)
            new[cell.tensor][here] = (
                new[cell.tensor][here].double() + torch.from_numpy(total / weight)
            ).to(new[cell.tensor].dtype)
        longest = parties.clip * sum(weights.values())
        rounding = len(weights) / 2 / parties.scale * math.sqrt(count)
        return new if math.sqrt(square) <= _ROUNDED * longest + rounding else None

    def left_out(self, tiers: Collection[int]) -> float:
        """Return the share of the supernet's numbers that some hold, but that stay masked."""
        hidden = sum(cell.size for cell in self.cells if self.rule.tier(cell) not in tiers)
        return hidden / sum(map(math.prod, self._shapes.values()))

    def _part(self, cell: Cell) -> np.ndarray:
        part: np.ndarray = self._sums[cell.tensor][view(cell.place)]
        return part
