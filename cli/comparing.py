"""The verb that compares runs: compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from superfednas.cli.common import Json, OpeningCommand, app, show
from superfednas.common.terminal import Terminal

if TYPE_CHECKING:
    from superfednas.report.comparison import Comparison


@app.command(cls=OpeningCommand)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or latest.")],
    names: Annotated[
        str, typer.Option(metavar="A,B,...", help="A name for each run; by default its folder's.")
    ] = "",
    rung: Annotated[str, typer.Option(help="The subnet of the ladder to compare.")] = "largest",
    target: Annotated[
        float | None,
        typer.Option(
            help="The value of the metric to reach, of accuracies above 0 and at most 1; by "
            "default the worst of the runs' best, so that every run reaches it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for comparison.png; by default nothing is drawn.")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare runs: the metric, and what was sent and computed until a target was reached.

    RUN is a run folder, or latest. Bytes are those of weights, in both directions; GMAC·images are
    forward multiply-accumulates of one image times images trained on.
    """
    from superfednas.records.folder import RunFolder
    from superfednas.report.canvas import LIGHT
    from superfednas.report.comparison import as_json, write_plot
    from superfednas.report.comparison import compare as compare_runs

    given = [name.strip() for name in names.split(",")] if names else []
    comparison = compare_runs([RunFolder.open(run) for run in runs], given, rung, target)
    plot = None if out is None else write_plot(comparison, out, LIGHT)
    if json_:
        show(as_json(comparison) | {"plot": None if plot is None else str(plot)})
        return
    console = Terminal()
    console.print(_table(comparison))
    console.print(f"target {comparison.metric.say(comparison.target)}: {comparison.target_rule}")
    if comparison.note:
        console.print(comparison.note)
    if plot is not None:
        console.say(f"plot: {plot}")


def _table(comparison: "Comparison") -> Table:
    from superfednas.common.words import amount
    from superfednas.report.tables import NONE

    metric, prefix = comparison.metric, comparison.prefix
    table = Table(
        title=f"validation {metric.name} of {comparison.rung}, and the cost up to the target",
        title_justify="left",
    )
    with_method = any(curve.method is not None for curve in comparison.curves)
    table.add_column("run", overflow="fold")
    if with_method:
        table.add_column("method", no_wrap=True)
    for heading in ("best", "last", "rounds", "bytes", f"{prefix.letter}MAC·images"):
        table.add_column(heading, justify="right", no_wrap=True)
    for curve in comparison.curves:
        reached = curve.reach(comparison.target)
        cost = (
            [NONE] * 3
            if reached is None
            else [
                str(reached.rounds),
                amount(reached.bytes),
                prefix.say(reached.gmac_images * 1e9, 1),
            ]
        )
        method = [curve.method or NONE] if with_method else []
        table.add_row(curve.name, *method, metric.say(curve.best), metric.say(curve.last), *cost)
    return table
