"""HeteroFL: every client has a width level of its own.

Its scaler is left out: a norm layer behind every convolution takes a factor off again.
"""

from collections.abc import Sequence

from server.assignment import Client, Static
from server.methods.method import Method
from supernet import Architecture, SearchSpace


class WidthLevels(Static):
    """Client number n always trains width level ``n mod levels``, or the next lower that it holds.

    Parameters
    ----------
    space, seed
        As for every policy.
    levels
        Subnets of rising width; by default all widths of the space.
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, levels: Sequence[Architecture] = ()
    ) -> None:
        super().__init__(space, seed)
        self.rungs = list(levels) or [space.at_width(share) for share in space.width_shares or (1,)]

    def eligible(self, client: Client) -> bool:
        """Say whether a client can hold the narrowest level."""
        return client.can_hold(self.space, self.rungs[0])


METHOD = Method(
    name="heterofl",
    source="arXiv 2010.01264",
    sends="to each the subnet of its width level, from the first channels on",
    trains="what it got",
    averages="what overlaps, all alike",
    settings={
        "space": "mobilenetv1-tiny",
        "assignment": "width-levels",
        "averaging": "overlap",
    },
)
