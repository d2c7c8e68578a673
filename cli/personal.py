"""Verbs about methods and personalisation: methods, personalise."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from superfednas.cli.common import LATEST, Json, OpeningCommand, RunDir, app, show
from superfednas.common.terminal import Terminal


@app.command()
def methods(json_: Json = False) -> None:
    """List the methods: what each sends, trains and averages, and which settings it stands for."""
    from superfednas.server.methods import METHODS
    from superfednas.server.methods.base import about

    if json_:
        show([about(method) for method in METHODS.values()])
        return
    table = Table("method", "from", "a client gets", "it trains", "the server averages")
    for method in METHODS.values():
        table.add_row(method.name, method.source, method.sends, method.trains, method.averages)
    Terminal().print(table)


@app.command(cls=OpeningCommand)
def personalise(
    run: RunDir = LATEST,
    subnets: Annotated[
        str,
        typer.Option(
            help="ladder, widths (the width levels), a number of random ones beside the largest "
            "and the smallest (clients then only report), or one architecture."
        ),
    ] = "ladder",
    part: Annotated[
        str, typer.Option(help="What is fine-tuned: head (the classifier), body, all.")
    ] = "head",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs on a client's own images.")] = 5,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate; 0 is the run's.")] = 0.0,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where clients keep their subnets, a folder each; else none is kept."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 1,
    json_: Json = False,
) -> None:
    """Let clients fine-tune subnets on their own images, in this process, and report the gain.

    Values are those on each client's own test examples, before and after: mean ± s.d. over
    clients. On real nodes or under Ray: `flwr run . --run-config "personalise-run='DIR'"`, and a
    node keeps its subnets in the state-dir of its node config. No weights and no image leave it.
    `superfednas export --state-dir DIR` makes a file of one.
    """
    if state_dir is not None and subnets.isdecimal():
        raise ValueError(
            f"--state-dir: with --subnets {subnets} clients only report, and keep none; name "
            "ladder, widths or one architecture"
        )
    import superfednas
    from superfednas.common.files import write_whole
    from superfednas.report.canvas import LIGHT
    from superfednas.report.personal_plot import personal_plot
    from superfednas.server.journal.progress import Progress

    console = Terminal(stderr=json_)
    path = superfednas.personalise(
        run,
        progress=Progress(console),
        workers=workers,
        state_dir=state_dir or "",
        personal_subnets=subnets,
        fine_tune=part,
        fine_tune_epochs=epochs,
        fine_tune_lr=lr,
    )
    found = json.loads(path.read_text())
    plot = path.with_suffix(".png")
    write_whole(plot, personal_plot(found, LIGHT))
    if json_:
        show({"file": str(path), "plot": str(plot), **found})
    else:
        console.say(f"plot: {plot}")
