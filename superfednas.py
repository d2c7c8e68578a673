"""SuperFedNAS from Python: the calls behind the ``superfednas`` command.

>>> import superfednas
>>> run = superfednas.train(rounds=100, clients=10, clients_per_round=5)
>>> superfednas.evaluate(run.path, "smallest").accuracy
"""

from pathlib import Path

import torch

from client.app import app as client_app
from data import DataSettings, load_dataset, partition
from nas.accuracy import Score, check_fit, score, subnet_module
from server.app import prepare, run_training
from server.local_grid import LocalGrid
from server.progress import Progress
from server.run_folder import RunFolder
from supernet import SearchSpace
from supernet.config import Scalar, SettingsError, flatten, parse
from supernet.wire import SpaceOptions

__all__ = ["evaluate", "run_space", "train"]


def train(*, progress: Progress | None = None, workers: int = 1, **settings: Scalar) -> RunFolder:
    """Train a supernet in this process, without Ray or gRPC.

    Parameters
    ----------
    progress
        Where the run reports; by default one printed line a round.
    workers
        Clients trained at a time; the result does not depend on it.
    **settings
        Any run-config key in snake_case (``clients_per_round=8``); `superfednas train --help`.

    Returns
    -------
    RunFolder
        The finished run.

    Raises
    ------
    ValueError
        One sentence that names a wrong setting, its value and what is allowed.
    """
    prepared = prepare({key.replace("_", "-"): value for key, value in settings.items()})
    clients, sampled = prepared.settings.clients, prepared.settings.clients_per_round
    if sampled > clients:
        raise SettingsError(f"clients-per-round = {sampled}: there are only clients = {clients}")
    if prepared.data is not None:  # what no client could load is said once, before any starts
        partition(prepared.data, prepared.settings.data, clients, prepared.settings.seed)
    nodes: dict[int, dict[str, Scalar]] = {
        number + 1: {"partition-id": number, "num-partitions": clients} for number in range(clients)
    }
    grid = LocalGrid(client_app, nodes, flatten(prepared.settings), workers)
    try:
        return run_training(prepared, grid, progress or Progress())
    finally:
        grid.close()


def run_space(run: RunFolder) -> SearchSpace:
    """Return the search space of a run."""
    return parse(SpaceOptions, run.settings, ignore_unknown=True).load()


def evaluate(
    run_dir: str | Path, arch: str, *, split: str = "validation", dataset: str = ""
) -> Score:
    """Measure one subnet of a trained supernet.

    Parameters
    ----------
    run_dir
        A run folder; of an unfinished run the newest checkpoint counts.
    arch
        ``largest``, ``smallest``, ``random:SEED`` or JSON.
    split
        ``validation`` or ``test`` (which is for final figures, not for choosing).
    dataset
        In place of the run's own data set.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split = {split!r}: must be validation or test")
    run = RunFolder.open(run_dir)
    values = run.settings | ({"dataset": dataset} if dataset else {})
    if values["dataset"] == "none":
        raise SettingsError("the run's server had no data: name a data set to evaluate on")
    space = run_space(run)
    architecture = space.parse(arch)
    data = load_dataset(parse(DataSettings, values, ignore_unknown=True))
    check_fit(space, data)
    state, _ = run.weights()
    module = subnet_module(space, state, architecture)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.test if split == "test" else data.validation
    return score(module.to(device), images, data.mean, data.std, calibration=data.train)
