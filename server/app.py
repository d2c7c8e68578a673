"""What the Flower ServerApp does, and the run that it shares with the in-process engine."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid

from data import DataError, Dataset, load_dataset
from server.evaluation import score_ladder
from server.finale import print_finale, summarise
from server.methods import DEFAULT
from server.newest import FAILED, FINISHED, INTERRUPTED, RUNNING
from server.personal import personalise_by_nodes
from server.progress import Progress
from server.pulling import PromptGrid
from server.retries import retry_pulls_soon
from server.roster import RosterError
from server.run_folder import Checkpoint, RunFolder, RunFolderError
from server.scoring import score_by_nodes
from server.settings import Settings, check_settings
from server.strategy import SupernetStrategy, TrainingStalled
from supernet import SearchSpace, State
from supernet.config import Scalar, SettingsError, flatten
from supernet.wire import SpaceOptions

_OF_THE_START = ("run-dir", "resume", "keep-going")
_FROM_THE_DATA = ("num-classes", "in-channels", "image-size")
# What a user can mend: said in one sentence, without a traceback.
USER_ERRORS = (DataError, RosterError, RunFolderError, SettingsError, TrainingStalled, ValueError)


def main(grid: Grid, context: Context) -> None:
    """Run as ``flwr run`` asks; a wrong setting ends the run with one sentence."""
    if problem := retry_pulls_soon():
        print(f"{problem}: rounds may wait a second or more for replies", flush=True)
    grid = PromptGrid(grid)
    try:
        if context.run_config.get("score-run"):
            score_by_nodes(context.run_config, grid, Progress())
        elif context.run_config.get("personalise-run"):
            personalise_by_nodes(context.run_config, grid, Progress())
        else:
            writer = f"run {context.run_id}"
            run_training(prepare(context.run_config), grid, Progress(), writer)
    except USER_ERRORS as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(1) from error


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: everything is checked, nothing is written yet.

    ``changed`` names the settings that were given and differ from those of the run to go on with.
    """

    settings: Settings
    data: Dataset | None
    state: State
    resumed: tuple[RunFolder, Checkpoint] | None
    changed: str = ""


def prepare(values: Mapping[str, Scalar]) -> Prepared:
    """Check the settings, load the server's data and the first (or a checkpoint's) weights.

    Parameters
    ----------
    values
        Flat run-config. With ``resume``, and with ``keep-going`` where ``run-dir`` holds a run,
        that folder's own settings count and the rest of ``values`` is not looked at.

    Raises
    ------
    ValueError
        One sentence that names the setting, file or field, its value and what is allowed.
    """
    settings = check_settings(values)
    for key, given, instead in (
        ("score-run", settings.score_run, "superfednas.score_nodes, `superfednas score`"),
        (
            "personalise-run",
            settings.personalise_run,
            "superfednas.personalise, `superfednas personalise`",
        ),
    ):
        if given:
            raise SettingsError(
                f"{key} = {given!r}: that is no training; use {instead} or `flwr run`"
            )
    run, changed = None, ""
    if settings.resume:
        run = RunFolder.open(settings.resume)
        if run.info["status"] == FINISHED:
            raise RunFolderError(f"{str(run.path)!r} has finished: there is nothing to resume")
        settings = check_settings(run.settings)
    elif settings.keep_going and (Path(settings.run_dir).expanduser() / "run.json").exists():
        run = RunFolder.open(settings.run_dir)
        changed = _changed(flatten(settings), run.settings)
        settings = check_settings(run.settings)
    data = None if settings.data.dataset == "none" else load_dataset(settings.data)
    settings = dataclasses.replace(settings, space=_fill(settings, data))
    space = settings.space.load()
    settings.policy(space)
    if run is not None:
        point = run.latest()
        _check_state(point.state, space, str(run.path))
        return Prepared(settings, data, point.state, (run, point), changed)
    if settings.from_run:
        state, _ = RunFolder.open(settings.from_run).weights()
        _check_state(state, space, settings.from_run)
    else:
        state = space.init(settings.seed)
    return Prepared(settings, data, state, None)


def _changed(given: Mapping[str, Scalar], own: Mapping[str, Scalar]) -> str:
    """Name the settings that are given and are not a run's own."""
    differing = [
        f"{key} = {own[key]!r} (given: {value!r})"
        for key, value in given.items()
        if key in own
        and value != own[key]
        and key not in _OF_THE_START
        # Nought is what the data say, and the run has noted what they said.
        and not (key in _FROM_THE_DATA and not value)
    ]
    return ", ".join(differing)


def run_training(prepared: Prepared, grid: Grid, progress: Progress, writer: str = "") -> RunFolder:
    """Train, evaluate the ladder on the test split once, and write the run folder.

    The run folder's path is the last line printed. ``writer`` is what others are told who want to
    write into it meanwhile; by default this process.
    """
    settings = prepared.settings
    if prepared.resumed is None:
        named = "" if settings.method == DEFAULT.name else f"{settings.method}-"
        run = RunFolder.create(settings.run_dir, flatten(settings), named + settings.space.space)
    else:
        run = prepared.resumed[0]
    with run.written(writer):
        _train(prepared, run, grid, progress)
    return run


def _train(prepared: Prepared, run: RunFolder, grid: Grid, progress: Progress) -> None:
    settings, data = prepared.settings, prepared.data
    progress.journal = run.log
    strategy = SupernetStrategy(settings, run=run, data=data, progress=progress)
    first = 1
    if prepared.resumed is not None:
        point = prepared.resumed[1]
        run.forget_after(point.round)
        strategy.restore(run.rows(), point.memory)
        first = point.round + 1
        for problem in run.damaged:
            progress.note(f"{problem}: the checkpoint before it is taken", "damaged-checkpoint")
        progress.note(
            f"resuming {run.path} after round {point.round}, with the run's own settings"
            + (f": {prepared.changed}" if prepared.changed else ""),
            "resumed",
            round=point.round,
        )
    progress.note(f"writing to {run.path}", "started")
    strategy.summary()
    strategy.averaging.adopt(prepared.state)  # or it would lie there unused, beside two others
    try:
        run.info["status"] = RUNNING  # of a run that goes on, too: until now it said how it ended
        run.save_info()
        strategy.expose()
        state = strategy.train(grid, prepared.state, first=first)
        _finish(run, strategy, state, data)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # `flwr stop` raises the latter
        run.info["status"] = INTERRUPTED if stopped else FAILED
        run.save_info()
        ended = "" if stopped else f"{type(error).__name__}: {error}"
        run.log({"event": run.info["status"], "round": run.info["round"], "text": ended})
        strategy.expose()
        if run.info["round"]:
            progress.write(
                f"{run.info['status']} after round {run.info['round']}: go on with resume="
                f"{str(run.path)!r} (superfednas train --resume {run.path})"
            )
        raise


def _finish(run: RunFolder, strategy: SupernetStrategy, state: State, data: Dataset | None) -> None:
    settings, space = strategy.settings, strategy.space
    last: dict[str, Any] | None
    if data is not None:
        rungs = score_ladder(space, state, strategy.ladder, data, data.test, torch.device("cpu"))
        last = {
            "kind": "test",
            "round": settings.rounds,
            "trained_rounds": settings.rounds,
            "where": "server",
            "split": "test",
            "ladder": rungs,
        }
    else:
        evaluations = [row for row in strategy.rows if row["kind"] == "evaluation"]
        last = evaluations[-1] if evaluations else None
    if data is not None and last is not None:
        run.append(last)
    as_assigned = not (settings.subnets.drawn or settings.only_levels)
    summary = summarise(space, strategy.rows, settings.rounds, as_assigned=as_assigned)
    run.append(summary)
    run.finish(state, settings.rounds)
    strategy.expose()
    run.log({"event": FINISHED, "round": settings.rounds, "text": ""})
    progress = strategy.progress
    name = data.name if data else "the clients' own data"
    print_finale(last, summary, data_name=name, console=progress.console)
    progress.write(f"run folder: {run.path}")


def _fill(settings: Settings, data: Dataset | None) -> SpaceOptions:
    """Take classes, channels and size from the server's data where they are not given."""
    options = settings.space
    wanted = [key.replace("-", "_") for key in _FROM_THE_DATA]
    if data is None:
        missing = [key.replace("_", "-") for key in wanted if not getattr(options, key)]
        if missing:
            raise SettingsError(
                f"dataset = 'none': the server has no data to read {', '.join(missing)} from, so "
                "they must be given"
            )
        return options
    for key in wanted:
        given, found = getattr(options, key), getattr(data, key)
        if given and given != found:
            raise SettingsError(
                f"{key.replace('_', '-')} = {given}: the data set {data.name!r} has {found}"
            )
    return dataclasses.replace(options, **{key: getattr(data, key) for key in wanted})


def _check_state(state: State, space: SearchSpace, where: str) -> None:
    """Refuse weights of another space."""
    needed = space.shapes(space.largest)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != needed:
        differing = sorted(
            name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name)
        )
        name = differing[0]
        raise RunFolderError(
            f"the weights in {where!r} are not those of {space.name} with these options: {name!r} "
            f"is {found.get(name, 'missing')}, must be {needed.get(name, 'absent')}"
        )
