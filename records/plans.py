"""Plans beside their run, and the one result on the test split that each may have."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from superfednas.common.damage import damage_of, fill, read_object
from superfednas.common.files import write_whole
from superfednas.nas.pipeline import SearchProgress
from superfednas.nas.plan import Plan, PlanError
from superfednas.records.folder import LATEST, RunFolder
from superfednas.records.trained import Trained, split_description
from superfednas.tasks import Metric, Tally
from superfednas.tasks.registry import metric_of

PLANS = "plans"


def next_plan(run: RunFolder) -> Path:
    """Return the next free ``RUN/plans/plan-NNN.json``."""
    return run.path / PLANS / f"plan-{max(_plans(run), default=0) + 1:03d}.json"


def find_plan(plan: str | Path = LATEST, run: str | Path = LATEST) -> Path:
    """Return a plan's file.

    Parameters
    ----------
    plan
        The file; ``latest`` is the newest plan of the run.
    run
        A run folder, or ``latest``. With a plan's file, it is the run that the plan must belong to.

    Raises
    ------
    PlanError
        If the run has no plan, or the plan belongs to another run.
    """
    if str(plan) != LATEST:
        path = Path(plan).expanduser()
        if str(run) != LATEST:
            _check_whose(path, RunFolder.open(run))
        return path
    folder = RunFolder.open(run)
    plans = _plans(folder)
    if not plans:
        named = "" if str(run) == LATEST else f" --run {folder.path}"
        raise PlanError(
            f"{str(folder.path)!r} has no plan yet: search first (superfednas search{named})"
        )
    return plans[max(plans)]


def _check_whose(path: Path, run: RunFolder) -> None:
    whose = Plan.load(path).run
    if not whose or Path(whose).resolve() != run.path:
        of = repr(whose) if whose else "a space that was not trained"
        raise PlanError(
            f"{str(path)!r} is a plan of {of}, not of "
            f"{str(run.path)!r}: leave out --run, or --plan for that run's newest plan"
        )


def open_plan(plan: Plan, dataset: str = "") -> Trained:
    """Open the run of a plan.

    Raises
    ------
    PlanError
        If nothing was trained, or the run has other weights now.
    """
    if not plan.run:
        raise PlanError("this plan is of a space that was not trained: there are no weights")
    trained = Trained.open(plan.run, dataset)
    if trained.weights != plan.weights:
        remedy = "search again"
        if trained.unfinished:
            remedy = f"{trained.unfinished}; search again when it has ended"
        raise PlanError(
            f"{plan.run!r} has other weights (round {trained.rounds}) than when the plan was made "
            f"(round {plan.rounds}): {remedy}"
        )
    return trained


def tested(path: Path, dataset: str, progress: SearchProgress) -> dict[str, Any]:
    """Return the plan's result on the test split, which is read only if there is none yet.

    Parameters
    ----------
    path
        The plan; its result is beside it (``….test.json``).
    dataset
        Instead of the run's own data set.
    progress
        Where progress is reported.

    Returns
    -------
    dict
        As :func:`superfednas.test` returns it.
    """
    plan = Plan.load(path)
    kept = path.with_name(path.stem + ".test.json")
    if kept.exists():
        return {**_earlier(kept, plan), "again": True}
    trained = open_plan(plan, dataset)
    data = trained.data
    if not len(data.test):
        raise ValueError(f"the test split of {data.name!r} has no examples")
    rows, metrics = [], trained.space.task.metrics
    for entry in (plan.chosen, *plan.ladder):
        found = trained.score(trained.space.parse(entry.text), data.test)
        rows.append(_row(found, metrics))
        progress.measuring(len(rows), 1 + len(plan.ladder), "test split")
    result: dict[str, Any] = {
        "plan": path.name,
        "weights": plan.weights,
        "architecture": plan.chosen.architecture,
        "data": dict(split_description("test", data, data.test)),
        "read": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "metric": metrics[0].described(),
        "chosen": rows[0],
        "ladder": {e.name: row for e, row in zip(plan.ladder, rows[1:], strict=True)},
    }
    try:
        write_whole(kept, json.dumps(result, indent=1), overwrite=False)
    except FileExistsError as error:
        raise PlanError(str(error)) from None
    return {**_with_macs(result, plan), "again": False}


@dataclass(frozen=True)
class _Result:
    """What a plan's result on the test split holds, as far as others than people read it."""

    plan: str
    weights: str
    architecture: Mapping[str, Any]
    data: Mapping[str, str | int]
    read: str
    chosen: Mapping[str, float | None]
    ladder: Mapping[str, Mapping[str, float | None]]


def _with_macs(result: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Add the costs of each tested subnet, which are in the plan."""
    costs = {entry.name: entry.costs["macs"] for entry in plan.ladder}
    ladder = {name: {**row, "macs": costs[name]} for name, row in result["ladder"].items()}
    chosen = {**result["chosen"], "macs": plan.chosen.costs["macs"]}
    return {**result, "chosen": chosen, "ladder": ladder}


def _plans(run: RunFolder) -> dict[int, Path]:
    found = (run.path / PLANS).glob("plan-*.json")
    numbers = {path.stem.removeprefix("plan-"): path for path in found}
    return {int(number): path for number, path in numbers.items() if number.isdecimal()}


def _row(found: Tally, metrics: Sequence[Metric]) -> Mapping[str, float | None]:
    return {**found.row(metrics), "standard_error": metrics[0].standard_error(found)}


def _earlier(kept: Path, plan: Plan) -> dict[str, Any]:
    """Read a plan's earlier test result; it may belong to an earlier plan of the same name."""
    with damage_of(kept, PlanError):
        found = read_object(kept)
        metric = metric_of(found.get("metric")).name
        said = fill(_Result, {field.name: found[field.name] for field in fields(_Result)})
        if (said.weights, said.architecture) != (plan.weights, plan.chosen.architecture):
            raise PlanError(f"{str(kept)!r} is the test result of another plan: move it away")
        for row in (said.chosen, *said.ladder.values()):
            if None in (row[metric], row["examples"]) or "standard_error" not in row:
                raise ValueError("a value is missing")
        said.data["name"]
        return _with_macs(found, plan)
