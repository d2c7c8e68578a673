"""Plans of a run as the texts and tables of its report. Nothing is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from superfednas.common.damage import DAMAGE, read_object
from superfednas.common.words import duration, prefix_of
from superfednas.nas.cost.cost import COSTS
from superfednas.nas.plan import Entry, Plan, PlanError
from superfednas.nas.score.regression import POOR
from superfednas.records.scores import NODES
from superfednas.report.tables import NONE, upper_first
from superfednas.tasks import Metric
from superfednas.tasks.metric import PERCENT, Share
from superfednas.tasks.registry import examples_of, metric_of

SHORT = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "size of the file",
    "memory": "memory",
    "latency": "latency",
}
_BY_METRIC = {"regression": "predicted", "measured": "measured"}
_OF = {"bytes": " as a file", "memory": " of activations", "latency": " a batch"}


def metric_in(plan: Plan) -> Metric | None:
    """Return the metric whose values a plan's scores are, measured or predicted; else None."""
    return metric_of(plan.scorer.get("metric")) if plan.scorer["name"] in _BY_METRIC else None


def _judged_by(plan: Plan) -> Metric:
    """Return the task's metric; without its unit where scores are others and the plan has none."""
    described = plan.scorer.get("metric")
    if described or examples_in(plan) == "images":
        return metric_of(described)
    return Metric("metric", "more")


def examples_in(plan: Plan) -> str:
    """Return what the examples of a plan's task are called."""
    return examples_of(plan.space.get("task", ""))


def amount_of(plan: Plan, name: str, value: float) -> str:
    """Return a cost as a text that needs no heading."""
    return plan.quantity(name).say(value) + _OF.get(name, "")


def costs_of(plan: Plan, entry: Entry, between: str = ", ") -> str:
    """Return all costs of an architecture as a text."""
    return between.join(amount_of(plan, name, value) for name, value in entry.costs.items())


def limits_of(plan: Plan, without: str = "") -> str:
    """Return the limits of a search (except one) as a text; empty if there are none."""
    kept = ((name, most) for name, most in plan.limits.items() if name != without)
    return ", ".join(f"at most {amount_of(plan, name, most)}" for name, most in kept)


def asked_of(plan: Plan) -> str:
    """Return what was searched for."""
    front = f"front against {SHORT.get(plan.against, plan.against)}" if plan.against else ""
    return "; ".join(filter(None, [front, limits_of(plan)])) or "the best, without limits"


def scored_by(plan: Plan) -> str:
    """Return how subnets were scored, and on which examples."""
    about = plan.scorer
    if metric_in(plan) is None:
        name, examples = SHORT.get(about["name"], about["name"]), examples_in(plan)
        no = "no accuracy" if examples == "images" else "not the task's metric"
        return f"{name} score, which is {no}: read off the architecture, without {examples}"
    if about["name"] == "measured":
        how = f"every candidate measured, {about['measured']:,} in all"
    else:
        rank = about["rank_correlation"]
        poor = ": it ranks poorly" if rank < POOR else ""
        how = (
            f"regression on {about['measured']:,} measured subnets "
            f"(cross-validated rank correlation {rank:.2f}{poor})"
        )
    return f"{how}, {_rows_of(plan)}"


def _rows_of(plan: Plan) -> str:
    counts = sorted({int(entry.measured["examples"]) for entry in plan.measured if entry.measured})
    span = " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    examples = examples_in(plan)
    whose = " of the nodes" if plan.data.get("digest") == NODES else ""
    return f"{span} validation {examples}{whose}, not test {examples}"


def score_of(plan: Plan, entry: Entry, *, short: bool = False) -> str:
    """Return an architecture's score and, unless ``short``, the name of the score."""
    if entry.score is None:
        return NONE
    name, metric = plan.scorer["name"], metric_in(plan)
    if metric is not None:
        said, kind = metric.say(entry.score, 1 if short else 2), _BY_METRIC[name]
    else:
        said = COSTS["macs"].say(entry.score) if name == "macs" else f"{entry.score:,.1f}"
        kind = f"({name})"
    return said if short else f"{said} {kind}"


def standard_error(metric: Metric, found: Mapping[str, float]) -> float | None:
    """Return the standard error of a measured value; None of metrics where it is not known."""
    if not isinstance(metric, Share):
        return None
    return metric.error(found[metric.name], found["examples"])


def value_of(metric: Metric, found: Mapping[str, float], error: float | None) -> str:
    """Return a measured value with its standard error, if that is known, in the same unit."""
    said = metric.say(found[metric.name])
    if error is None:
        return said
    return f"{said} ± {100 * error:.2f}" if metric.unit == PERCENT else f"{said} ± {error:.3f}"


def measured_of(plan: Plan, entry: Entry) -> str:
    """Return an architecture's value on the examples used for scores."""
    found, metric = entry.measured, _judged_by(plan)
    if found is None or metric.name not in found:
        return NONE
    return value_of(metric, found, standard_error(metric, found))


def engine_of(plan: Plan) -> str:
    """Return how the space was searched."""
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
        The table of its test: subnet, MACs, metric, examples. Empty without a test.
    test_caption
        States when the test split was read.
    test_headings
        Of that table.
    """

    name: str
    plan: Plan
    facts: list[tuple[str, str]]
    line: list[str]
    test_lines: Sequence[list[str]]
    test_caption: str
    test_headings: Sequence[str]

    @classmethod
    def read(cls, path: Path) -> "Search":
        """Read a plan and its test, if there is one.

        Raises
        ------
        PlanError
            If the plan is damaged; the message is one sentence.
        """
        try:
            return cls._of(path, Plan.load(path))
        except PlanError:
            raise
        except DAMAGE as error:
            raise PlanError(f"{str(path)!r} is damaged: {error!r}") from None

    @classmethod
    def _of(cls, path: Path, plan: Plan) -> "Search":
        test, judged, examples = _Test.beside(path, plan), _judged_by(plan), examples_in(plan)
        chosen, seconds = plan.chosen, plan.seconds
        measured = "not measured"
        if chosen.measured is not None:
            measured = f"{measured_of(plan, chosen)} on the validation {examples} that chose it"
        searching, scoring = _span(seconds["search"]), _span(seconds["scoring"])
        facts = [
            ("made", f"{plan.created or NONE}, of the weights after round {plan.rounds}"),
            ("asked for", asked_of(plan)),
            ("scored by", scored_by(plan)),
            ("latency", ", ".join(f"{key} {value}" for key, value in plan.latency.items())),
            ("search", engine_of(plan)),
            ("time", f"{searching} of search, {scoring} of scoring"),
            ("chosen", chosen.text),
            ("costs", costs_of(plan, chosen)),
            ("score", score_of(plan, chosen)),
            (f"validation {judged.name}", measured),
            (f"test {test.metric.name}", test.fact),
        ]
        line = [
            path.stem,
            asked_of(plan),
            COSTS["macs"].say(chosen.costs["macs"]),
            score_of(plan, chosen),
            measured_of(plan, chosen),
            test.cell,
            str(plan.engine),
            searching,
        ]
        facts = [(name, value) for name, value in facts if value]
        return cls(path.stem, plan, facts, line, test.lines, test.caption, test.headings)


class _Test(NamedTuple):
    """The test of a plan as a fact, as a cell of the table of searches, and as a table."""

    metric: Metric
    fact: str = ""
    cell: str = NONE
    lines: Sequence[list[str]] = ()
    caption: str = ""
    headings: Sequence[str] = ()

    @classmethod
    def beside(cls, path: Path, plan: Plan) -> "_Test":
        """Read the test beside a plan's file."""
        file = path.with_name(f"{path.stem}.test.json")
        if not file.exists():
            return cls(_judged_by(plan))
        try:
            found = read_object(file)
            metric, examples, chosen = (
                metric_of(found.get("metric")),
                examples_in(plan),
                found["chosen"],
            )
            macs = {entry.name: entry.costs["macs"] for entry in (plan.chosen, *plan.ladder)}
            rows = {"chosen": chosen, **found["ladder"]}
            prefix = prefix_of(macs[name] for name in rows)
            values = {
                name: value_of(metric, row, row["standard_error"]) for name, row in rows.items()
            }
            known = "" if chosen["standard_error"] is None else " (standard error)"
            return cls(
                metric,
                fact=f"{values['chosen']}{known} on {chosen['examples']:,} test {examples}",
                cell=values["chosen"],
                lines=[
                    [name, prefix.say(macs[name]), values[name], f"{rows[name]['examples']:,}"]
                    for name in sorted(rows, key=lambda name: (macs[name], name))
                ],
                caption=f"{upper_first(metric.name)} on the test split, read {found['read']}",
                headings=("subnet", f"{prefix.letter}MACs", f"test {metric.name}", examples),
            )
        except DAMAGE as error:
            fact = f"{file.name} is damaged: {error!r}"
            return cls(_judged_by(plan), fact=fact, cell="unreadable")


def read_searches(paths: Iterable[Path]) -> tuple[list[Search], list[str]]:
    """Read plans, newest first, and return a sentence for each one that cannot be read."""
    searches: list[Search] = []
    problems = []
    for path in sorted(paths):
        try:
            searches.append(Search.read(path))
        except PlanError as error:
            problems.append(str(error))
    # By time, and by number if two were made within a second.
    order = sorted(searches, key=lambda s: (str(s.plan.created), len(s.name), s.name))
    return order[::-1], problems


def plan_files(folder: Path) -> Sequence[Path]:
    """Return the plans in a folder, without the tests beside them."""
    return [path for path in folder.glob("plan-*.json") if not path.name.endswith(".test.json")]
