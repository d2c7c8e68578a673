"""SuperFedNAS from Python: the calls behind the ``superfednas`` command.

>>> import superfednas
>>> run = superfednas.train(rounds=100, clients=10, clients_per_round=5)
>>> plan, file = superfednas.search(run.path, {"macs": 1_000_000})
>>> superfednas.test(file)["chosen"]["accuracy"]
>>> superfednas.export(run.path, plan.chosen.text, "model.onnx")
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from superfednas.client.device import choose_device, usable_precision
from superfednas.common.settings import Scalar, SettingsError
from superfednas.common.trust import trusting
from superfednas.data import Split, partition
from superfednas.deploy.device.cards import run_card
from superfednas.deploy.device.elastic_file import write_elastic
from superfednas.deploy.device.export import Exported, check_out
from superfednas.deploy.device.export import export as export_module
from superfednas.deploy.device.menu import ladder_menu, plan_menu
from superfednas.deploy.device.personal import PersonalSubnet, find_personal
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.local import local_grid, opened
from superfednas.nas.pipeline import Request, SearchProgress, Silence
from superfednas.nas.plan import Plan, PlanError
from superfednas.nas.score.measured import ScoreBook
from superfednas.records.folder import LATEST, RunFolder
from superfednas.records.plans import find_plan, tested
from superfednas.records.search import search as search_run
from superfednas.records.search import search_space
from superfednas.records.trained import Trained, trusted_settings
from superfednas.server.app import prepare, run_training
from superfednas.server.errands.personalise import personalise_by_nodes
from superfednas.server.errands.score import score_by_nodes
from superfednas.server.journal.progress import Progress
from superfednas.server.settings import check_settings
from superfednas.tasks import Tally

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
_CHECK_ROWS = 64


def train(
    *,
    progress: Progress | None = None,
    workers: int = 1,
    trust_code: bool = False,
    **settings: Scalar,
) -> RunFolder:
    """Train a supernet in this process, without Ray or gRPC.

    Parameters
    ----------
    progress
        Where the run reports; by default one printed line a round.
    workers
        Clients trained at the same time; the result does not depend on it.
    trust_code
        To resume: as for :func:`evaluate`.
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
    with trusting(trust_code):
        prepared = prepare({key.replace("_", "-"): value for key, value in settings.items()})
    clients, sampled = prepared.settings.clients, prepared.settings.clients_per_round
    if sampled > clients:
        raise SettingsError(f"clients-per-round = {sampled}: there are only clients = {clients}")
    if prepared.data is not None:  # refuse what no client could load, once
        partition(prepared.data, prepared.settings.data, clients, prepared.settings.seed)
    grid, progress = local_grid(prepared.settings, workers), progress or Progress()
    precision = prepared.settings.precision
    if usable_precision(precision, choose_device(prepared.settings.device)) != precision:
        progress.note(f"precision = {precision!r}: on the CPU clients train in float32")
    try:
        return run_training(prepared, grid, progress)
    finally:
        grid.close()


def evaluate(
    run_dir: str | Path | Trained,
    arch: str,
    *,
    split: str = "validation",
    dataset: str = "",
    trust_code: bool = False,
) -> Tally:
    """Measure one subnet of a trained supernet: ``.row(task.metrics)`` gives the values.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``; for an unfinished run, its newest checkpoint is used. An open
        run (:class:`superfednas.records.trained.Trained`) is not read again.
    arch
        ``largest``, ``smallest``, ``random:SEED`` or JSON.
    split
        ``validation`` or ``test`` (for final figures, not for choosing).
    dataset
        Instead of the run's own data set.
    trust_code
        Trust the modules (``module:Name``) that the folder names, so that they may be imported.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split = {split!r}: must be validation or test")
    trained = Trained.open(run_dir, dataset, trust_code=trust_code)
    architecture = trained.space.parse(arch)
    if split == "validation":
        return trained.measured().measure([architecture])[0]
    return trained.score(architecture, trained.data.test)


def subnet(
    run_dir: str | Path | Trained, arch: str, *, dataset: str = "", trust_code: bool = False
) -> nn.Module:
    """Return one subnet as a plain module with its own weights, ready to run.

    If its norm needs statistics, they are measured on training images. The supernet is only read,
    and nothing is kept between calls. Parameters are those of :func:`evaluate`.
    """
    trained = Trained.open(run_dir, dataset, trust_code=trust_code)
    return trained.subnet(trained.space.parse(arch))


def score_nodes(
    run_dir: str | Path = LATEST,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    trust_code: bool = False,
    **settings: Scalar,
) -> ScoreBook:
    """Let the clients of an in-process run score subnets on their own validation images.

    The same as ``flwr run . --run-config "score-run='DIR'"``.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``.
    progress, workers, trust_code
        As for :func:`train` and :func:`evaluate`.
    **settings
        ``score_subnets``, ``min_nodes`` and the time-outs.
    """
    run = RunFolder.open(run_dir)
    grid = local_grid(check_settings(trusted_settings(run, trust_code)), workers)
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
    trust_code: bool = False,
    **settings: Scalar,
) -> Path:
    """Let the clients of an in-process run personalise subnets on their own images.

    The same as ``flwr run . --run-config "personalise-run='DIR'"``. The run is only read.

    Parameters
    ----------
    run_dir
        A run folder, or ``latest``.
    progress, workers, trust_code
        As for :func:`train` and :func:`evaluate`.
    state_dir
        Where each client gets a folder for the subnets it keeps (``state_dir/NAME``); without it,
        clients only report.
    **settings
        ``personal_subnets``, ``fine_tune``, ``fine_tune_epochs``, ``fine_tune_lr``, ``min_nodes``
        and the time-outs.

    Returns
    -------
    Path
        What the clients report
        (:func:`superfednas.server.errands.personalise.personalise_by_nodes`).
    """
    run = RunFolder.open(run_dir)
    grid = local_grid(check_settings(trusted_settings(run, trust_code)), workers, state_dir)
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
    costs: str = "",
    request: Request | None = None,
    scores: str = "",
    latency_table: str | Path = "",
    batch: int = 1,
    threads: int = 1,
    split: Split | None = None,
    dataset: str = "",
    trust_code: bool = False,
    out: str | Path = "",
    progress: SearchProgress | None = None,
) -> tuple[Plan, Path]:
    """Find the best subnet within limits, with no retraining, and record how.

    Returned are the plan and its file. Parameters and errors are those of
    :func:`superfednas.records.search.search`, beside a run folder (or ``latest``), a data set in
    place of the run's own, and ``trust_code``.
    """
    return search_run(
        opened(run_dir, dataset, trust_code),
        limits,
        costs=costs,
        request=request,
        scores=scores,
        latency_table=latency_table,
        batch=batch,
        threads=threads,
        split=split,
        out=out,
        progress=progress,
    )


def test(
    plan_file: str | Path = LATEST,
    *,
    run_dir: str | Path = LATEST,
    dataset: str = "",
    trust_code: bool = False,
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
        Instead of the run's own data set.
    progress
        Where progress is reported.

    Returns
    -------
    dict
        ``chosen`` (accuracy, loss, examples, standard error), ``ladder`` by name, ``data``,
        ``read`` (when) and ``again`` (whether this is an earlier result).
    """
    with trusting(trust_code):
        return tested(find_plan(plan_file, run_dir), dataset, progress or Silence())


def export(
    run_dir: str | Path | Trained,
    arch: str,
    out: str | Path,
    *,
    format: str = "onnx",  # noqa: A002
    overwrite: bool = False,
    dataset: str = "",
    trust_code: bool = False,
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
    trust_code
        As for :func:`evaluate`.

    Raises
    ------
    superfednas.deploy.device.runtime.errors.DeployError
        If the format's packages are not installed, the file exists, or it answers otherwise than
        PyTorch does.
    """
    check_out(format, Path(out), overwrite)  # before anything is loaded
    trained = Trained.open(run_dir, dataset, trust_code=trust_code)
    architecture = trained.space.parse(arch)
    rows = trained.data.validation.first(_CHECK_ROWS).fields
    card = run_card(trained, architecture)
    return export_module(trained.subnet(architecture), card, rows, format, out, overwrite=overwrite)


def export_personal(
    state_dir: str | Path | PersonalSubnet,
    out: str | Path,
    *,
    arch: str = "",
    format: str = "onnx",  # noqa: A002
    overwrite: bool = False,
    trust_code: bool = False,
) -> Exported:
    """Write a subnet that a node has personalised as one file; it is checked on the node's images.

    Parameters
    ----------
    state_dir
        ``state-dir`` of the node config, or a subnet of it that is open already.
    out, format, overwrite, trust_code
        As for :func:`export`.
    arch
        Which one; by default the best on the node's validation images.

    Raises
    ------
    superfednas.deploy.device.runtime.errors.DeployError
        If there is none, or as :func:`export`.
    """
    check_out(format, Path(out), overwrite)
    subnet = state_dir
    if not isinstance(subnet, PersonalSubnet):
        subnet = find_personal(subnet, arch, trust_code=trust_code)
    return export_module(
        subnet.module(), subnet.card(), subnet.rows, format, out, overwrite=overwrite
    )


def export_elastic(
    run_dir: str | Path | Trained,
    out: str | Path,
    *,
    plan: Plan | None = None,
    overwrite: bool = False,
    dataset: str = "",
    trust_code: bool = False,
) -> Path:
    """Write the whole supernet as one file whose subnets are switched between on the device.

    Its menu is the plan's ladder, front and chosen subnet; without a plan the ladder.
    :class:`superfednas.deploy.device.elastic.ElasticModel` loads it. Parameters are those of
    :func:`export`.
    """
    if Path(out).suffix != ".safetensors":
        raise DeployError(f"{out}: an elastic file ends with .safetensors")
    trained = opened(run_dir, dataset, trust_code)
    space = trained.space
    if plan is not None and plan.weights != trained.weights:
        raise PlanError(f"the plan is of other weights than those of {str(trained.run.path)!r}")
    menu = plan_menu(space, plan) if plan is not None else ladder_menu(space, trained.rungs)
    card = replace(run_card(trained, space.largest), menu=menu)
    write_elastic(out, space, trained.state, card, overwrite=overwrite)
    return Path(out)
