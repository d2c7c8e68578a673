"""Methods at equal cost: how many rounds each may train, and the cells of a table of runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import superfednas
from superfednas.client.shared_weights import sampler
from superfednas.client.training import batch_indices
from superfednas.common.streams import Purpose, stream
from superfednas.data import load_dataset, partition
from superfednas.records.folder import RunFolder
from superfednas.server.app import prepare
from superfednas.server.assign.client import Client, sample_clients
from superfednas.server.settings import Settings
from superfednas.supernet import Architecture, SearchSpace

Values = Mapping[str, Any]


def cost_by_round(values: Values, rounds: int) -> list[float]:
    """Return the cumulated GMAC·images after every round, before anything is trained.

    Exact, since assignments and the subnets of every step depend on the seed alone.

    Parameters
    ----------
    values
        Settings as :func:`superfednas.train` takes them, without device classes.
    rounds
        How many rounds to count.
    """
    prepared = prepare({key.replace("_", "-"): value for key, value in values.items()})
    settings = prepared.settings
    space, data = settings.space.load(), load_dataset(settings.data)
    policy = settings.policy(space)
    parts = partition(data, settings.data, settings.clients, settings.seed)
    names = [str(number) for number in range(settings.clients)]
    total, costs = 0, []
    for number in range(1, rounds + 1):
        sampled = sample_clients(names, settings.clients_per_round, settings.seed, number)
        clients = [Client(name, examples=len(parts[int(name)])) for name in sampled]
        for name, arch in policy.assign(number, clients).items():
            total += _local_cost(settings, space, number, name, arch, len(parts[int(name)]))
        costs.append(total / 1e9)
    return costs


def _local_cost(
    settings: Settings, space: SearchSpace, number: int, name: str, arch: Architecture, images: int
) -> int:
    """Return one client's forward multiply-accumulates in one round."""
    batches = [
        len(rows)
        for rows in batch_indices(
            images,
            settings.local,
            torch.Generator(),
            merge_single=settings.space.norm == "batch",
        )
    ]
    if not settings.subnets.drawn:
        return space.macs(arch) * sum(batches)
    rng = stream(settings.seed, Purpose.LOCAL_SUBNETS, round=number, name=name)
    draw = sampler(space, arch, settings.subnets, rng)
    return sum(size * sum(map(space.macs, draw())) for size in batches)


def rounds_within(values: Values, budget: float) -> int:
    """Return the rounds after which a run's cost is nearest to a budget in GMAC·images, at least 1.

    Schedules are over a run's rounds, and assignments do not depend on them.
    """
    rounds = 16
    while (costs := cost_by_round(values, rounds))[-1] < budget:
        rounds *= 2
    return 1 + int(np.abs(np.array(costs) - budget).argmin())


def run_cell(folder: Path, values: Values) -> RunFolder:
    """Train one cell of a table, resume it, or take it as it is."""
    if (folder / "run.json").exists():
        run = RunFolder.open(folder)
        if run.info["status"] == "finished":
            return run
        return superfednas.train(resume=str(folder))
    return superfednas.train(run_dir=str(folder), **values)
