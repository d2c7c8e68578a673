"""Personalisation on the nodes: each fine-tunes subnets on its own examples and keeps the result.

What comes back is the task's first metric of every subnet, before and after, on the node's own
test examples; no weights do. The mean and its spread are over clients, as Kim and Yun report them
(§4.1).
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
from rich.table import Table

from superfednas.common.digest import digest
from superfednas.common.files import write_whole
from superfednas.common.settings import Scalar, SettingsError
from superfednas.common.terminal import Terminal
from superfednas.common.words import Prefix, prefix_of
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.server.errands.check import Personalised, check_personal
from superfednas.server.errands.errand import Errand, Party, order_of, plan_errands, settings_now
from superfednas.server.journal.progress import Progress
from superfednas.server.settings import Settings, check_settings
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks.registry import metric_of
from superfednas.wire.errands import PERSONALISE
from superfednas.wire.flat import numpy_dtype

FOLDER = "personal"
FORMAT = 1
_PRINTED = 12  # rows
_AT_A_TIME = 50  # subnets per message: fine-tuning takes long, and each answer shows progress


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
        ``ladder`` (the run's), ``widths`` (its width levels), a whole number (that many random ones
        besides the largest and the smallest; nodes keep none of them), or one architecture as
        :meth:`SearchSpace.parse` reads it.

    Raises
    ------
    ValueError
        If it is not one of these.
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
    """Let all nodes personalise subnets of a trained supernet; write their reports.

    Parameters
    ----------
    values
        A run-config with ``personalise-run``. The run's own settings apply, except for
        ``personal-subnets``, ``fine-tune…``, ``min-nodes`` and the time-outs.
    grid
        The nodes.
    progress
        Where progress is reported.

    Returns
    -------
    Path
        ``RUN/personal/personal-NNN.json``.

    Raises
    ------
    RunFolderError
        If no node reported anything.
    """
    asked = check_settings(values)
    run = RunFolder.open(asked.personalise_run)
    settings = settings_now(run, asked, tuning=asked.tuning)
    state, rounds = run.weights()
    space = settings.space.load()
    chosen = choose(space, settings, asked.personal_subnets)
    party = Party(settings, space, grid, progress, PERSONALISE)
    # Without their scores nothing would come of subnets that they do not keep.
    clients = party.meet(scores=not chosen.keep)
    keeping = {client.name for _, client in clients if not client.tells_scores}
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
        ordered, metric = len(errand.archs), space.task.metrics[0]
        told = errand.client not in keeping
        return check_personal(reply, errand.outer, ordered, metric, told=told)

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
        if errand.client in keeping:
            progress.note(f"client {errand.client}: {len(errand.archs)} subnets, scores kept")
            continue
        progress.note(
            f"client {errand.client}: {len(report.rows)} subnets on {report.examples:,} test "
            "examples"
        )
    if not found:
        raise RunFolderError(
            "the nodes keep their scores, so there is no table"
            if sent
            else "no node personalised anything: the reasons stand above"
        )
    subnets = [_row(space, name, arch, found.get(arch, {})) for name, arch in chosen.archs.items()]
    table = {
        "format": FORMAT,
        "weights": digest(state),
        "rounds": rounds,
        "part": tuning.fine_tune,
        "epochs": tuning.fine_tune_epochs,
        "lr": tuning.fine_tune_lr or settings.local.lr,
        "bytes_down": sent,
        "metric": space.task.metrics[0].described(),
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
    """Return mean and standard deviation over clients (of the population, not of an estimate)."""
    if not values:
        return {}
    return {"mean": fmean(values), "sd": pstdev(values)}


def _next(run: RunFolder) -> Path:
    taken = [int(path.stem.rpartition("-")[2]) for path in personal_files(run)]
    return run.path / FOLDER / f"personal-{1 + max(taken, default=0):03}.json"


def personal_files(run: RunFolder) -> list[Path]:
    """Return the files of a run's personalisations, in order."""
    return sorted((run.path / FOLDER).glob("personal-[0-9]*.json"))


def headings_of(table: Mapping[str, Any]) -> list[str]:
    """Return what stands above a table's columns: name, MACs, both values, clients."""
    return ["subnet", f"{_prefix(table).letter}MACs", "initial", "personalised", "clients"]


def _prefix(table: Mapping[str, Any]) -> Prefix:
    return prefix_of(row["macs"] for row in table["subnets"])


def said_rows(table: Mapping[str, Any], most: int) -> list[list[str]]:
    """Return the first subnets of a table as texts, under :func:`headings_of`."""
    say, prefix = metric_of(table.get("metric")).say, _prefix(table)
    return [
        [
            row["name"],
            prefix.say(row["macs"]),
            *(f"{say(row[k]['mean'])} ± {say(row[k]['sd'])}" for k in ("initial", "personalised")),
            str(len(row["clients"])),
        ]
        for row in table["subnets"][:most]
    ]


def print_personal(table: Mapping[str, Any], console: Terminal) -> None:
    """Print both values, mean ± s.d. over clients; of many subnets the first."""
    name = metric_of(table.get("metric")).name
    shown = Table(
        title=f"{name} on own test examples: initial, and after {table['epochs']} epochs of "
        f"{table['part']}",
        title_justify="left",
    )
    first, *others = headings_of(table)
    shown.add_column(first)
    for heading in others:
        shown.add_column(heading, justify="right")
    for cells in said_rows(table, _PRINTED):
        shown.add_row(*cells)
    console.print(shown)
    if len(table["subnets"]) > _PRINTED:
        console.print(f"and {len(table['subnets']) - _PRINTED} more subnets in the file")
