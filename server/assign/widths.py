"""Policies of width levels: who trains which share of all channels (HeteroFL, FjORD, FedRolex)."""

from collections.abc import Sequence

from superfednas.server.assign.client import Client
from superfednas.server.assign.policies import Static
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.norms import GROUP_CHANNELS
from superfednas.wire.order import LocalSubnets


class WidthLevels(Static):
    """Client n always trains width level ``n mod levels``, or the next lower one that it can hold.

    Parameters
    ----------
    space, seed
        As for every policy.
    levels
        Architectures of rising width; by default all widths of the space.
    """

    levels = True

    def __init__(
        self, space: SearchSpace, seed: int = 0, levels: Sequence[Architecture] = ()
    ) -> None:
        super().__init__(space, seed)
        self.rungs = list(levels) or [space.at_width(share) for share in space.width_shares or (1,)]

    @classmethod
    def configured(
        cls, space: SearchSpace, seed: int, architecture: str, subnets: LocalSubnets
    ) -> "WidthLevels":
        """Return the policy of the run's ``width-levels``."""
        return cls(space, seed, subnets.levels(space))

    def eligible(self, client: Client) -> bool:
        """Return whether a client can hold the narrowest level."""
        return client.can_hold(self.space, self.rungs[0])


class RollingWidthLevels(WidthLevels):
    """Width levels whose windows move on by a norm group every round.

    The paper's windows move by one channel; here norm groups of 8 stay whole.
    """

    def shift(self, round: int) -> int:  # noqa: A002
        """Channels by which this round's windows are shifted."""
        return GROUP_CHANNELS * (round - 1)
