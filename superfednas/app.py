"""The entry points that Flower loads: ``server_app`` and ``client_app``.

Flower starts a process for every message to a node, so loading this module is cheap: the rooms,
and with them torch, are imported by the first call. Under ``superfednas node`` that call is a
worker's, and this process imports none of them.
"""

import os
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from superfednas import ROOT
from superfednas.client.worker.handover import FOLDER_VARIABLE, hand_over

# For a user's own modules beside the app (``module:Name``): while one thread imports them, Flower's
# main thread may take its own entry off the path.
sys.path.append(str(ROOT))
if Path(sys.argv[0]).name == "default_worker.py":
    # Ray puts the folder in which it was started first on its workers' path: a file there would
    # take the place of any library that is imported from here on.
    sys.path.sort(key=os.getcwd().__eq__)

# Ray sends a ClientApp to its actors by the module names of its handlers.
client_app = ClientApp()
server_app = ServerApp()


@server_app.main()  # type: ignore[untyped-decorator, unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Run as ``flwr run`` asks."""
    from superfednas.server.app import main as run

    run(grid, context)


@client_app.query()  # type: ignore[untyped-decorator, unused-ignore]
def query(message: Message, context: Context) -> Message:
    """Answer who this node is."""
    return _serve(message, context)


@client_app.train()  # type: ignore[untyped-decorator, unused-ignore]
def train(message: Message, context: Context) -> Message:
    """Train the subnet that came with the message."""
    return _serve(message, context)


@client_app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
def evaluate(message: Message, context: Context) -> Message:
    """Score subnets inside the one that came with the message."""
    return _serve(message, context)


def _serve(message: Message, context: Context) -> Message:
    """Hand a message to the node's worker where there is one, else do its work here."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return hand_over(message, context, Path(folder))
    from superfednas.client.app import app

    return app(message, context)


__all__ = ["client_app", "server_app"]
