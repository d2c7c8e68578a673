"""Which averaging a run uses: the one place that chooses, and what it remembers between rounds."""

from collections.abc import Mapping
from typing import Any

import torch

from server.aggregation import Aggregation, OverlapAverage
from server.defl import DeflAverage, Records
from server.robust import RobustAverage
from server.settings import Settings


class Averaging:
    """Open one aggregation a round, as ``averaging`` says.

    Parameters
    ----------
    settings
        ``averaging`` and ``trim_share``.
    """

    def __init__(self, settings: Settings) -> None:
        self._rule = settings.averaging
        self._trim_share = settings.trim_share
        self._records = Records()

    def open(self, state: Mapping[str, torch.Tensor]) -> Aggregation:
        """Return what merges one round's replies into ``state``."""
        if self._rule in ("maxnet", "overlap"):
            return OverlapAverage(state)
        if self._rule == "defl":
            return DeflAverage(state, self._records)
        return RobustAverage(state, self._rule, self._trim_share)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return self._records.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`state` of a checkpoint."""
        self._records.restore(state)
