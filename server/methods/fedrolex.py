"""FedRolex: as HeteroFL, with windows that roll over all channels from round to round."""

from server.methods.heterofl import METHOD as HETEROFL
from server.methods.heterofl import WidthLevels
from server.methods.method import Method
from supernet.norms import GROUP_CHANNELS


class RollingWidthLevels(WidthLevels):
    """Width levels whose windows move on by a norm group every round.

    The paper's windows move by one channel; here norm groups of 8 stay whole.
    """

    def shift(self, round: int) -> int:  # noqa: A002
        """Channels by which this round's windows are moved."""
        return GROUP_CHANNELS * (round - 1)


METHOD = Method(
    name="fedrolex",
    source="arXiv 2212.01548",
    sends="as HeteroFL, from another channel on every round: windows roll by 8",
    trains="what it got",
    averages="what overlaps, all alike",
    settings={**HETEROFL.settings, "assignment": "rolling-width-levels"},
)
