"""The verb that a device runs to take part: node."""

import os
from typing import Annotated

import typer

from cli.common import app


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def node(
    context: typer.Context,
    poll: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Longest pause in seconds between two questions to the SuperLink; it is reached "
            "only where nothing has come for ten times as long.",
        ),
    ] = 0.5,
) -> None:
    """Run a SuperNode whose rounds do not wait for Flower's fixed pauses.

    Takes every option of flower-supernode: --superlink, --insecure or --root-certificates,
    --auth-supernode-private-key, --node-config, --clientappio-api-address and so on.
    """
    from deploy.node import command

    # A process of its own: this one has imported torch, for the settings of `train`.
    line, environment = command("deploy.node", str(poll), *context.args)
    os.execve(line[0], line, environment)
