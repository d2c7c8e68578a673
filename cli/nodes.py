"""The verb that a device runs to take part: node."""

import os
from collections.abc import Mapping
from typing import Annotated

import typer

from superfednas.cli.common import app
from superfednas.client.allow import PINS
from superfednas.client.node_config import KEYS

_HELP = """Take part in training on this machine (a SuperNode without fixed pauses).

With TLS and a key (superfednas keys makes it, register makes it known):

\bsuperfednas node --superlink lab.example:9092 \\
    --root-certificates node-kitchen/ca.crt \\
    --auth-supernode-private-key node-kitchen/node.key \\
    --node-config 'name="kitchen" data-path="/data/kitchen.npz"'

In plain text, on one machine or in a trusted network:

\bsuperfednas node --insecure --superlink 127.0.0.1:9092 \\
    --node-config 'partition-id=0 num-partitions=2'

Keys of --node-config; strings in double quotes, the whole in single ones:

\b{keys}

Pins of allow, as in allow="errands=train local-epochs<=5"; a message that
asks for more is refused, by name:

\b{pins}

A second node on a machine needs its own --clientappio-api-address; the
first has 127.0.0.1:9094. Every other option of flower-supernode works too
(flower-supernode --help). With --trusted-entities trusted.yaml (superfednas
keys --operator) the node runs only signed apps.

Exit status: 0 stopped by a signal, or revoked while at work; 1 refused by
the SuperLink, or a file or port cannot be used; 2 wrong options or node
config. While the SuperLink cannot be reached, the node keeps trying.
"""


def _table(rows: Mapping[str, str]) -> str:
    width = 1 + max(map(len, rows))
    return "\n".join(f"{key:{width}} {text}" for key, text in rows.items())


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help=_HELP.format(keys=_table(KEYS), pins=_table(PINS)),
)
def node(
    context: typer.Context,
    poll: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Longest pause between two polls of the SuperLink, in seconds; it is reached "
            "only after ten times as long without a message.",
        ),
    ] = 0.5,
) -> None:
    """Replace this process by a node."""
    from superfednas.deploy.fleet.node import command

    # A separate process: this one has imported torch, for the settings of `train`.
    line, environment = command("superfednas.deploy.fleet.node", str(poll), *context.args)
    os.execve(line[0], line, environment)
