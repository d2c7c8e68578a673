"""Personalise subnets on the nodes: each fine-tunes them on its own images and keeps the result.

What comes back is two accuracies a subnet and node, before and after, on the node's own test
images; no weights do. The mean and its spread are over clients, as Kim and Yun report them (§4.1).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from rich.console import Console
from rich.table import Table

from server.errands import Errand, Party, order_of, plan_errands, settings_now
from server.progress import Progress
from server.replies import Personalised, check_personal
from server.run_folder import RunFolder, RunFolderError
from server.settings import Settings, check_settings
from supernet import Architecture, SearchSpace
from supernet.config import Scalar, SettingsError
from supernet.digest import digest
from supernet.files import write_whole
from supernet.wire import numpy_dtype

FOLDER = "personal"
FORMAT = 1
HEADINGS = ("subnet", "MMACs", "initial", "personalised", "clients")
_PRINTED = 12  # rows
_AT_A_TIME = 50  # subnets a message: fine-tuning takes long, and each answer says how it goes


@dataclass(frozen=True)
class Chosen:
    """The subnets to personalise, by name, and whether nodes keep them or only report."""

    archs: dict[str, Architecture]
    keep: bool


def choose(space: SearchSpace, settings: Settings, wanted: str) -> Chosen:
    """Read ``personal-subnets``.

    Parameters
    ----------
    space, settings
        The run's.
    wanted
        ``ladder`` (the run's), ``widths`` (its width levels), a whole number (so many random ones
        beside the largest and the smallest, of which nodes keep none), or one architecture as
        :meth:`SearchSpace.parse` reads it.

    Raises
    ------
    ValueError
        Where it is none of these.
    """
    if wanted == "ladder":
        return Chosen(settings.rungs(space), True)
    if wanted == "widths":
        return Chosen(settings.subnets.named_levels(space), True)
    if wanted.isdecimal() and int(wanted):
        rng = np.random.default_rng(settings.seed)
        archs = {"largest": space.largest, "smallest": space.smallest}
        drawn = dict.fromkeys(space.sample(rng) for _ in range(int(wanted)))
        for arch in drawn:
            if arch not in archs.values():
                archs[f"random {len(archs) - 1}"] = arch
        return Chosen(archs, False)
    try:
        return Chosen({wanted: space.parse(wanted)}, True)
    except ValueError as error:
        raise SettingsError(
            f"personal-subnets = {wanted!r}: must be ladder, widths, a whole number or one "
            f"architecture ({error})"
        ) from error


def personalise_by_nodes(values: Mapping[str, Scalar], grid: Grid, progress: Progress) -> Path:
    """Let all nodes personalise subnets of a trained supernet; write what they report.

    Parameters
    ----------
    values
        A run-config with ``personalise-run``. The run's own settings count, but for
        ``personal-subnets``, ``fine-tune…``, ``min-nodes`` and the time-outs.
    grid
        The nodes.
    progress
        Where it is told how it goes.

    Returns
    -------
    Path
        ``RUN/personal/personal-NNN.json``.

    Raises
    ------
    RunFolderError
        Where no node reported anything.
    """
    asked = check_settings(values)
    run = RunFolder.open(asked.personalise_run)
    settings = settings_now(run, asked, tuning=asked.tuning)
    state, rounds = run.weights()
    space = settings.space.load()
    chosen = choose(space, settings, asked.personal_subnets)
    party = Party(settings, space, grid, progress)
    clients = party.meet()
    tuning = settings.tuning
    progress.note(
        f"{len(clients)} nodes personalise {len(chosen.archs)} subnets of {run.path}: "
        f"{tuning.fine_tune}, {tuning.fine_tune_epochs} epochs"
    )
    archs = list(dict.fromkeys(chosen.archs.values()))
    errands = [
        replace(errand, archs=errand.archs[start : start + _AT_A_TIME])
        for node, client in clients
        for errand in plan_errands(space, archs, node, client)
        for start in range(0, len(errand.archs), _AT_A_TIME)
    ]

    def read(reply: Message, errand: Errand) -> Personalised:
        return check_personal(reply, errand.outer, len(errand.archs))

    path = _next(run)
    label = f"{run.path.name}-{path.stem.rpartition('-')[2]}" if chosen.keep else ""
    order = replace(order_of(settings), personalise=True, keep=label)
    found: dict[Architecture, dict[str, tuple[float, float]]] = {}
    sent = 0
    for errand, report in party.send(errands, state, order, read):
        sent += numpy_dtype(settings.wire_dtype).itemsize * space.params(errand.outer)
        for number, initial, personalised in report.rows:
            at = found.setdefault(errand.archs[number], {})
            at[errand.client] = (initial, personalised)
        progress.note(
            f"client {errand.client}: {len(report.rows)} subnets on {report.examples:,} test images"
        )
    if not found:
        raise RunFolderError("no node personalised anything: the reasons stand above")
    subnets = [_row(space, name, arch, found.get(arch, {})) for name, arch in chosen.archs.items()]
    table = {
        "format": FORMAT,
        "weights": digest(state),
        "rounds": rounds,
        "part": tuning.fine_tune,
        "epochs": tuning.fine_tune_epochs,
        "lr": tuning.fine_tune_lr or settings.local.lr,
        "bytes_down": sent,
        "subnets": [row for row in subnets if row["clients"]],
    }
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(table, indent=1, ensure_ascii=False))
    print_personal(table, progress.console)
    progress.write(f"personalised: {path}")
    return path


def _row(
    space: SearchSpace, name: str, arch: Architecture, found: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": arch.to_json(),
        "macs": space.macs(arch),
        "params": space.params(arch),
        "initial": spread([initial for initial, _ in found.values()]),
        "personalised": spread([personalised for _, personalised in found.values()]),
        "clients": {client: list(both) for client, both in found.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and standard deviation over clients (of the clients, not of an estimate)."""
    if not values:
        return {}
    return {"mean": fmean(values), "sd": pstdev(values)}


def _next(run: RunFolder) -> Path:
    taken = [int(path.stem.rpartition("-")[2]) for path in personal_files(run)]
    return run.path / FOLDER / f"personal-{1 + max(taken, default=0):03}.json"


def personal_files(run: RunFolder) -> list[Path]:
    """Return what nodes have reported of a run, in order."""
    return sorted((run.path / FOLDER).glob("personal-[0-9]*.json"))


def said_rows(table: Mapping[str, Any], most: int) -> list[list[str]]:
    """Return the first subnets of a table as texts: name, MMACs, both accuracies, clients."""
    return [
        [
            row["name"],
            f"{row['macs'] / 1e6:.2f}",
            *(f"{row[k]['mean']:.2%} ± {row[k]['sd']:.2%}" for k in ("initial", "personalised")),
            str(len(row["clients"])),
        ]
        for row in table["subnets"][:most]
    ]


def print_personal(table: Mapping[str, Any], console: Console) -> None:
    """Print the accuracies, mean ± s.d. over clients; of many subnets the first."""
    shown = Table(
        title=f"own test images: initial, and after {table['epochs']} epochs of {table['part']}",
        title_justify="left",
    )
    shown.add_column(HEADINGS[0])
    for heading in HEADINGS[1:]:
        shown.add_column(heading, justify="right")
    for cells in said_rows(table, _PRINTED):
        shown.add_row(*cells)
    console.print(shown)
    if len(table["subnets"]) > _PRINTED:
        console.print(f"and {len(table['subnets']) - _PRINTED} more subnets in the file")
