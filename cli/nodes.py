"""The verb that a device runs to take part: node."""

import os
from typing import Annotated

import typer

from cli.common import app
from client.node_config import KEYS

_HELP = """Take part in training on this machine (a SuperNode whose rounds do not wait).

With TLS and a key (superfednas keys makes it, register makes it known):

\bsuperfednas node --superlink lab.example:9092 \\
    --root-certificates node-kitchen/ca.crt \\
    --auth-supernode-private-key node-kitchen/node.key \\
    --clientappio-api-address 127.0.0.1:9094 \\
    --node-config 'name="kitchen" data-path="/data/kitchen.npz"'

In plain text, on one machine or in a trusted network:

\bsuperfednas node --insecure --superlink 127.0.0.1:9092 \\
    --clientappio-api-address 127.0.0.1:9094 \\
    --node-config 'partition-id=0 num-partitions=2'

Keys of --node-config; texts in double quotes, the whole in single ones:

\b{keys}

Each node of a machine needs a --clientappio-api-address of its own. Every
other option of flower-supernode is taken too (flower-supernode --help).

Exit status: 0 stopped by a signal, or revoked while at work; 1 refused by
the SuperLink, or a file or port cannot be used; 2 wrong options or node
config. While the SuperLink cannot be reached, the node goes on trying.
"""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help=_HELP.format(keys="\n".join(f"{key:15} {text}" for key, text in KEYS.items())),
)
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
    """Run a node in this process's place."""
    from deploy.node import command

    # A process of its own: this one has imported torch, for the settings of `train`.
    line, environment = command("deploy.node", str(poll), *context.args)
    os.execve(line[0], line, environment)
