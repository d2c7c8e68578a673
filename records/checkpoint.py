"""A checkpoint: a run's state after a round, and the one file that holds it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superfednas.common.damage import damage_of, fill
from superfednas.records.tensors import RunFolderError, read_tensors
from superfednas.supernet import State


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after a round.

    Parameters
    ----------
    round
        The last finished round; 0 before the first.
    state
        The supernet's tensors.
    memory
        Policy counters and so on, as JSON values.
    beside
        States beside the supernet, by name, that the run's method trains.
    remembered
        Tensors that the run's averaging remembers, in its own order.
    """

    round: int
    state: State
    memory: dict[str, Any]
    beside: Mapping[str, State] = field(default_factory=dict)
    remembered: tuple[State, ...] = ()


def packed(point: Checkpoint) -> tuple[State, str]:
    """Return a checkpoint's tensors under the names of its file, and the note beside them."""
    note: dict[str, Any] = {"round": point.round, "memory": point.memory}
    tensors = dict(point.state)
    if point.beside:
        note["beside"] = list(point.beside)
        for number, state in enumerate(point.beside.values()):
            tensors |= {_beside(number) + name: tensor for name, tensor in state.items()}
    if point.remembered:
        note["remembered"] = len(point.remembered)
        for number, state in enumerate(point.remembered):
            tensors |= {_remembered(number) + name: tensor for name, tensor in state.items()}
    return tensors, json.dumps(note)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's file.

    Raises
    ------
    superfednas.records.tensors.RunFolderError
        If it is missing, damaged or none.
    """
    state, about = read_tensors(path)
    with damage_of(path, RunFolderError):
        names = about.get("beside", ())
        beside = {name: _taken_out(state, _beside(number)) for number, name in enumerate(names)}
        # What is counted is bounded by what is there: a number in a file may be any.
        found = range(min(about.get("remembered", 0), len(state)))
        fields = {
            "round": about["round"],
            "state": state,
            "memory": about["memory"],
            "beside": beside,
            "remembered": tuple(_taken_out(state, _remembered(number)) for number in found),
        }
        return fill(Checkpoint, fields)


def _beside(number: int) -> str:
    """Return what stands before a tensor's name where it is not the supernet's."""
    return f"{number}:"


def _remembered(number: int) -> str:
    """Return what stands before a tensor's name where the averaging remembers it."""
    return f"m{number}:"


def _taken_out(tensors: State, start: str) -> State:
    """Take the tensors whose names start so out of those of a file."""
    names = [name for name in tensors if name.startswith(start)]
    return {name.removeprefix(start): tensors.pop(name) for name in names}
