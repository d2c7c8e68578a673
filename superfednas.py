"""SuperFedNAS from Python: the calls behind the ``superfednas`` command.

>>> import superfednas
>>> run = superfednas.train(rounds=100, clients=10, clients_per_round=5)
>>> plan, file = superfednas.search(run.path, {"macs": 1_000_000})
>>> superfednas.test(file)["chosen"]["accuracy"]
>>> superfednas.export(run.path, plan.chosen.text, "model.onnx")
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from client.app import app as client_app
from client.device import choose_device, usable_precision
from data import Split, partition
from deploy import this_device
from deploy.card import DeployError
from deploy.elastic import write_elastic
from deploy.export import Exported, check_out
from deploy.export import export as export_module
from deploy.personal import PersonalSubnet, find_personal
from deploy.plans import find_plan, next_plan, tested
from deploy.trained import Trained, split_description
from nas.accuracy import Score
from nas.costs import Costs
from nas.latency import LatencyTable
from nas.measuring import ScoreBook
from nas.plan import Plan, PlanError
from nas.planner import Request, SearchProgress, Silence, make_plan
from server.app import prepare, run_training
from server.local_grid import LocalGrid
from server.personal import personalise_by_nodes
from server.progress import Progress
from server.run_folder import LATEST, RunFolder
from server.scoring import score_by_nodes
from server.settings import Settings, check_settings
from supernet import SearchSpace
from supernet.config import Scalar, SettingsError, flatten
from supernet.wire import SpaceOptions

__all__ = [
    "evaluate",
    "export",
    "export_elastic",
    "export_personal",
    "personalise",
    "score_nodes",
    "search",
    "search_space",
    "subnet",
    "test",
    "train",
]
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
    grid, progress = _local_grid(prepared.settings, workers), progress or Progress()
    precision = prepared.settings.precision
    if usable_precision(precision, choose_device(prepared.settings.device)) != precision:
        progress.note(f"precision = {precision!r}: on the CPU clients train in float32")
    try:
        return run_training(prepared, grid, progress)
    finally:
        grid.close()


def _local_grid(settings: Settings, workers: int, state_dir: str | Path = "") -> LocalGrid:
    nodes: dict[int, dict[str, Scalar]] = {
        number + 1: {"partition-id": number, "num-partitions": settings.clients}
        for number in range(settings.clients)
    }
    if state_dir:
        for number, config in enumerate(nodes.values()):
            config["state-dir"] = str(Path(state_dir).expanduser().resolve() / str(number))
    return LocalGrid(client_app, nodes, flatten(settings), workers)


def evaluate(
    run_dir: str | Path | Trained, arch: str, *, split: str = "validation", dataset: str = ""
) -> Score:
    """Measure one subnet of a trained supernet.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``; of an unfinished run the newest checkpoint counts. One that is
        open already (:class:`deploy.trained.Trained`) is not read again.
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
    architecture = trained.space.parse(arch)
    if split == "validation":
        return trained.measured().measure([architecture])[0]
    return trained.score(architecture, trained.data.test)


def subnet(run_dir: str | Path | Trained, arch: str, *, dataset: str = "") -> nn.Module:
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


def personalise(
    run_dir: str | Path = LATEST,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    state_dir: str | Path = "",
    **settings: Scalar,
) -> Path:
    """Let the clients of an in-process run make subnets their own, on their own images.

    The same as ``flwr run . --run-config "personalise-run='DIR'"``. The run is only read.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``.
    progress, workers
        As for :func:`train`.
    state_dir
        Where every client gets a folder of its own for what it keeps (``state_dir/NAME``); without
        it clients only report.
    **settings
        ``personal_subnets``, ``fine_tune``, ``fine_tune_epochs``, ``fine_tune_lr``, ``min_nodes``
        and the time-outs.

    Returns
    -------
    Path
        What the clients report (:func:`server.personal.personalise_by_nodes`).
    """
    run = RunFolder.open(run_dir)
    grid = _local_grid(check_settings(run.settings), workers, state_dir)
    values = {key.replace("_", "-"): value for key, value in settings.items()}
    try:
        return personalise_by_nodes(
            {**values, "personalise-run": str(run.path)}, grid, progress or Progress()
        )
    finally:
        grid.close()


def search(
    run_dir: str | Path | Trained = LATEST,
    limits: Mapping[str, float] | None = None,
    *,
    request: Request | None = None,
    scores: str = "",
    latency_table: str | Path = "",
    batch: int = 1,
    threads: int = 1,
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
        Scores that are there already, and nothing is measured: ``kept`` (all that earlier searches
        of this run have measured), ``nodes`` (:func:`score_nodes`), or a file.
    latency_table
        A table of another device. Without one, a limit on latency means this device: its table is
        measured where it is not there yet, and the chosen subnet is timed before it is taken.
    batch, threads
        Images a batch, and threads on this device, whose latency counts.
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
    request = _limited(request, limits)
    path = _free(Path(out).expanduser() if out else next_plan(trained.run))
    if scores and request.score != "regression":
        raise ValueError(
            f"scores = {scores!r} are for score = 'regression'; asked is {request.score!r}"
        )
    progress = progress or Silence()
    if trained.unfinished:
        progress.note(f"{trained.unfinished}: the plan will be of its weights as they are now")
    if trained.only_levels:
        progress.note(
            "this run trained width levels alone: other subnets mix weights that were never "
            "trained together (`superfednas evaluate --arch JSON` measures a level)"
        )
    table, here = None, False
    if latency_table:
        table = this_device.load_table(latency_table, trained.space)
    elif "latency" in (*request.limits, request.against):
        here = "latency" in request.limits
        Costs(trained.space).check({n: m for n, m in request.limits.items() if n != "latency"})
        table = this_device.table(trained.space, batch, threads=threads, progress=progress)
    costs = _costs(trained.space, table, batch)
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
            ladder=trained.rungs,
            origin={
                "run": str(trained.run.path),
                "weights": trained.weights,
                "rounds": trained.rounds,
                "space": trained.about_space(),
                "data": images,
                "latency": {}
                if table is None
                else {**table.device, "threads": table.threads, "batch": batch},
            },
            progress=progress,
        )

    plan = planned(request)
    if here and table is not None:
        plan = this_device.proven(plan, trained.space, request, table, batch, planned, progress)
    plan.save(path)
    return plan, path


def search_space(
    space: SpaceOptions,
    limits: Mapping[str, float] | None = None,
    *,
    request: Request | None = None,
    latency_table: str | Path = "",
    batch: int = 1,
    out: str | Path = "plan.json",
) -> tuple[Plan, Path]:
    """Find the best subnet of a space before anything is trained, by a score that needs no weights.

    Parameters
    ----------
    space
        Which space, for which images.
    limits, request, latency_table, batch
        As for :func:`search`; the request's score is ``zero-cost`` or ``macs``, and latency needs
        a table.
    out
        The plan's file.

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
    path, loaded = _free(Path(out).expanduser()), space.load()
    table = this_device.load_table(latency_table, loaded) if latency_table else None
    plan = make_plan(
        _limited(request, limits),
        _costs(loaded, table, batch),
        origin={"space": dataclasses.asdict(space)},
    )
    plan.save(path)
    return plan, path


def _limited(request: Request | None, limits: Mapping[str, float] | None) -> Request:
    request = request or Request()
    return replace(request, limits={**request.limits, **(limits or {})})


def _free(path: Path) -> Path:
    """Return a plan's path, before anything is measured for it."""
    if path.exists():
        raise PlanError(f"{str(path)!r} exists already, and nothing is overwritten")
    return path


def _costs(space: SearchSpace, table: LatencyTable | None, batch: int) -> Costs:
    if table is None:
        return Costs(space)
    table.batch(batch)  # what was not measured is said now
    return Costs(space, table.of(space), batch)


def test(
    plan_file: str | Path = LATEST,
    *,
    run_dir: str | Path = LATEST,
    dataset: str = "",
    progress: SearchProgress | None = None,
) -> dict[str, Any]:
    """Read the test split once: the chosen subnet of a plan, and the ladder beside it.

    The result is kept beside the plan (``….test.json``); asked again, that is returned and no image
    is read.

    Parameters
    ----------
    plan_file
        What :func:`search` wrote; ``latest`` is the newest plan of the run.
    run_dir
        A run folder, or ``latest``; with a plan's file, the run that it must be of.
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
    return tested(find_plan(plan_file, run_dir), dataset, progress or Silence())


def export(
    run_dir: str | Path | Trained,
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
    card = trained.card(architecture)
    return export_module(
        trained.subnet(architecture), card, images, format, out, overwrite=overwrite
    )


def export_personal(
    state_dir: str | Path | PersonalSubnet,
    out: str | Path,
    *,
    arch: str = "",
    format: str = "onnx",  # noqa: A002
    overwrite: bool = False,
) -> Exported:
    """Write a subnet that a node has personalised as one file; it is checked on the node's images.

    Parameters
    ----------
    state_dir
        ``state-dir`` of the node config, or a subnet of it that is open already.
    out, format, overwrite
        As for :func:`export`.
    arch
        Which one; by default the best on the node's validation images.

    Raises
    ------
    deploy.card.DeployError
        Where there is none, or as :func:`export`.
    """
    check_out(format, Path(out), overwrite)
    subnet = state_dir
    if not isinstance(subnet, PersonalSubnet):
        subnet = find_personal(subnet, arch)
    return export_module(
        subnet.module(), subnet.card(), subnet.images, format, out, overwrite=overwrite
    )


def export_elastic(
    run_dir: str | Path | Trained,
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
    rungs = trained.rungs
    listed: dict[str, float | None] = {arch.to_json(): None for arch in rungs.values()}
    if plan is not None:
        listed = {e.text: e.score for e in (*plan.ladder, *plan.front, plan.chosen)}
    menu = []
    for text, found in listed.items():
        arch = space.parse(text)
        macs, params = space.macs(arch), space.params(arch)
        menu.append({"architecture": text, "macs": macs, "params": params, "score": found})
    card = replace(trained.card(space.largest), menu=tuple(menu))
    write_elastic(out, space, trained.state, card, overwrite=overwrite)
    return Path(out)
