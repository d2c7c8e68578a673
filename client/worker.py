"""A node's long-lived worker: it holds torch, the data and their caches between messages.

``superfednas node`` lets :mod:`client.handover` start it. It answers one message after the other,
ends with its node, and also when nothing has come for ten minutes, so that the code and the data of
a run that is over do not stay in memory; the next message starts another.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import socketserver
import sys
import threading
import traceback
from pathlib import Path

from flwr.app import RecordDict

from client.app import app
from client.handover import NODE_LOCK, message_of, read, write

IDLE_SECONDS = 600.0


class _Handler(socketserver.StreamRequestHandler):
    """One connection, one message."""

    wbufsize = -1

    def handle(self) -> None:
        """Answer a message; what the ClientApp raises is told in Flower's own words."""
        self.wfile.write(b"\n")
        self.wfile.flush()
        request, content = read(self.rfile)
        try:
            reply = app(*message_of(request, content))
        except Exception as error:  # noqa: BLE001 (a client may raise anything)
            traceback.print_exc()
            write(self.wfile, {"error": f"{type(error)}:<'{error}'>"}, RecordDict())
        else:
            write(self.wfile, {}, reply.content)


class Worker(socketserver.UnixStreamServer):
    """Serves the ClientApp on a socket that listens already.

    Parameters
    ----------
    listener
        File descriptor of the socket.
    path
        Where the socket lies.
    idle
        Seconds without a message after which :meth:`serve` returns.
    """

    def __init__(self, listener: int, path: Path, idle: float) -> None:
        super().__init__(str(path), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=listener)
        self.timeout = idle
        self._path = path
        self._idle = False

    def serve(self) -> None:
        """Answer messages until none has come for a while."""
        while not self._idle:
            self.handle_request()
        self._path.unlink(missing_ok=True)
        self.server_close()

    def handle_timeout(self) -> None:
        """Note that nothing has come."""
        self._idle = True


def end_with_node(folder: Path) -> None:
    """End this process as soon as the node's lock is free, and take its folder away.

    The system frees the lock however the node ends.
    """
    with contextlib.suppress(FileNotFoundError), (folder / NODE_LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Serve on the socket that the arguments name."""
    listener, path = int(sys.argv[1]), Path(sys.argv[2])
    threading.Thread(target=end_with_node, args=[path.parent], daemon=True).start()
    Worker(listener, path, IDLE_SECONDS).serve()


if __name__ == "__main__":
    main()
