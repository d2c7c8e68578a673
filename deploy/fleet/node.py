"""``superfednas node``: a SuperNode without Flower's fixed pauses.

The SuperNode is Flower's, with adaptive pauses. Its SuperExec forks a ClientApp for every message
from a process that has imported Flower. The ClientApp hands the message to a worker that holds
torch and the data (:mod:`superfednas.client.worker.serve`). The SuperNode's ClientAppIo API listens
on this machine alone, unless an option says otherwise, and gives messages to that SuperExec alone.
If :mod:`superfednas.flower.programs` does not know the installed Flower, Flower's own SuperNode
runs, with Flower's own processes and our worker.
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

from superfednas import ROOT
from superfednas.client.worker.handover import FOLDER_VARIABLE, NODE_LOCK
from superfednas.deploy.fleet.admission import Entrance, check_config_of
from superfednas.flower import programs, supernode
from superfednas.flower.refusal import RefusedError, say
from superfednas.flower.retries import retry_pulls_soon

_LONGEST_FOLDER = 70
_INSTALLING = "--allow-runtime-dependency-installation"
# Flower's default is every network: whoever reached the port could take a message. Options that
# are given come later, and count.
_AT_HOME = "--clientappio-api-address=127.0.0.1:9094"


def command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment that run a module of this installation.

    Another checkout of this project in the current folder is not used instead.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return [sys.executable, "-P", "-m", module, *arguments], environment


def run(options: Sequence[str], longest_poll: float) -> None:
    """Run a node until it is stopped.

    Parameters
    ----------
    options
        Options of ``flower-supernode``.
    longest_poll
        Longest pause between two polls of the SuperLink, in seconds.

    Raises
    ------
    RefusedError
        If the node cannot start, or is not admitted.
    """
    check_config_of(options)
    options = [_AT_HOME, *options]
    if platform.system() != "Linux":
        _run_plain(options, f"{platform.system()} is not Linux")
    if _INSTALLING in options:
        _run_plain(options, f"{_INSTALLING} makes another environment for every message")
    # For this user only. A socket's path has at most 107 bytes on Linux.
    short = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOLDER
    folder = Path(tempfile.mkdtemp(prefix="superfednas-", dir=None if short else "/tmp"))
    lock = (folder / NODE_LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ[FOLDER_VARIABLE] = str(folder)
    if problem := programs.difference() or retry_pulls_soon():
        os.set_inheritable(lock.fileno(), True)
        _run_plain(options, problem)
    started: list[subprocess.Popen[bytes]] = []

    def start(superexec_options: Sequence[str]) -> None:
        line, environment = command("superfednas.flower.superexec", *superexec_options)
        passed = [int(superexec_options[0])]
        started.append(subprocess.Popen(line, env=environment, pass_fds=passed))

    secret = folder / "superexec.secret"
    try:
        supernode.run_supernode(options, longest_poll, start, Entrance.of(options), secret)
    except RefusedError:
        for superexec in started:  # it would keep looking for this node for half a minute
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
        say(refusal.text)
        # Not by sys.exit: gRPC's threads sometimes keep the interpreter from exiting.
        os._exit(int(refusal.code or 1))


if __name__ == "__main__":
    main()
