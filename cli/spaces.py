"""Verbs about search spaces: spaces, cost."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table

from superfednas.cli.common import (
    Arch,
    ImageSize,
    InChannels,
    Json,
    Norm,
    NumClasses,
    SpaceName,
    TaskData,
    app,
    say,
    show,
    space_options,
)
from superfednas.common.terminal import Terminal

_WIDTH = 100


@app.command()
def spaces(
    check: Annotated[
        str, typer.Option(metavar="MODULE:CLASS", help="Check your own space, or a named one.")
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    dataset: TaskData = "",
    json_: Json = False,
) -> None:
    """List the search spaces, or check that one keeps the contract."""
    from superfednas.supernet import SPACES
    from superfednas.supernet.contract import check_space

    shape = num_classes, in_channels, image_size
    if check:
        results = check_space(space_options(check, norm, shape, dataset).load())
        broken = [result for result in results if result.problem]
        if json_:
            show([dataclasses.asdict(result) for result in results])
        else:
            for result in results:
                say(f"{'FAILS' if result.problem else 'holds'}  {result.promise}")
                if result.problem:
                    say(f"       {result.problem}")
            if broken and not dataset:
                say("This was tried with images; --dataset takes the task of another data set.")
        raise typer.Exit(1 if broken else 0)
    table = Table("space", "subnets", "MMACs", "parameters")
    for column in table.columns:
        column.no_wrap = True
    rows = []
    for name in sorted(SPACES):
        space = space_options(name, norm, shape, dataset).load()
        ends = (space.smallest, space.largest)
        macs, params = [space.macs(a) for a in ends], [space.params(a) for a in ends]
        rows.append({"name": name, "size": space.size, "macs": macs, "params": params})
        table.add_row(
            name,
            f"{space.size:,}",
            f"{macs[0] / 1e6:.2f} to {macs[1] / 1e6:.2f}",
            f"{params[0]:,} to {params[1]:,}",
        )
    if json_:
        show(rows)
    else:
        console = Terminal()
        console.width = max(console.width, _WIDTH)  # truncated, the numbers would be useless
        console.print(table)


@app.command()
def cost(
    space: SpaceName,
    arch: Arch,
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    dataset: TaskData = "",
    json_: Json = False,
) -> None:
    """Count MACs (of one example) and parameters of an architecture, without building a module."""
    shape = num_classes, in_channels, image_size
    loaded = space_options(space, norm, shape, dataset).load()
    architecture = loaded.parse(arch)
    macs, params = loaded.macs(architecture), loaded.params(architecture)
    if json_:
        show(
            {
                "macs": macs,
                "params": params,
                "architecture": json.loads(architecture.to_json()),
                "space": space,
                "norm": norm,
            }
        )
    else:
        say(f"{macs:,} MACs, {params:,} parameters", architecture.to_json())
