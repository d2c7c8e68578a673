"""Where plans lie beside their run, and the one result on the test split that each may have."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.trained import Trained, split_description
from nas.accuracy import Score
from nas.plan import Plan, PlanError
from nas.planner import SearchProgress
from server.run_folder import LATEST, RunFolder
from supernet.files import write_whole

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
        A run folder, or ``latest``. With a plan's file it only says whose plan that must be.

    Raises
    ------
    PlanError
        Where the run has no plan, or the plan is another run's.
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
        Where nothing was trained, or the run has other weights now.
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
    """Return the plan's result on the test split, which is read where there is none yet.

    Parameters
    ----------
    path
        The plan; its result lies beside it (``….test.json``).
    dataset
        In place of the run's own data set.
    progress
        Where the reading reports.

    Returns
    -------
    dict
        As :func:`superfednas.test` returns it.
    """
    plan = Plan.load(path)
    kept = path.with_name(path.stem + ".test.json")
    if kept.exists():
        return {**_with_macs(_earlier(kept, plan), plan), "again": True}
    trained = open_plan(plan, dataset)
    data = trained.data
    if not len(data.test):
        raise ValueError(f"the test split of {data.name!r} has no images")
    rows = []
    for entry in (plan.chosen, *plan.ladder):
        found = trained.score(trained.space.parse(entry.text), data.test)
        rows.append(_row(found))
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
    try:
        write_whole(kept, json.dumps(result, indent=1), overwrite=False)
    except FileExistsError as error:
        raise PlanError(str(error)) from None
    return {**_with_macs(result, plan), "again": False}


def _with_macs(result: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Add what each tested subnet costs, which is the plan's to say."""
    costs = {entry.name: entry.costs["macs"] for entry in plan.ladder}
    ladder = {name: {**row, "macs": costs[name]} for name, row in result["ladder"].items()}
    chosen = {**result["chosen"], "macs": plan.chosen.costs["macs"]}
    return {**result, "chosen": chosen, "ladder": ladder}


def _plans(run: RunFolder) -> dict[int, Path]:
    found = (run.path / PLANS).glob("plan-*.json")
    numbers = {path.stem.removeprefix("plan-"): path for path in found}
    return {int(number): path for number, path in numbers.items() if number.isdecimal()}


def _row(found: Score) -> Mapping[str, float]:
    return {
        "accuracy": found.accuracy,
        "standard_error": (found.accuracy * (1 - found.accuracy) / found.examples) ** 0.5,
        "loss": found.loss,
        "examples": found.examples,
    }


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
