"""A node's long-lived worker: it holds torch, the data and their caches between messages.

Under ``superfednas node``, :mod:`superfednas.client.worker.handover` starts it. It answers one
message after another. It ends with its node, and after ten minutes without a message, so that code
and data of a finished run do not stay in memory; the next message starts another.
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

from superfednas.client.app import app
from superfednas.client.worker.handover import NODE_LOCK, message_of, read, state_of, write

IDLE_SECONDS = 600.0


class _Handler(socketserver.StreamRequestHandler):
    """One connection, one message."""

    wbufsize = -1

    def handle(self) -> None:
        """Answer a message; an exception in the ClientApp is reported in Flower's own words."""
        self.wfile.write(b"\n")
        self.wfile.flush()
        request, content = read(self.rfile)
        try:
            message, context = message_of(request, content)
            reply = app(message, context)
        except Exception as error:  # noqa: BLE001 (a client may raise anything)
            traceback.print_exc()
            write(self.wfile, {"error": f"{type(error)}:<'{error}'>"}, RecordDict())
        else:
            write(self.wfile, {"state": state_of(context.state)}, reply.content)


class Worker(socketserver.UnixStreamServer):
    """Serves the ClientApp on a socket that is already listening.

    Parameters
    ----------
    listener
        File descriptor of the socket.
    path
        The path of the socket.
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
        """Answer messages until none has arrived for a while."""
        while not self._idle:
            self.handle_request()
        self._path.unlink(missing_ok=True)
        self.server_close()

    def handle_timeout(self) -> None:
        """Record that nothing has arrived."""
        self._idle = True


def end_with_node(folder: Path) -> None:
    """End this process as soon as the node's lock is free, and remove its folder.

    The system frees the lock however the node ends.
    """
    with contextlib.suppress(FileNotFoundError), (folder / NODE_LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Serve on the socket named by the arguments."""
    listener, path = int(sys.argv[1]), Path(sys.argv[2])
    threading.Thread(target=end_with_node, args=[path.parent], daemon=True).start()
    Worker(listener, path, IDLE_SECONDS).serve()


if __name__ == "__main__":
    main()
