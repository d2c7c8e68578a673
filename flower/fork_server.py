"""A process that has imported what its children need, and forks a child for every order."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO

Serve = Callable[[Sequence[str]], None]


class Nursery:
    """A process that forks children, each of which serves one list of arguments.

    It ends with the process that started it. Start it before that process has threads, because a
    fork copies only the calling thread.

    Parameters
    ----------
    serve
        What a child does with its arguments; it ends by returning or by ``sys.exit``.
    """

    def __init__(self, serve: Serve) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(writing)
            with os.fdopen(reading, "rb") as orders:
                _fork_for_each(orders, serve)
            os._exit(0)
        os.close(reading)
        self._orders: BinaryIO = os.fdopen(writing, "wb", buffering=0)

    def launch(self, arguments: Sequence[str]) -> None:
        """Fork a child to serve these arguments, and return at once.

        Raises
        ------
        BrokenPipeError
            If the forking process has ended.
        """
        self._orders.write(json.dumps(list(arguments)).encode() + b"\n")


def _fork_for_each(orders: Iterable[bytes], serve: Serve) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system then reaps the children
    for order in orders:
        if not os.fork():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if "numpy.random" in sys.modules:  # otherwise every child would draw the same noise
                sys.modules["numpy.random"].seed()
            os._exit(_status(serve, json.loads(order)))


def _status(serve: Serve, arguments: Sequence[str]) -> int:
    """Serve, and return the exit status."""
    try:
        serve(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 (nothing may return into the nursery's loop)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
