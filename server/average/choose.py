"""The choice of a run's averaging, and its memory between rounds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from superfednas.server.average.defl import DeflAverage, Records
from superfednas.server.average.history import Histories, HistoryAverage
from superfednas.server.average.overlap import Aggregation, OverlapAverage, blank
from superfednas.server.average.robust import RobustAverage
from superfednas.server.round.orders import SUPERNET
from superfednas.server.settings import Settings
from superfednas.supernet import State


class Averaging:
    """Open one aggregation per round and target, according to ``averaging``.

    The plain average has two sets of tensors per target, which take turns: a round's result is in
    one of them and stays valid until the round after the next is opened.

    Parameters
    ----------
    settings
        ``averaging`` and ``trim_share``.
    """

    def __init__(self, settings: Settings) -> None:
        self._rule = settings.averaging
        self._own = settings.rule.own
        self._plain = self._own is None and not settings.rule.alike
        self._trim_share = settings.trim_share
        self._records: dict[str, Records] = {}
        self._histories: dict[str, Histories] = {}
        self._sets: list[State] = []

    def open(self, states: Mapping[str, State]) -> dict[str, Aggregation]:
        """Return, for each target, an aggregation of one round's replies into its state."""
        if self._own is not None:
            return {name: self._own(state) for name, state in states.items()}
        if self._plain:
            places = self._free(states)
            return {name: OverlapAverage(state, places[name]) for name, state in states.items()}
        return {name: self._robust(name, state) for name, state in states.items()}

    def _robust(self, target: str, state: State) -> Aggregation:
        if self._rule == "defl":
            return DeflAverage(state, self._records.setdefault(target, Records()))
        if self._rule == "history":
            return HistoryAverage(state, self._histories.setdefault(target, Histories()))
        return RobustAverage(state, self._rule, self._trim_share)

    def _free(self, states: Mapping[str, State]) -> dict[str, State]:
        """Return, for each state, tensors like its own that hold none of the states."""
        taken = set().union(*map(_storages, states.values()))
        live = [tensors for tensors in self._sets if not taken.isdisjoint(_storages(tensors))]
        idle = [tensors for tensors in self._sets if taken.isdisjoint(_storages(tensors))]
        places: dict[str, State] = {}
        for name, state in states.items():
            found = next((i for i, tensors in enumerate(idle) if _alike(state, tensors)), None)
            places[name] = blank(state) if found is None else idle.pop(found)
        self._sets = [*live, *places.values()]
        return places

    def adopt(self, state: State) -> None:
        """Take ownership of the first state, to write into it in the second round."""
        if self._plain:
            self._sets = [state]

    def let_go(self) -> None:
        """Stop writing into the tensors that were returned."""
        self._sets = []

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        of = {target: records.state() for target, records in self._records.items()}
        beside = {target: state for target, state in of.items() if target != SUPERNET}
        found = of.get(SUPERNET, Records().state()) | ({"beside": beside} if beside else {})
        histories = {target: each.state() for target, each in self._histories.items()}
        return found | ({"histories": histories} if histories else {})

    def remembered(self) -> tuple[State, ...]:
        """Return the tensors that a resumed run needs beside :meth:`state`."""
        return tuple(state for each in self._histories.values() for state in each.tensors())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state` from a checkpoint."""
        for target, records in {SUPERNET: state, **state.get("beside", {})}.items():
            self._records.setdefault(target, Records()).restore(records)
        for target, histories in state.get("histories", {}).items():
            self._histories.setdefault(target, Histories()).restore(histories)

    def recall(self, tensors: Sequence[State], states: Mapping[str, State]) -> None:
        """Restore :meth:`remembered`, after :meth:`restore`.

        Parameters
        ----------
        tensors
            From a checkpoint.
        states
            The targets, whose shapes they must have.

        Raises
        ------
        ValueError
            If they do not fit what was restored.
        """
        waiting = iter(tensors)
        for target, histories in self._histories.items():
            some = list(itertools.islice(waiting, len(histories.replies)))
            histories.recall(some, states.get(target, states[SUPERNET]))


def _storages(state: Mapping[str, torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in state.values()}


def _alike(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors have the same names, shapes and formats."""
    return list(a) == list(b) and all(
        a[name].shape == b[name].shape and a[name].dtype == b[name].dtype for name in a
    )
