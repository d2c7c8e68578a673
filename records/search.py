"""Search: the best subnet of a run, or of a space, and the plan that says how it was found."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from superfednas.common.trust import give
from superfednas.data import Split
from superfednas.nas import this_device
from superfednas.nas.cost.cost import add_costs
from superfednas.nas.cost.costs import Costs
from superfednas.nas.cost.latency import LatencyTable
from superfednas.nas.pipeline import Request, SearchProgress, Silence, make_plan
from superfednas.nas.plan import Plan, PlanError
from superfednas.records.plans import next_plan
from superfednas.records.trained import Trained, split_description
from superfednas.supernet import SearchSpace
from superfednas.wire.order import SpaceOptions


def search(
    trained: Trained,
    limits: Mapping[str, float] | None = None,
    *,
    costs: str = "",
    request: Request | None = None,
    scores: str = "",
    latency_table: str | Path = "",
    batch: int = 1,
    threads: int = 1,
    split: Split | None = None,
    out: str | Path = "",
    progress: SearchProgress | None = None,
) -> tuple[Plan, Path]:
    """Find the best subnet within limits, with no retraining, and record how.

    Parameters
    ----------
    trained
        The run, opened.
    limits
        ``macs``, ``params``, ``bytes``, ``memory`` (bytes of activations) and ``latency``
        (milliseconds), each to its maximum; and the names of ``costs``.
    costs
        ``module:Name`` of costs of your own (:class:`superfednas.nas.cost.cost.Cost`), separated by
        commas.
    request
        A full request, for more than limits; ``limits`` are added to it.
    scores
        Scores that are there already, and nothing is measured: ``kept`` (all that earlier searches
        of this run have measured), ``nodes`` (what the nodes have counted), or a file.
    latency_table
        A table of another device. Without one, a limit on latency refers to this device: its table
        is measured if it does not exist yet, and the chosen subnet is timed before it is accepted.
    batch, threads
        Images per batch and threads on this device, for the latency.
    split
        Images to score on, instead of the whole validation split.
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
    superfednas.nas.cost.costs.NothingFits
        If no subnet keeps the limits; it says what is possible.
    ValueError
        One sentence for whatever else is wrong; nothing is written then.
    """
    add_costs(costs)
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
    priced = _costs(trained.space, table, batch)
    priced.check(request.limits)  # before images are loaded
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
            priced,
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
    costs: str = "",
    request: Request | None = None,
    latency_table: str | Path = "",
    batch: int = 1,
    out: str | Path = "plan.json",
) -> tuple[Plan, Path]:
    """Find the best subnet of a space before anything is trained, by a score that needs no weights.

    Parameters
    ----------
    space
        The space and its images.
    limits, costs, request, latency_table, batch
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
    superfednas.nas.cost.costs.NothingFits
        If no subnet keeps the limits; it says what is possible.
    ValueError
        One sentence for whatever else is wrong; nothing is written then.
    """
    add_costs(costs)
    give([space.space, space.task])
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
    table.batch(batch)  # fails now if something was not measured
    return Costs(space, table.of(space), batch)
