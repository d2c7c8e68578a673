"""What Flower loads: this app's ServerApp and ClientApp, from this app's own folder.

``client``, ``server`` and ``data`` are common names. In a simulation the folder from which the
local SuperLink was started comes before the app's own on the path of Ray's actors, so another app's
packages of these names would be taken. And while the ServerApp's thread imports the rooms, Flower's
main thread checks the ClientApp's name, for which it adds this folder to the path and then takes it
away. This module has a name of its own; it finds the rooms beside itself whatever the path says,
drops packages that were picked up from elsewhere, and says so.

Flower starts a process for every message to a node, so loading this module is cheap: the rooms,
and with them torch, are imported by the first call. Under ``superfednas node`` that call is a
worker's, and this process imports none of them.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOMS = ("supernet", "data", "nas", "client", "server", "report")


class OwnRooms(MetaPathFinder):
    """Finds the rooms in one folder.

    Parameters
    ----------
    root
        The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a room; its modules are then found in it."""
        if fullname not in ROOMS:
            return None
        return PathFinder.find_spec(fullname, [str(self.root)], target)


def take_own_rooms() -> list[str]:
    """Make the rooms beside this file the ones that are imported.

    Returns
    -------
    list of str
        Folders from which a package of a room's name had been imported before.
    """
    root = Path(__file__).resolve().parent
    sys.meta_path[:] = [found for found in sys.meta_path if not isinstance(found, OwnRooms)]
    sys.meta_path.insert(0, OwnRooms(root))
    sys.path.insert(0, str(root))  # for a user's own modules; Flower may take its own entry away
    strangers = []
    for room in ROOMS:
        origin = getattr(sys.modules.get(room), "__file__", None)
        if origin is not None and Path(origin).resolve().parent != root / room:
            strangers.append(str(Path(origin).resolve().parent))
            for name in [n for n in sys.modules if n == room or n.startswith(room + ".")]:
                del sys.modules[name]
    return strangers


for _folder in take_own_rooms():
    print(
        f"superfednas: another app's package was picked up and is not used: {_folder}", flush=True
    )

from flwr.app import Context, Message  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from client.handover import FOLDER_VARIABLE, hand_over  # noqa: E402

# Ray sends a ClientApp to its actors by the module names of its handlers, so these must be defined
# in this module: unpickling them imports it, and with it the lines above, before any room.
client_app = ClientApp()
server_app = ServerApp()


@server_app.main()  # type: ignore[untyped-decorator, unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Run as ``flwr run`` asks."""
    from server.app import main as run

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
    """Score subnets of the one that came with the message."""
    return _serve(message, context)


def _serve(message: Message, context: Context) -> Message:
    """Hand a message to the node's worker where there is one, else do its work here."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return hand_over(message, context, Path(folder))
    from client.app import app

    return app(message, context)


__all__ = ["client_app", "server_app", "take_own_rooms"]
