"""The verb that sets runs beside each other: compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.common import Json, app, show

if TYPE_CHECKING:
    from report.comparison import Comparison


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or latest.")],
    names: Annotated[
        str, typer.Option(metavar="A,B,...", help="A name a run; by default its folder's.")
    ] = "",
    rung: Annotated[str, typer.Option(help="The subnet of the ladder to compare.")] = "largest",
    target: Annotated[
        float | None,
        typer.Option(
            help="The validation accuracy to reach, above 0 and at most 1; by default the lowest "
            "of the runs' best, so that every run reaches it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for comparison.png; by default nothing is drawn.")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare runs: accuracies, and what was sent and computed until a target was reached.

    RUN is a run folder, or latest. Bytes are those of weights, both ways; GMAC·images are forward
    multiply-accumulates of one image times images trained on.
    """
    from report.canvas import LIGHT
    from report.comparison import as_json, write_plot
    from report.comparison import compare as compare_runs
    from server.run_folder import RunFolder

    given = [name.strip() for name in names.split(",")] if names else []
    comparison = compare_runs([RunFolder.open(run) for run in runs], given, rung, target)
    plot = None if out is None else write_plot(comparison, out, LIGHT)
    if json_:
        show(as_json(comparison) | {"plot": None if plot is None else str(plot)})
        return
    console = Console(highlight=False)
    console.print(_table(comparison))
    console.print(
        f"target {comparison.target:.2%}: {comparison.target_rule}", markup=False, soft_wrap=True
    )
    if plot is not None:
        console.print(f"plot: {plot}", markup=False, soft_wrap=True)


def _table(comparison: "Comparison") -> Table:
    from report.tables import NONE
    from server.progress import amount

    table = Table(
        title=f"validation accuracy of {comparison.rung}, and the cost up to the target",
        title_justify="left",
    )
    with_method = any(curve.method is not None for curve in comparison.curves)
    table.add_column("run", overflow="fold")
    if with_method:
        table.add_column("method", no_wrap=True)
    for heading in ("best", "last", "rounds", "bytes", "GMAC·images"):
        table.add_column(heading, justify="right", no_wrap=True)
    for curve in comparison.curves:
        reached = curve.reach(comparison.target)
        cost = (
            [NONE] * 3
            if reached is None
            else [str(reached.rounds), amount(reached.bytes), f"{reached.gmac_images:,.1f}"]
        )
        method = [Text(curve.method or NONE)] if with_method else []
        table.add_row(Text(curve.name), *method, f"{curve.best:.2%}", f"{curve.last:.2%}", *cost)
    return table
