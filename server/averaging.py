"""Which averaging a run uses: the one place that chooses, and what it remembers between rounds."""

from collections.abc import Mapping
from typing import Any

import torch

from server.aggregation import Aggregation, OverlapAverage, blank
from server.defl import DeflAverage, Records
from server.robust import RobustAverage
from server.settings import Settings
from supernet import State


class Averaging:
    """Open one aggregation a round, as ``averaging`` says.

    The plain average has two sets of tensors, which take turns: a round's result lies in one of
    them and stays as it is until the round after the next is opened.

    Parameters
    ----------
    settings
        ``averaging`` and ``trim_share``.
    """

    def __init__(self, settings: Settings) -> None:
        self._rule = settings.averaging
        self._plain = self._rule in ("maxnet", "overlap")
        self._trim_share = settings.trim_share
        self._records = Records()
        self._sets: list[State] = []

    def open(self, state: Mapping[str, torch.Tensor]) -> Aggregation:
        """Return what merges one round's replies into ``state``."""
        if self._plain:
            return OverlapAverage(state, self._free(state))
        if self._rule == "defl":
            return DeflAverage(state, self._records)
        return RobustAverage(state, self._rule, self._trim_share)

    def _free(self, state: Mapping[str, torch.Tensor]) -> State:
        """Return tensors like a state's that it does not lie in."""
        taken = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        for tensors in self._sets:
            kept = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
            if taken.isdisjoint(kept) and _alike(state, tensors):
                return tensors
        self._sets = [*self._sets[-1:], blank(state)]
        return self._sets[-1]

    def adopt(self, state: State) -> None:
        """Take over a first state from its owner, to write into it in the second round."""
        if self._plain:
            self._sets = [state]

    def let_go(self) -> None:
        """Write no more into what was handed out."""
        self._sets = []

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return self._records.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`state` of a checkpoint."""
        self._records.restore(state)


def _alike(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Say whether two sets of tensors have the same names, shapes and formats."""
    return list(a) == list(b) and all(
        a[name].shape == b[name].shape and a[name].dtype == b[name].dtype for name in a
    )
