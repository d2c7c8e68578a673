"""Training in this process, with what was said and sent kept, and rounds folded by hand."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict

from superfednas.client.app import app as client_app
from superfednas.common.settings import Scalar, flatten
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder
from superfednas.server.app import Prepared, main, prepare, run_training
from superfednas.server.assign.weights import round_weights
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.journal.progress import Progress
from superfednas.server.strategy import SupernetStrategy, TrainingStalled
from superfednas.supernet import SearchSpace, State
from superfednas.wire.flat import unpack
from tests.support.rows import lines

App = Callable[[Message, Context], Message]
Row = dict[str, Any]
BASE: dict[str, Scalar] = {
    "rounds": 2,
    "clients-per-round": 3,
    "local-steps": 1,
    "batch-size": 8,
    "evaluate-every": 0,
    "seed": 3,
    "device": "cpu",
}


class Quiet(Progress):
    """Keep what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def write(self, text: str) -> None:
        self.said.append(text)

    def __contains__(self, parts: Iterable[str]) -> bool:
        return any(all(part in line for part in parts) for line in self.said)


class Recorder:
    """A ClientApp that keeps what was sent, and what each client answered, by round and name."""

    def __init__(self, app: App = client_app) -> None:
        self.app = app
        self.orders: list[Message] = []
        self.sent: dict[tuple[int, str], Message] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        self.orders.append(message)
        reply = self.app(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            self.sent[order_of(message), str(context.node_config["partition-id"])] = reply
        return reply

    @property
    def kinds(self) -> list[str]:
        return [message.metadata.message_type for message in self.orders]

    def flat(self, number: int, name: str) -> np.ndarray:
        return self.sent[number, name].content.array_records["arrays"]["subnet"].numpy()


def order_of(message: Message) -> int:
    return int(str(message.content.config_records["config"]["round"]))


def node_configs(count: int) -> dict[int, dict[str, Scalar]]:
    return {k + 1: {"partition-id": k, "num-partitions": count} for k in range(count)}


def ready(values: Mapping[str, Scalar] | None = None) -> Prepared:
    return prepare(BASE | dict(values or {}))


def train(
    values: Mapping[str, Scalar] | None = None,
    app: App = client_app,
    *,
    grid_class: type[LocalGrid] = LocalGrid,
    workers: int = 1,
    clients: int = 4,
    nodes: Mapping[int, Mapping[str, Scalar]] | None = None,
    run: RunFolder | None = None,
    progress: Progress | None = None,
    stalls: bool = False,
) -> SupernetStrategy:
    """Train in this process and return the strategy with its state and rows.

    With ``stalls`` no reply of any round must be usable.
    """
    prepared = ready(values)
    strategy = SupernetStrategy(
        prepared.settings, run=run, data=prepared.data, progress=progress or Quiet()
    )
    grid = grid_class(app, nodes or node_configs(clients), {}, workers)
    try:
        with pytest.raises(TrainingStalled) if stalls else contextlib.nullcontext():
            strategy.train(grid, prepared.state)
    finally:
        grid.close()
    return strategy


def full_run(
    folder: Path,
    values: Mapping[str, Scalar] | None = None,
    app: App = client_app,
    *,
    progress: Progress | None = None,
    clients: int = 4,
) -> RunFolder:
    """Train as ``superfednas train`` does, into a run folder (or go on with one)."""
    values = BASE | {"run-dir": str(folder)} | dict(values or {})
    prepared = prepare(values)
    grid = LocalGrid(app, node_configs(clients), flatten(prepared.settings), 1)
    try:
        return run_training(prepared, grid, progress or Quiet())
    finally:
        grid.close()


def as_flower(
    values: Mapping[str, Scalar],
    app: App = client_app,
    *,
    clients: int = 4,
    of: int = 1,
    grid_class: type[LocalGrid] = LocalGrid,
    nodes: Mapping[int, Mapping[str, Scalar]] | None = None,
) -> None:
    """Do what the ServerApp of Flower's run ``of`` does, with nodes in this process."""
    run_config = {**BASE, **values}
    context = Context(
        run_id=of, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    grid = grid_class(app, nodes or node_configs(clients), {})
    try:
        main(grid, context)
    finally:
        grid.close()


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rounds_of(strategy: SupernetStrategy) -> list[Row]:
    return [row for row in lines(strategy.rows) if row["kind"] == "round"]


def timeless(value: Any) -> Any:
    """Drop every ``seconds`` of a row."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def fold_by_hand(
    space: SearchSpace, state: State, row: Row, updates: Mapping[str, np.ndarray]
) -> State:
    """Fold a round's replies in assignment order, with the weights fixed for everybody."""
    assigned = {c["client"]: space.parse(c["architecture"]) for c in row["clients"]}
    most = max(space.macs(arch) for arch in assigned.values())
    favoured = [name for name, arch in assigned.items() if space.macs(arch) == most]
    weights = round_weights(assigned, favoured, row["beta"])
    average = OverlapAverage(state)
    for name, arch in assigned.items():
        if name in updates:
            average.add(unpack(updates[name], space.shapes(arch)), weights[name])
    return average.result()
