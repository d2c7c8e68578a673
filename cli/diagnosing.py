"""Verbs that look at a machine: doctor, probe."""

import dataclasses
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
    say,
    show,
)
from superfednas.common.terminal import Terminal

if TYPE_CHECKING:
    from superfednas.deploy.fleet.budget import Probed


@app.command()
def doctor(
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Check a superlink as nodes see it.")
    ] = "",
    control: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Check a superlink as flwr sees it.")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(help="The CA's certificate; without it there is no TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="A node's private key.")] = None,
    log: Annotated[
        list[Path] | None, typer.Option(help="A log of a superlink, a node or a run; repeatable.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A run folder, as given by --run-dir; repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Check this machine, a superlink or a run, and name the remedy for each fault.

    With --superlink, --control, --log or --run, only these are checked. Nothing is changed. The
    exit status is 1 if there is a fault. If superfednas itself does not start: python -P -m
    superfednas.deploy.doctor.main.
    """
    from superfednas.deploy.doctor import main as deployed

    checks = deployed.superlink_checks(superlink, control, root_certificates, key)
    if not checks and (root_certificates or key):
        raise ValueError("--root-certificates and --key need --superlink or --control HOST:PORT")
    checks |= deployed.log_checks(log or []) | deployed.run_checks(run or [])
    found = deployed.examine(checks or deployed.machine_checks())
    if json_:
        show([dataclasses.asdict(finding) for finding in found])
    else:
        print(deployed.describe(found))
    raise typer.Exit(deployed.status(found))


@app.command(cls=OpeningCommand)
def probe(
    run: RunDir = LATEST,
    space: Annotated[
        str, typer.Option(help="A space by name, instead of a run's.", rich_help_panel="Space")
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    steps: Annotated[int, typer.Option(help="Training steps in a round.")] = 100,
    seconds: Annotated[float, typer.Option(help="Seconds that they may take.")] = 60.0,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Images per step; 0: the run's (with --space: 16).")
    ] = 0,
    threads: Annotated[int, typer.Option(min=1, help="As the run's torch-threads.")] = 1,
    device: Annotated[str, typer.Option(help="The device's torch name: cpu, cuda, mps.")] = "cpu",
    memory: Annotated[
        int | None, typer.Option(help="Bytes that the node may use; by default all free ones.")
    ] = None,
    ladder: Annotated[int, typer.Option(min=2, help="Subnets to time.")] = 5,
    measuring: Annotated[float, typer.Option(help="Approximate seconds to measure.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    json_: Json = False,
) -> None:
    """Measure what this device can train in time, as a budget for its node config.

    A server never assigns a subnet above a node's max-macs and max-params. The last line printed is
    the value for --node-config.
    """
    from superfednas.deploy.fleet.budget import probe as measure
    from superfednas.records.folder import RunFolder
    from superfednas.records.trained import trusted_settings
    from superfednas.server.settings import check_settings
    from superfednas.wire.order import LocalTraining, SpaceOptions

    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"{str(out)!r} exists already: name another (--out), or --overwrite")
    local = LocalTraining()
    if space:
        loaded = SpaceOptions(space, norm, num_classes, in_channels, image_size).load()
    else:
        settings = check_settings(trusted_settings(RunFolder.open(run)))
        loaded, local = settings.space.load(), settings.local
    console = Terminal(stderr=json_)
    with Display(console) as display:
        found = measure(
            loaded,
            steps=steps,
            seconds=seconds,
            local=dataclasses.replace(local, batch_size=batch_size or local.batch_size),
            rungs=ladder,
            threads=threads,
            device=device,
            memory=memory,
            measuring=measuring,
            progress=lambda done, todo: display.measuring(done, todo, "training steps timed"),
        )
    if out is not None:
        found.write(out, overwrite=overwrite)
    if json_:
        show({"node-config": found.node_config, **dataclasses.asdict(found)})
        return
    _explain(found, console)
    say(found.node_config)


def _explain(found: "Probed", console: Terminal) -> None:
    """Print the measurements, and the reason for the budget."""
    limits = found.limits
    table = Table(
        title=f"{limits['steps']:g} steps of {limits['batch-size']:g} images within "
        f"{limits['seconds']:g} s and {limits['share']:.0%} of {found.memory / 2**30:.1f} GiB",
        title_justify="left",
    )
    for heading in ("subnet", "MMACs", "parameters", "ms a step", "s a round", "MiB, about", ""):
        table.add_column(heading, justify="left" if heading in ("subnet", "") else "right")
    for rung in found.rungs:
        table.add_row(
            rung.name,
            f"{rung.macs / 1e6:.3g}",
            f"{rung.params:,}",
            f"{rung.step_ms:.3g}",
            f"{rung.seconds:.3g}",
            f"{rung.bytes / 2**20:.3g}",
            "fits" if rung.macs <= found.max_macs else "too slow",
        )
    console.print(table)
