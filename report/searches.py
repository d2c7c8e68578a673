"""What the plans of a run say, as the texts and tables of its report. Nothing is escaped here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nas.costs import COSTS
from nas.plan import Entry, Plan, PlanError
from nas.regression import POOR
from report.tables import NONE, Row
from server.progress import duration
from server.scoring import NODES

SHORT = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "size of the file",
    "memory": "memory",
    "latency": "latency",
}
_ACCURACIES = {"regression": "predicted", "measured": "measured"}
_OF = {"bytes": " as a file", "memory": " of activations", "latency": " a batch"}
# What a file that is JSON but no plan can raise wherever it is read.
DAMAGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def is_accuracy(plan: Plan) -> bool:
    """Say whether a plan's scores are accuracies, measured or predicted."""
    return plan.scorer["name"] in _ACCURACIES


def amount_of(name: str, value: float) -> str:
    """Say a cost so that it needs no heading."""
    return COSTS[name].say(value) + _OF.get(name, "")


def costs_of(entry: Entry, between: str = ", ") -> str:
    """Say all that a network costs."""
    return between.join(amount_of(name, value) for name, value in entry.costs.items())


def limits_of(plan: Plan, without: str = "") -> str:
    """Say the limits of a search (apart from one); empty where there are none."""
    kept = ((name, most) for name, most in plan.limits.items() if name != without)
    return ", ".join(f"at most {amount_of(name, most)}" for name, most in kept)


def asked_of(plan: Plan) -> str:
    """Say what was searched for."""
    front = f"front against {SHORT[plan.against]}" if plan.against else ""
    return "; ".join(filter(None, [front, limits_of(plan)])) or "the best, without limits"


def scored_by(plan: Plan) -> str:
    """Say how subnets were scored, and on which images."""
    about = plan.scorer
    if not is_accuracy(plan):
        name = SHORT.get(about["name"], about["name"])
        return f"{name} score, which is no accuracy: read off the architecture, without images"
    if about["name"] == "measured":
        how = f"every candidate measured, {about['measured']:,} in all"
    else:
        rank = about["rank_correlation"]
        poor = ": it ranks poorly" if rank < POOR else ""
        how = (
            f"regression on {about['measured']:,} measured subnets "
            f"(cross-validated rank correlation {rank:.2f}{poor})"
        )
    return f"{how}, {_images(plan)}"


def _images(plan: Plan) -> str:
    counts = sorted({int(entry.measured["examples"]) for entry in plan.measured if entry.measured})
    span = " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    if plan.data.get("digest") == NODES:
        return f"{span} validation images of the nodes, not test images"
    return f"{span} validation images, not test images"


def score_of(plan: Plan, entry: Entry, *, short: bool = False) -> str:
    """Say a network's score, and unless ``short`` also whose score it is."""
    if entry.score is None:
        return NONE
    name = plan.scorer["name"]
    if is_accuracy(plan):
        said, kind = f"{entry.score:.1%}" if short else f"{entry.score:.2%}", _ACCURACIES[name]
    else:
        said = COSTS["macs"].say(entry.score) if name == "macs" else f"{entry.score:,.1f}"
        kind = f"({name})"
    return said if short else f"{said} {kind}"


def standard_error(found: Mapping[str, float]) -> float:
    """Return the binomial standard error of a measured accuracy, from 0 to 0.5."""
    accuracy = found["accuracy"]
    return float((accuracy * (1 - accuracy) / found["examples"]) ** 0.5)


def percent(found: Mapping[str, float], error: float) -> str:
    """Say an accuracy with its standard error, both in percent."""
    return f"{found['accuracy']:.2%} ± {100 * error:.2f}"


def measured_of(entry: Entry) -> str:
    """Say a network's accuracy on the images that scores were measured on."""
    found = entry.measured
    return NONE if found is None else percent(found, standard_error(found))


def engine_of(plan: Plan) -> str:
    """Say how the space was searched."""
    if plan.exact:
        within = " within the limits" if plan.limits else ""
        return f"exact: the score's optimum{within} is proven, over {plan.looked_at:,} subnets"
    if plan.engine == "exact":
        return f"computed over {plan.looked_at:,} subnets, parts thinned out: no proof"
    return f"evolution: the best of {plan.looked_at:,} subnets that it scored, no proof"


def _span(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{max(1, round(1000 * seconds))} ms"


@dataclass(frozen=True)
class Search:
    """A plan with the texts of its report.

    Parameters
    ----------
    name
        The file's name, without its ending.
    plan
        What it holds.
    facts
        Names and values.
    line
        Its line in the table of all searches: plan, asked, MACs, score, measured, test, engine,
        time.
    test_lines
        The table of its test: subnet, MACs, accuracy, images. Empty where there was none.
    test_caption
        Says when the test split was read.
    """

    name: str
    plan: Plan
    facts: list[tuple[str, str]]
    line: list[str]
    test_lines: Sequence[list[str]]
    test_caption: str

    @classmethod
    def read(cls, path: Path) -> "Search":
        """Read a plan and its test, where there is one.

        Raises
        ------
        PlanError
            Where the plan is damaged; the message is one sentence.
        """
        try:
            return cls._of(path, Plan.load(path))
        except PlanError:
            raise
        except DAMAGED as error:
            raise PlanError(f"{str(path)!r} is damaged: {error!r}") from None

    @classmethod
    def _of(cls, path: Path, plan: Plan) -> "Search":
        test = _Test.beside(path, plan)
        chosen, seconds = plan.chosen, plan.seconds
        measured = "not measured"
        if chosen.measured is not None:
            measured = f"{measured_of(chosen)} on the validation images that chose it"
        searching, scoring = _span(seconds["search"]), _span(seconds["scoring"])
        facts = [
            ("made", f"{plan.created or NONE}, of the weights after round {plan.rounds}"),
            ("asked for", asked_of(plan)),
            ("scored by", scored_by(plan)),
            ("latency", ", ".join(f"{key} {value}" for key, value in plan.latency.items())),
            ("search", engine_of(plan)),
            ("time", f"{searching} of search, {scoring} of scoring"),
            ("chosen", chosen.text),
            ("costs", costs_of(chosen)),
            ("score", score_of(plan, chosen)),
            ("validation accuracy", measured),
            ("test accuracy", test.fact),
        ]
        line = [
            path.stem,
            asked_of(plan),
            f"{chosen.costs['macs'] / 1e6:,.2f}",
            score_of(plan, chosen),
            measured_of(chosen),
            test.cell,
            str(plan.engine),
            searching,
        ]
        facts = [(name, value) for name, value in facts if value]
        return cls(path.stem, plan, facts, line, test.lines, test.caption)


class _Test(NamedTuple):
    """The test of a plan as a fact, as a cell of the table of searches, and as a table."""

    fact: str = ""
    cell: str = NONE
    lines: Sequence[list[str]] = ()
    caption: str = ""

    @classmethod
    def beside(cls, path: Path, plan: Plan) -> "_Test":
        """Read the test that lies beside a plan's file."""
        file = path.with_name(f"{path.stem}.test.json")
        if not file.exists():
            return cls()
        try:
            found = json.loads(file.read_text())
            cell = _percent(found["chosen"])
            return cls(
                fact=f"{cell} (standard error) on {found['chosen']['examples']:,} test images",
                cell=cell,
                lines=_test_lines(plan, found),
                caption=f"Accuracy on the test split, read {found['read']}",
            )
        except (OSError, *DAMAGED) as error:
            return cls(fact=f"{file.name} is damaged: {error!r}", cell="unreadable")


def _percent(found: Mapping[str, Any]) -> str:
    return percent(found, found["standard_error"])


def _test_lines(plan: Plan, test: Row) -> list[list[str]]:
    """Return a line for the chosen subnet and each of the ladder, by rising MACs."""
    macs = {entry.name: entry.costs["macs"] for entry in (plan.chosen, *plan.ladder)}
    rows = {"chosen": test["chosen"], **test["ladder"]}
    return [
        [name, f"{macs[name] / 1e6:,.2f}", _percent(rows[name]), f"{rows[name]['examples']:,}"]
        for name in sorted(rows, key=lambda name: (macs[name], name))
    ]


def read_searches(paths: Iterable[Path]) -> tuple[list[Search], list[str]]:
    """Read plans, the newest first; what cannot be read is answered with one sentence each."""
    searches: list[Search] = []
    problems = []
    for path in sorted(paths):
        try:
            searches.append(Search.read(path))
        except PlanError as error:
            problems.append(str(error))
    # By time, and by number where two were made within a second.
    order = sorted(searches, key=lambda s: (str(s.plan.created), len(s.name), s.name))
    return order[::-1], problems


def plan_files(folder: Path) -> Sequence[Path]:
    """Return the plans in a folder, without the tests that lie beside them."""
    return [path for path in folder.glob("plan-*.json") if not path.name.endswith(".test.json")]
