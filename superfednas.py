"""SuperFedNAS from Python: the calls behind the ``superfednas`` command.

>>> import superfednas
>>> run = superfednas.train(rounds=100, clients=10, clients_per_round=5)
>>> plan, file = superfednas.search(run.path, {"macs": 1_000_000})
>>> superfednas.test(file)["chosen"]["accuracy"]
>>> superfednas.export(run.path, plan.chosen.text, "model.onnx")
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from client.app import app as client_app
from data import Split, partition
from deploy import this_device
from deploy.card import Card, DeployError
from deploy.elastic import write_elastic
from deploy.export import Exported, check_out
from deploy.export import export as export_module
from deploy.trained import Trained, split_description
from nas.accuracy import Score, score
from nas.costs import Costs
from nas.ladder import ladder
from nas.measuring import ScoreBook
from nas.plan import Plan, PlanError, write_new
from nas.planner import Request, SearchProgress, Silence, make_plan
from server.app import prepare, run_training
from server.local_grid import LocalGrid
from server.progress import Progress
from server.run_folder import LATEST, RunFolder
from server.scoring import score_by_nodes
from server.settings import Settings, check_settings
from supernet.config import Scalar, SettingsError, flatten

__all__ = [
    "evaluate",
    "export",
    "export_elastic",
    "score_nodes",
    "search",
    "subnet",
    "test",
    "train",
]
PLANS = "plans"
_CHECK_IMAGES = 64


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
    grid = _local_grid(prepared.settings, workers)
    try:
        return run_training(prepared, grid, progress or Progress())
    finally:
        grid.close()


def _local_grid(settings: Settings, workers: int) -> LocalGrid:
    nodes: dict[int, dict[str, Scalar]] = {
        number + 1: {"partition-id": number, "num-partitions": settings.clients}
        for number in range(settings.clients)
    }
    return LocalGrid(client_app, nodes, flatten(settings), workers)


def evaluate(
    run_dir: str | Path, arch: str, *, split: str = "validation", dataset: str = ""
) -> Score:
    """Measure one subnet of a trained supernet.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``; of an unfinished run the newest checkpoint counts.
    arch
        ``largest``, ``smallest``, ``random:SEED`` or JSON.
    split
        ``validation`` or ``test`` (which is for final figures, not for choosing).
    dataset
        In place of the run's own data set.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split = {split!r}: must be validation or test")
    trained = Trained.open(run_dir, dataset)
    architecture, data = trained.space.parse(arch), trained.data
    if split == "validation":
        return trained.measured().measure([architecture])[0]
    module = trained.subnet(architecture)
    return score(module, data.test, data.mean, data.std, calibration=data.train)


def subnet(run_dir: str | Path, arch: str, *, dataset: str = "") -> nn.Module:
    """Return one subnet as a plain module with weights of its own, ready to run.

    Where its norm needs statistics they are measured on training images: calibration as a call. The
    supernet is only read, and nothing is kept between calls. Parameters are those of
    :func:`evaluate`.
    """
    trained = Trained.open(run_dir, dataset)
    return trained.subnet(trained.space.parse(arch))


def score_nodes(
    run_dir: str | Path = LATEST,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    **settings: Scalar,
) -> ScoreBook:
    """Let the clients of an in-process run score subnets on their own validation images.

    The same as ``flwr run . --run-config "score-run='DIR'"``.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``.
    progress, workers
        As for :func:`train`.
    **settings
        ``score_subnets``, ``min_nodes`` and the time-outs.
    """
    run = RunFolder.open(run_dir)
    grid = _local_grid(check_settings(run.settings), workers)
    values = {key.replace("_", "-"): value for key, value in settings.items()}
    try:
        return score_by_nodes({**values, "score-run": str(run.path)}, grid, progress or Progress())
    finally:
        grid.close()


def search(
    run_dir: str | Path = LATEST,
    limits: Mapping[str, float] | None = None,
    *,
    request: Request | None = None,
    scores: str = "",
    latency_table: str | Path = "",
    batch: int = 1,
    split: Split | None = None,
    dataset: str = "",
    out: str | Path = "",
    progress: SearchProgress | None = None,
) -> tuple[Plan, Path]:
    """Find the best subnet within limits, with no retraining, and write down how.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``.
    limits
        ``macs``, ``params``, ``bytes``, ``memory`` (bytes of activations) and ``latency``
        (milliseconds), each to the most that it may be.
    request
        All that can be asked, for more than limits; ``limits`` are added to it.
    scores
        Scores that are there already: ``nodes`` (:func:`score_nodes`), or a file.
    latency_table
        A table of another device. Without one, a limit on latency means this device: its table is
        measured where it is not there yet, and the chosen subnet is timed before it is taken.
    batch
        Images a batch whose latency counts.
    split
        Images to score on in place of the whole validation split.
    dataset
        In place of the run's own data set.
    out
        The plan's file; by default the next free ``RUN/plans/plan-NNN.json``.
    progress
        Where the search reports.

    Returns
    -------
    Plan, Path
        The plan and its file.

    Raises
    ------
    nas.costs.NothingFits
        Where no subnet keeps the limits; it says what is possible.
    ValueError
        One sentence for whatever else is wrong; nothing is written then.
    """
    trained = Trained.open(run_dir, dataset)
    request = request or Request()
    request = replace(request, limits={**request.limits, **(limits or {})})
    path = Path(out).expanduser() if out else _next(trained.run)
    if path.exists():
        raise PlanError(f"{str(path)!r} exists already, and nothing is overwritten")
    if scores and request.score != "regression":
        raise ValueError(
            f"scores = {scores!r} are for score = 'regression'; asked is {request.score!r}"
        )
    progress = progress or Silence()
    here = not latency_table and "latency" in (*request.limits, request.against)
    table = None
    if latency_table:
        table = this_device.load_table(latency_table, trained.space, batch)
    elif here:
        Costs(trained.space).check({n: m for n, m in request.limits.items() if n != "latency"})
        if not this_device.has_table(trained.space, batch):
            progress.note("timing the blocks of the space on this device (kept for later searches)")
        table = this_device.table(
            trained.space, batch, progress=lambda d, n: progress.measuring(d, n, "blocks timed")
        )
    costs = Costs(trained.space, None if table is None else table.of(trained.space), batch)
    costs.check(request.limits)  # before images are loaded
    book = trained.book(scores) if scores else None
    measured, images = None, {}
    if book is not None:
        images = {"name": scores, "digest": book.data}
    elif request.score in ("regression", "measured"):
        split_name = "validation" if split is None else "part of validation"
        split = trained.data.validation if split is None else split
        measured = trained.measured(split)
        images = dict(split_description(split_name, trained.data, split))

    def planned(request: Request) -> Plan:
        return make_plan(
            request,
            costs,
            measured=measured,
            book=book,
            ladder=ladder(trained.space, int(trained.run.settings["ladder"])),
            origin={
                "run": str(trained.run.path),
                "weights": trained.weights,
                "rounds": trained.rounds,
                "space": trained.about_space(),
                "data": images,
                "latency": {} if table is None else {**table.device, "threads": table.threads},
            },
            progress=progress,
        )

    plan = planned(request)
    if table is not None and here and "latency" in request.limits:
        plan = this_device.proven(
            plan, trained.space, request, table.threads, batch, planned, progress
        )
    plan.save(path)
    return plan, path


def _plans(run: RunFolder) -> dict[int, Path]:
    found = (run.path / PLANS).glob("plan-*.json")
    numbers = {path.stem.removeprefix("plan-"): path for path in found}
    return {int(number): path for number, path in numbers.items() if number.isdecimal()}


def _next(run: RunFolder) -> Path:
    return run.path / PLANS / f"plan-{max(_plans(run), default=0) + 1:03d}.json"


def find_plan(plan: str | Path = LATEST) -> Path:
    """Return a plan's file; ``latest`` is the newest of the newest run."""
    if str(plan) != LATEST:
        return Path(plan).expanduser()
    run = RunFolder.open(LATEST)
    plans = _plans(run)
    if not plans:
        raise PlanError(f"{str(run.path)!r} has no plan yet: search first (superfednas search)")
    return plans[max(plans)]


def test(
    plan_file: str | Path = LATEST, *, dataset: str = "", progress: SearchProgress | None = None
) -> dict[str, Any]:
    """Read the test split once: the chosen subnet of a plan, and the ladder beside it.

    The result is kept beside the plan (``….test.json``); asked again, that is returned and no image
    is read.

    Parameters
    ----------
    plan_file
        What :func:`search` wrote; ``latest`` is the newest plan of the newest run.
    dataset
        In place of the run's own data set.
    progress
        Where the reading reports.

    Returns
    -------
    dict
        ``chosen`` (accuracy, loss, examples, standard error), ``ladder`` by name, ``data``,
        ``read`` (when) and ``again`` (whether this is an earlier result).
    """
    path = find_plan(plan_file)
    plan = Plan.load(path)
    kept = path.with_name(path.stem + ".test.json")
    if kept.exists():
        return {**_earlier(kept, plan), "again": True}
    trained = open_plan(plan, dataset)
    data = trained.data
    if not len(data.test):
        raise ValueError(f"the test split of {data.name!r} has no images")

    rows = []
    for entry in (plan.chosen, *plan.ladder):
        module = trained.subnet(trained.space.parse(entry.text))
        found = score(module, data.test, data.mean, data.std, calibration=data.train)
        error = (found.accuracy * (1 - found.accuracy) / found.examples) ** 0.5
        rows.append(
            {
                "accuracy": found.accuracy,
                "standard_error": error,
                "loss": found.loss,
                "examples": found.examples,
            }
        )
        if progress is not None:
            progress.measuring(len(rows), 1 + len(plan.ladder), "test split")
    result: dict[str, Any] = {
        "plan": path.name,
        "weights": plan.weights,
        "architecture": plan.chosen.architecture,
        "data": dict(split_description("test", data, data.test)),
        "read": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "chosen": rows[0],
        "ladder": {e.name: row for e, row in zip(plan.ladder, rows[1:], strict=True)},
    }
    write_new(kept, json.dumps(result, indent=1))
    return {**result, "again": False}


def _earlier(kept: Path, plan: Plan) -> dict[str, Any]:
    """Read a plan's earlier test result; a plan of the same name may have been there before."""
    try:
        found: dict[str, Any] = json.loads(kept.read_text())
        of = found["weights"], found["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{str(kept)!r} is damaged: {error}") from None
    if of != (plan.weights, plan.chosen.architecture):
        raise PlanError(f"{str(kept)!r} is the test result of another plan: move it away")
    return found


def open_plan(plan: Plan, dataset: str = "") -> Trained:
    """Open the run of a plan.

    Raises
    ------
    PlanError
        Where nothing was trained, or the run has other weights now.
    """
    if not plan.run:
        raise PlanError("this plan is of a space that was not trained: there are no weights")
    trained = Trained.open(plan.run, dataset)
    if trained.weights != plan.weights:
        raise PlanError(
            f"{plan.run!r} has other weights (round {trained.rounds}) than when the plan was made "
            f"(round {plan.rounds}): search again"
        )
    return trained


def export(
    run_dir: str | Path,
    arch: str,
    out: str | Path,
    *,
    format: str = "onnx",  # noqa: A002
    overwrite: bool = False,
    dataset: str = "",
) -> Exported:
    """Write one subnet as a file that runs elsewhere; it is checked on real images first.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``.
    arch
        ``largest``, ``smallest``, ``random:SEED`` or JSON.
    out
        The file.
    format
        ``onnx``, ``torch-export``, ``executorch`` or ``safetensors``.
    overwrite
        Replace an existing file.
    dataset
        In place of the run's own data set: where class names, pixel constants and the images of the
        check are taken from.

    Raises
    ------
    deploy.card.DeployError
        Where the format's packages are not installed, the file exists, or it answers otherwise
        than PyTorch does.
    """
    check_out(format, Path(out), overwrite)  # before anything is loaded
    trained = Trained.open(run_dir, dataset)
    architecture = trained.space.parse(arch)
    images = trained.data.validation.images[:_CHECK_IMAGES]
    card = _card(trained, architecture.to_json())
    return export_module(
        trained.subnet(architecture), card, images, format, out, overwrite=overwrite
    )


def export_elastic(
    run_dir: str | Path,
    out: str | Path,
    *,
    plan: Plan | None = None,
    overwrite: bool = False,
    dataset: str = "",
) -> Path:
    """Write the whole supernet as one file whose subnets are switched between on the device.

    Its menu is the plan's ladder, front and chosen subnet; without a plan the ladder.
    :class:`deploy.elastic.ElasticModel` loads it. Parameters are those of :func:`export`.
    """
    if Path(out).suffix != ".safetensors":
        raise DeployError(f"{out}: an elastic file ends with .safetensors")
    trained = Trained.open(run_dir, dataset)
    space = trained.space
    if plan is not None and plan.weights != trained.weights:
        raise PlanError(f"the plan is of other weights than those of {str(trained.run.path)!r}")
    rungs = ladder(space, int(trained.run.settings["ladder"]))
    listed: dict[str, float | None] = {arch.to_json(): None for arch in rungs.values()}
    if plan is not None:
        listed = {e.text: e.score for e in (*plan.ladder, *plan.front, plan.chosen)}
    menu = []
    for text, found in listed.items():
        arch = space.parse(text)
        macs, params = space.macs(arch), space.params(arch)
        menu.append({"architecture": text, "macs": macs, "params": params, "score": found})
    card = replace(_card(trained, space.largest.to_json()), menu=tuple(menu))
    write_elastic(out, space, trained.state, card, overwrite=overwrite)
    return Path(out)


def _card(trained: Trained, arch: str) -> Card:
    space, data = trained.space, trained.data
    architecture = space.parse(arch)
    return Card(
        space=trained.about_space(),
        architecture=arch,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        macs=space.macs(architecture),
        params=space.params(architecture),
        source={
            "run": trained.run.path.name,
            "weights": trained.weights,
            "rounds": trained.rounds,
            "seed": trained.seed,
            "data": data.name,
        },
    )
