"""Flower's own ``FedAvg`` with empty clients: the cost of a round in a bare Flower app."""

import logging
import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from superfednas.flower.local_grid import LocalGrid
from superfednas.supernet import load_space
from superfednas.wire.flat import numel


class Timed(FedAvg):
    """Flower's FedAvg without evaluation, recording the time at which each round was averaged."""

    def __init__(self, nodes: int, clients: int) -> None:
        super().__init__(
            fraction_train=clients / nodes,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_evaluate_nodes=0,
            min_available_nodes=nodes,
        )
        self.ended = [time.perf_counter()]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Average, and record the time."""
        found = super().aggregate_train(server_round, replies)
        self.ended.append(time.perf_counter())
        return found


def answer(message: Message, context: Context) -> Message:
    """Send back what was received."""
    metrics = MetricRecord({"num-examples": 100})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


def model(space: str, *, flat: bool) -> list[np.ndarray]:
    """Return arrays of the median size of a space's subnets: one, or one a tensor."""
    family = load_space(space)
    rng = np.random.default_rng(0)
    drawn = [family.largest, family.smallest, *(family.sample(rng) for _ in range(30))]
    shapes = family.shapes(sorted(drawn, key=family.params)[len(drawn) // 2])
    if flat:
        return [np.zeros(numel(shapes), np.float32)]
    return [np.zeros(shape, np.float32) for shape in shapes.values()]


def run(grid: Grid, arrays: list[np.ndarray], nodes: int, clients: int, count: int) -> list[float]:
    """Run Flower's own loop; return every round's seconds."""
    named = {str(number): Array(array) for number, array in enumerate(arrays)}
    trainer = Timed(nodes, clients)
    trainer.start(grid, ArrayRecord(named), num_rounds=count)
    return list(np.diff(trainer.ended))


def local_rounds(space: str, nodes: int, clients: int, count: int) -> list[float]:
    """Run it in this process, with the grid of ``superfednas train``; the first does not count."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    configs = {n + 1: {"partition-id": n, "num-partitions": nodes} for n in range(nodes)}
    grid = LocalGrid(answer, configs, {}, 1)
    try:
        return run(grid, model(space, flat=True), nodes, clients, count + 1)[1:]
    finally:
        grid.close()
