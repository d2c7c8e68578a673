"""``superfednas node``: a SuperNode whose rounds do not wait.

The SuperNode is Flower's, with pauses that adapt. Its SuperExec forks a ClientApp for every message
from a process that has imported Flower. The ClientApp hands the message to a worker that holds
torch and the data (:mod:`client.worker`). Where this Flower is not the one that
:mod:`deploy.flower_internals` knows, Flower's own SuperNode runs, with Flower's own processes, and
only the worker stays.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from client.handover import FOLDER_VARIABLE, NODE_LOCK
from deploy import flower_internals
from deploy.flower_internals import RefusedError
from deploy.joining import Entrance, check_config_of
from server.retries import retry_pulls_soon

_ROOT = Path(__file__).resolve().parent.parent
_LONGEST_FOLDER = 70
_INSTALLING = "--allow-runtime-dependency-installation"


def command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment that run a module of this installation.

    Whatever lies in the current folder, its packages are not taken for this app's.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return [sys.executable, "-P", "-m", module, *arguments], environment


def run(options: Sequence[str], longest_poll: float) -> None:
    """Run a node until it is stopped.

    Parameters
    ----------
    options
        Options of ``flower-supernode``.
    longest_poll
        Longest pause in seconds between two questions to the SuperLink.

    Raises
    ------
    RefusedError
        Where the node cannot start, or is not let in.
    """
    check_config_of(options)
    if platform.system() != "Linux":
        _run_plain(options, f"{platform.system()} is not Linux")
    if _INSTALLING in options:
        _run_plain(options, f"{_INSTALLING} makes another environment for every message")
    # For this user alone. A socket's path has at most 107 bytes on Linux.
    short = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOLDER
    folder = Path(tempfile.mkdtemp(prefix="superfednas-", dir=None if short else "/tmp"))
    lock = (folder / NODE_LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ[FOLDER_VARIABLE] = str(folder)
    if problem := flower_internals.difference() or retry_pulls_soon():
        os.set_inheritable(lock.fileno(), True)
        _run_plain(options, problem)
    started: list[subprocess.Popen[bytes]] = []

    def start(superexec_options: Sequence[str]) -> None:
        line, environment = command("deploy.superexec", *superexec_options)
        passed = [int(superexec_options[0])]
        started.append(subprocess.Popen(line, env=environment, pass_fds=passed))

    try:
        flower_internals.run_supernode(options, longest_poll, start, Entrance.of(options))
    except RefusedError:
        for superexec in started:  # it would look for this node for half a minute
            superexec.terminate()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_plain(options: Sequence[str], problem: str) -> NoReturn:
    """Become Flower's own SuperNode."""
    print(
        f"superfednas node: {problem}, so Flower's own flower-supernode runs, with its own pauses",
        file=sys.stderr,
        flush=True,
    )
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    environment = os.environ | {"PATH": os.pathsep.join(paths)}
    os.execvpe("flower-supernode", ["flower-supernode", *options], environment)


def main() -> None:
    """Run a node: the longest pause, then options of ``flower-supernode``."""
    try:
        run(sys.argv[2:], float(sys.argv[1]))
    except RefusedError as refusal:
        print(f"superfednas node: {refusal.text}", file=sys.stderr, flush=True)
        # Not by sys.exit: threads of gRPC sometimes keep an interpreter from its end.
        os._exit(int(refusal.code or 1))


if __name__ == "__main__":
    main()
