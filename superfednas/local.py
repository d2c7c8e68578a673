"""A run in this process: its folder, opened, and its nodes."""

from dataclasses import replace
from pathlib import Path

from superfednas.client.app import app
from superfednas.common.settings import Scalar, flatten
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.trained import Trained, trusted_settings
from superfednas.server.settings import Settings, check_settings


def opened(run_dir: str | Path | Trained, dataset: str, trust_code: bool) -> Trained:
    """Open a run; what an earlier version's run.json does not say follows from its settings."""
    trained = Trained.open(run_dir, dataset, trust_code=trust_code)
    if trained.says_what_it_trained:
        return trained
    settings = check_settings(trusted_settings(trained.run, trust_code))
    return replace(trained, ladder=settings.rungs(trained.space), levels=settings.only_levels)


def local_grid(settings: Settings, workers: int, state_dir: str | Path = "") -> LocalGrid:
    """Return a grid of the run's clients.

    Parameters
    ----------
    settings
        Of the run: how many clients, and what they are told.
    workers
        Clients at a time.
    state_dir
        Where each client gets a folder, named by its number; empty: none gets one.
    """
    nodes: dict[int, dict[str, Scalar]] = {
        number + 1: {"partition-id": number, "num-partitions": settings.clients}
        for number in range(settings.clients)
    }
    if state_dir:
        for number, config in enumerate(nodes.values()):
            config["state-dir"] = str(Path(state_dir).expanduser().resolve() / str(number))
    return LocalGrid(app, nodes, flatten(settings), workers)
