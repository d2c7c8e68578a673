"""The verb that times a device: latency."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from superfednas.cli.common import (
    LATEST,
    Display,
    ImageSize,
    InChannels,
    Json,
    Norm,
    NumClasses,
    OpeningCommand,
    RunDir,
    app,
    show,
)
from superfednas.common.terminal import Terminal

if TYPE_CHECKING:
    from superfednas.nas.cost.latency import LatencyTable

_BUSY = 0.1


@app.command(cls=OpeningCommand)
def latency(
    run: RunDir = LATEST,
    space: Annotated[
        str, typer.Option(help="A space by name, instead of a run's.", rich_help_panel="Space")
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    batches: Annotated[str, typer.Option(help="Images per batch, comma-separated.")] = "1,16",
    threads: Annotated[int, typer.Option(min=1, help="Threads per operation.")] = 1,
    networks: Annotated[int, typer.Option(min=3, help="Whole subnets to fit to.")] = 12,
    holdout: Annotated[int, typer.Option(min=1, help="Further subnets to test on.")] = 10,
    seconds: Annotated[float, typer.Option(help="Approximate seconds to measure.")] = 60.0,
    device: Annotated[str, typer.Option(help="The device's torch name: cpu, cuda, mps.")] = "cpu",
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: processor time of one thread, for a busy machine.")
    ] = "wall",
    name: Annotated[str, typer.Option(help="The device's name in the table.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the choice of subnets.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The table; by default where `superfednas search` looks for this device."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table.")] = False,
    json_: Json = False,
) -> None:
    """Time this device block by block, so that any subnet's latency can be predicted.

    The error of predictions is measured on subnets outside the fit. The table is a JSON file that
    `superfednas search --latency-table FILE` takes on another machine.
    """
    from superfednas.nas.cost.latency import LatencyError
    from superfednas.nas.cost.profiling import measure
    from superfednas.nas.this_device import table_file
    from superfednas.records.trained import Trained
    from superfednas.wire.order import SpaceOptions

    options = SpaceOptions(space, norm, num_classes, in_channels, image_size)
    loaded = options.load() if space else Trained.open(run).space
    sizes = batches.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"batches = {batches!r}: must be whole numbers, as in 1,16")
    path = out or table_file(loaded, threads=threads, device=device)
    if path.exists() and not overwrite:
        raise LatencyError(f"{str(path)!r} exists already: name another (--out), or --overwrite")
    console = Terminal(stderr=json_)
    with Display(console) as display:
        table = measure(
            loaded,
            batches=[int(size) for size in sizes],
            threads=threads,
            networks=networks,
            holdout=holdout,
            seconds=seconds,
            seed=seed,
            device=device,
            clock=clock,
            name=name,
            progress=lambda done, todo: display.measuring(done, todo, "blocks and networks timed"),
        )
    table.save(path, overwrite=overwrite)
    if json_:
        show(
            {
                "table": str(path),
                "seconds": table.seconds,
                "error": {
                    size: {
                        "median": part.errors.median,
                        "p90": part.errors.p90,
                        "max": part.errors.max,
                    }
                    for size, part in table.batches.items()
                },
            }
        )
        return
    console.print(_errors(table))
    console.print("unseen: absolute error of the prediction on networks outside the fit")
    if any(part.errors.median > _BUSY for part in table.batches.values()):
        console.print("the machine was busy: measure again when it is idle, or with --clock cpu")
    console.say(f"table: {path}")


def _errors(table: "LatencyTable") -> Table:
    """Return what was measured, and the errors of predictions."""
    device = table.device
    shown = Table(
        title=f"{device['processor']} ({device['device']}), threads: {table.threads}, torch "
        f"{device['torch']}, {table.seconds:.0f} s",
        title_justify="left",
    )
    for heading in (
        "batch",
        "blocks",
        "ms",
        "spread",
        "unseen: median",
        "90%",
        "most",
    ):
        shown.add_column(heading, justify="right")
    for size, part in table.batches.items():
        every = [network.timing for network in (*part.fitted, *part.held_out)]
        spread = statistics.median(timing.spread_ms / timing.median_ms for timing in every)
        times = [timing.fastest_ms for timing in every]
        error = part.errors
        shown.add_row(
            str(size),
            str(len(part.blocks)),
            f"{min(times):.3g} to {max(times):.3g}",
            f"{spread:.1%}",
            f"{error.median:.1%}",
            f"{error.p90:.1%}",
            f"{error.max:.1%}",
        )
    return shown
