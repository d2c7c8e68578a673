"""The run: what the Flower ServerApp and the in-process engine have in common."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid

from superfednas import ROOT
from superfednas.common.damage import damage_of
from superfednas.common.settings import Scalar, SettingsError, flatten
from superfednas.common.trust import give, references, remember, trust_folder
from superfednas.common.words import one_line
from superfednas.data import DataError, Dataset, load_dataset
from superfednas.flower.prompt_grid import prompt
from superfednas.flower.retries import retry_pulls_soon
from superfednas.records.announcements import Announcement, Event
from superfednas.records.checkpoint import Checkpoint
from superfednas.records.folder import LADDER, ONLY_LEVELS, RunFolder, RunFolderError
from superfednas.records.index import FAILED, FINISHED, INTERRUPTED, RUNNING
from superfednas.records.refusals import Refusal, causes_of, code_of
from superfednas.records.rows import EvaluationRow, evaluations
from superfednas.records.start import barely_begun
from superfednas.records.trained import check_state, trusted_settings
from superfednas.server.errands.personalise import personalise_by_nodes
from superfednas.server.errands.score import score_by_nodes
from superfednas.server.journal.evaluation import score_ladder
from superfednas.server.journal.progress import Progress
from superfednas.server.journal.summary import print_finale, summarise
from superfednas.server.methods import DEFAULT
from superfednas.server.nodes import RosterError
from superfednas.server.settings import Settings, check_settings
from superfednas.server.strategy import SupernetStrategy, TrainingStalled
from superfednas.supernet import State
from superfednas.wire.order import FROM_THE_DATA, SpaceOptions

_OF_THE_START = ("run-dir", "resume", "keep-going", "app-signature")
# What a user can fix: reported in one sentence, without a traceback.
USER_ERRORS = (DataError, RosterError, RunFolderError, SettingsError, TrainingStalled, ValueError)


class NoServerDataError(SettingsError):
    """The server has no data, and was not told what the images are like."""

    refusal = Refusal.NO_SERVER_DATA


def main(grid: Grid, context: Context) -> None:
    """Run what ``flwr run`` asks for; a wrong setting ends the run with one sentence."""
    if (ROOT / "pyproject.toml").exists():  # else it is the folder of all that is installed
        trust_folder(ROOT)  # who has sent this app has chosen its code: a resumed run may name it
    if problem := retry_pulls_soon():
        print(f"{problem}: rounds may wait a second or more for replies", flush=True)
    grid, progress = prompt(grid), Progress()
    if grid.unbounded:
        print(f"{grid.unbounded}: a node could fill the memory with one small reply", flush=True)
    progress.announce = _announce
    try:
        if context.run_config.get("score-run"):
            score_by_nodes(context.run_config, grid, progress)
        elif context.run_config.get("personalise-run"):
            personalise_by_nodes(context.run_config, grid, progress)
        else:
            run_training(prepare(context.run_config), grid, progress, str(context.run_id))
    except USER_ERRORS as error:
        text, run = one_line(str(error)), getattr(error, "run", "")
        print(f"error: {text}", flush=True)
        code, causes = code_of(error), causes_of(error)
        _announce(Announcement(Event.ERROR, text=text, refusal=code, causes=causes, run=run))
        raise SystemExit(1) from error


def _announce(announcement: Announcement) -> None:
    print(announcement.line(), flush=True)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start: everything is checked, nothing is written yet.

    ``changed`` names the given settings that differ from those of the run to resume.
    """

    settings: Settings
    data: Dataset | None
    state: State
    resumed: tuple[RunFolder, Checkpoint] | None
    changed: str = ""


def prepare(values: Mapping[str, Scalar]) -> Prepared:
    """Check the settings, load the server's data and the initial (or a checkpoint's) weights.

    Parameters
    ----------
    values
        Flat run-config. With ``resume``, or with ``keep-going`` if ``run-dir`` holds a run, that
        folder's own settings apply and the rest of ``values`` is ignored.

    Raises
    ------
    ValueError
        One sentence that names the setting, file or field, its value and what is allowed.
    """
    give(values.values())
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
        if run.info.get("status") == FINISHED:
            raise RunFolderError(f"{str(run.path)!r} has finished: there is nothing to resume")
        settings = check_settings(trusted_settings(run))
    elif settings.keep_going and _has_begun(Path(settings.run_dir).expanduser()):
        run = RunFolder.open(settings.run_dir)
        changed = _changed(flatten(settings), run.settings)
        settings = check_settings(trusted_settings(run))
    data = None if settings.data.dataset == "none" else load_dataset(settings.data)
    settings = dataclasses.replace(settings, space=_fill(settings, data))
    remember(references(flatten(settings)))
    space = settings.space.load()
    settings.for_space(space)
    if run is not None:
        point = run.latest()
        check_state(point.state, space, str(run.path))
        return Prepared(settings, data, point.state, (run, point), changed)
    if settings.from_run:
        state, _ = RunFolder.open(settings.from_run).weights()
        check_state(state, space, settings.from_run)
    else:
        state = space.init(settings.seed)
    return Prepared(settings, data, state, None)


def _has_begun(folder: Path) -> bool:
    """Return whether a folder holds a run to go on with, not just what a killed start has left."""
    return (folder / "run.json").exists() and not barely_begun(folder)


def _changed(given: Mapping[str, Scalar], own: Mapping[str, Scalar]) -> str:
    """Name the given settings that differ from a run's own."""
    differing = [
        f"{key} = {own[key]!r} (given: {value!r})"
        for key, value in given.items()
        if key in own
        and value != own[key]
        and key not in _OF_THE_START
        # 0 means the data's value, which the run has recorded.
        and not (key in FROM_THE_DATA and not value)
    ]
    return ", ".join(differing)


def run_training(prepared: Prepared, grid: Grid, progress: Progress, of: str = "") -> RunFolder:
    """Train, evaluate the ladder on the test split once, and write the run folder.

    The run folder's path is the last line printed. ``of`` is Flower's id of the run, which others
    are told who want to write into the folder meanwhile; by default they are told this process.
    """
    settings = prepared.settings
    if prepared.resumed is None:
        named = "" if settings.method == DEFAULT.name else f"{settings.method}-"
        run = RunFolder.create(
            settings.run_dir,
            flatten(settings),
            named + settings.space.space,
            anew=settings.keep_going,
        )
    else:
        run = prepared.resumed[0]
    with run.written(of):
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
        with damage_of(run.path, RunFolderError, "holds a checkpoint that is damaged"):
            strategy.restore(run.rows(), point)
        first = point.round + 1
        for problem in run.damaged:
            progress.note(f"{problem}: the checkpoint before it is taken", "damaged-checkpoint")
        progress.note(
            f"resuming {run.path} after round {point.round}, with the run's own settings"
            + (f": {prepared.changed}" if prepared.changed else ""),
            "resumed",
            round=point.round,
        )
    progress.note(f"writing to {run.path}", "started", folder=str(run.path))
    strategy.summary()
    strategy.averaging.adopt(prepared.state)  # else it would stay, unused, beside two others
    try:
        run.info["status"] = RUNNING  # of a resumed run too, which said how it had ended
        run.info[LADDER] = {name: arch.to_json() for name, arch in strategy.ladder.items()}
        run.info[ONLY_LEVELS] = settings.only_levels
        run.save_info()
        strategy.expose()
        state = strategy.train(grid, prepared.state, first=first)
        _finish(run, strategy, state, data)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # `flwr stop` raises the latter
        run.info["status"] = INTERRUPTED if stopped else FAILED
        run.save_info()
        ended = {"event": run.info["status"], "round": run.info["round"], "text": ""}
        if not stopped:
            ended["text"] = f"{type(error).__name__}: {error}"
            ended |= {"refusal": code_of(error), "causes": causes_of(error)}
        run.log(ended)
        strategy.expose()
        if run.info["round"]:
            progress.write(
                f"{run.info['status']} after round {run.info['round']}: resume it with resume="
                f"{str(run.path)!r} (superfednas train --resume {shlex.quote(str(run.path))})"
            )
        raise


def _finish(run: RunFolder, strategy: SupernetStrategy, state: State, data: Dataset | None) -> None:
    settings, space = strategy.settings, strategy.space
    run.write_supernet(state, settings.rounds)  # before anything else that can fail
    if data is not None:
        rungs = score_ladder(space, state, strategy.ladder, data, data.test, torch.device("cpu"))
        done, metric = settings.rounds, space.task.metrics[0].described()
        test = EvaluationRow("test", done, done, "server", "test", tuple(rungs), metric)
        run.append(test)
        last: EvaluationRow | None = test
    else:
        last = next(reversed(evaluations(strategy.rows)), None)
    as_assigned = not (settings.subnets.drawn or settings.only_levels)
    summary = summarise(space, strategy.rows, settings.rounds, as_assigned=as_assigned)
    run.append(summary)
    run.finish(settings.rounds)
    strategy.expose()
    progress = strategy.progress
    progress.note("", FINISHED, round=settings.rounds, folder=str(run.path))
    name = data.name if data else "the clients' own data"
    print_finale(last, summary, data_name=name, console=progress.console)
    progress.write(f"run folder: {run.path}")


def _fill(settings: Settings, data: Dataset | None) -> SpaceOptions:
    """Take what is learned from the server's data where it is not given."""
    options = settings.space
    if data is not None:
        return options.of(data.task, data.name)
    if options.missing:
        raise NoServerDataError(
            f"dataset = 'none': the server has no data to read {', '.join(options.missing)} from, "
            "so they must be given"
        )
    return options
