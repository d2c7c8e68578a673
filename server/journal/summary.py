"""The summary of a run: the ladder's table, what was hardly trained, the spread over clients."""

from collections.abc import Sequence

from rich.table import Table

from superfednas.common.terminal import Terminal
from superfednas.common.words import amount, prefix_of
from superfednas.records.rows import EvaluationRow, RoundRow, Row, Spread, SummaryRow, of_kind
from superfednas.server.journal.evaluation import client_spread, coverage, hardly_trained
from superfednas.supernet import SearchSpace
from superfednas.tasks import Metric
from superfednas.tasks.registry import metric_of

_REASONS = 10  # for refusals that are repeated: a node could give another in every round


def summarise(
    space: SearchSpace, rows: Sequence[Row], rounds: int, *, as_assigned: bool = True
) -> SummaryRow:
    """Return the run's summary: cost, replies, coverage and spread over clients.

    ``as_assigned`` is False if clients train subnets other than the assigned ones, or if all are of
    a few width levels: unassigned ranges then mean nothing.
    """
    done = of_kind(rows, RoundRow)
    reasons: dict[str, int] = {}
    for row in done:
        for client in row.refused:
            reason = client.reason or ""
            reasons[reason] = reasons.get(reason, 0) + 1
    return SummaryRow(
        round=rounds,
        replies=sum(len(row.accepted) for row in done),
        refused=reasons,
        bytes=sum(row.bytes for row in done),
        gmac_images=sum(row.computed for row in done) / 1e9,
        seconds=sum(row.seconds for row in done),
        coverage=coverage(space, done),
        as_assigned=as_assigned,
        spread=client_spread(done, space.task.metrics[0]),
        metric=space.task.metrics[0].described(),
    )


def print_finale(
    evaluation: EvaluationRow | None, summary: SummaryRow, *, data_name: str, console: Terminal
) -> None:
    """Print the table of an evaluation row and the sentences of a summary row."""
    if evaluation is not None:
        console.print(ladder_table(evaluation, data_name))
    for sentence in sentences(summary):
        console.say(sentence)


def ladder_table(evaluation: EvaluationRow, data_name: str) -> Table:
    """Return the table of a ladder."""
    where = "" if evaluation.where == "server" else ", measured by the clients"
    if evaluation.where == "clients":
        where += f" on the weights of round {evaluation.trained_rounds}"
    metric = metric_of(evaluation.metric)
    title = f"{data_name}: {evaluation.split} {metric.name}{where}"
    table = Table(title=title, title_justify="left")
    prefix = prefix_of(rung.macs for rung in evaluation.ladder)
    table.add_column("subnet")
    for heading in (f"{prefix.letter}MACs", "parameters", metric.name, "examples"):
        table.add_column(heading, justify="right")
    for rung in evaluation.ladder:
        table.add_row(
            rung.name,
            prefix.say(rung.macs),
            f"{rung.params:,}",
            metric.say(rung[metric.name]),
            str(rung.examples),
        )
    return table


def sentences(summary: SummaryRow) -> list[str]:
    """Return the summary as sentences."""
    cost = summary.gmac_images * 1e9
    prefix = prefix_of([cost], "G")
    said = [
        f"Cost: {prefix.say(cost, 1)} {prefix.letter}MAC·images forward, "
        f"{amount(summary.bytes)} sent and received, {summary.seconds:.0f} s "
        f"in {summary.round} rounds."
    ]
    if summary.refused:
        often = sorted(summary.refused.items(), key=lambda item: -item[1])
        counts = "; ".join(f"{count} × {why}" for why, count in often[:_REASONS])
        more = f"; and {len(often) - _REASONS} more reasons" if len(often) > _REASONS else ""
        said.append(f"Refused replies: {counts}{more}.")
    ranges = hardly_trained(summary)
    if ranges:
        unit = prefix_of(end for ends in ranges for end in ends)
        named = ", ".join(f"{unit.say(low)} to {unit.say(high)}" for low, high in ranges)
        said.append(
            f"Hardly trained (fewer than 1% of the assignments, end points aside): {named} "
            f"{unit.letter}MACs."
        )
    metric = metric_of(summary.metric)
    said += [_spread_sentence(which, found, metric) for which, found in summary.spread.items()]
    return said


def _spread_sentence(which: str, found: Spread, metric: Metric) -> str:
    values = (found.mean, found.sd, found.min, found.max)
    mean, sd, least, most = (metric.say(value, 1) for value in values)
    ends = [f"least {least}", f"most {most}"]
    ends[metric.better == "less"] += f", client {found.lowest}"
    subnet = {"smallest": "the smallest subnet", "own": "the subnet each was assigned"}[which]
    return (
        f"Over {found.clients} clients, {subnet} has {mean} ± {sd} {metric.name} on their own "
        f"validation examples when last asked ({'; '.join(ends)})."
    )
