"""Verbs about search spaces: spaces, cost."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.common import (
    Arch,
    ImageSize,
    InChannels,
    Json,
    Norm,
    NumClasses,
    SpaceName,
    app,
    show,
)

_WIDTH = 100


@app.command()
def spaces(
    check: Annotated[
        str, typer.Option(metavar="MODULE:CLASS", help="Check a space of your own, or a name.")
    ] = "",
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    json_: Json = False,
) -> None:
    """List the search spaces, or check that one keeps the contract."""
    from supernet import SPACES
    from supernet.check import check_space
    from supernet.wire import SpaceOptions

    shape = norm, num_classes, in_channels, image_size
    if check:
        results = check_space(SpaceOptions(check, *shape).load())
        broken = [result for result in results if result.problem]
        if json_:
            show([dataclasses.asdict(result) for result in results])
        else:
            for result in results:
                print(f"{'FAILS' if result.problem else 'holds'}  {result.promise}")
                if result.problem:
                    print(f"       {result.problem}")
        raise typer.Exit(1 if broken else 0)
    table = Table("space", "subnets", "MMACs", "parameters")
    for column in table.columns:
        column.no_wrap = True
    rows = []
    for name in sorted(SPACES):
        space = SpaceOptions(name, *shape).load()
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
        console = Console(highlight=False)
        console.width = max(console.width, _WIDTH)  # cut off, the numbers would say nothing
        console.print(table)


@app.command()
def cost(
    space: SpaceName,
    arch: Arch,
    norm: Norm = "group",
    num_classes: NumClasses = 10,
    in_channels: InChannels = 3,
    image_size: ImageSize = 32,
    json_: Json = False,
) -> None:
    """Count MACs (of one image) and parameters of an architecture, with no module built."""
    from supernet.wire import SpaceOptions

    loaded = SpaceOptions(space, norm, num_classes, in_channels, image_size).load()
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
        print(f"{macs:,} MACs, {params:,} parameters\n{architecture.to_json()}")
