"""The SuperExec of ``superfednas node``: it wakes at once, and forks ClientApps.

What is replaced in Flower's: ``time`` in ``run_superexec``, ``subprocess`` in its executor.
"""

import importlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from superfednas.flower.fork_server import Nursery
from superfednas.flower.programs import EXECUTOR, SUPEREXEC, run
from superfednas.flower.refusal import say


class Bell:
    """A pipe with which one process wakes another from a sleep.

    Parameters
    ----------
    listening
        File descriptor of the end that :meth:`sleep` reads.
    """

    def __init__(self, listening: int) -> None:
        self.listening = listening

    def sleep(self, seconds: float) -> None:
        """Sleep until it rings, at most."""
        rung, _, _ = select.select([self.listening], [], [], seconds)
        if rung and not os.read(self.listening, 4096):
            time.sleep(seconds)  # nobody is left to ring


def run_superexec(options: Sequence[str], launch: Callable[[Sequence[str]], object]) -> None:
    """Run ``flower-superexec`` so that it wakes at once.

    Parameters
    ----------
    options
        As ``start_superexec`` of ``run_supernode`` gets them.
    launch
        Called with the options of ``flwr-clientapp`` for every message. If it fails with an
        OSError, Flower's own way is used.
    """

    def start(command: Sequence[str]) -> object:
        try:
            return launch(command[1:])
        except OSError as error:
            say(f"{error}, so {command[0]} is started anew")
            return subprocess.Popen(command)

    superexec: Any = importlib.import_module(SUPEREXEC)
    executor: Any = importlib.import_module(EXECUTOR)
    superexec.time = SimpleNamespace(sleep=Bell(int(options[0])).sleep)
    executor.subprocess = SimpleNamespace(Popen=start)
    run("flower-superexec", options[1:])


def _serve(options: Sequence[str]) -> None:
    """Run a ClientApp, whose own ``superfednas`` came with the run and is not this one."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "superfednas"]:
        del sys.modules[name]
    run("flwr-clientapp", options)


def main() -> None:
    """Run ``flower-superexec`` beside a process that forks ClientApps."""
    import flwr.supernode.cli.flwr_clientapp  # noqa: F401 (what every child needs)

    nursery = Nursery(_serve)  # before anything else: the SuperExec has gRPC's threads
    run_superexec(sys.argv[1:], nursery.launch)


if __name__ == "__main__":
    main()
