"""The local SuperLink that ``flwr run .`` starts in the background and never stops."""

import os
import time
from collections.abc import Iterable

import psutil

_PORT_VARIABLE, _PORT = "FLWR_LOCAL_CONTROL_API_PORT", "39093"
_PATIENCE = 15.0
_ENDING = 5.0  # seconds
_RUN_PROCESSES = ("flwr-simulation", "flwr-serverapp")


class RunInProgressError(RuntimeError):
    """The local SuperLink is still working on a run."""


def port() -> int:
    """Return the port of the local SuperLink's Control API.

    Raises
    ------
    ValueError
        If the environment's value is not a number.
    """
    text = os.environ.get(_PORT_VARIABLE, _PORT)
    if not text.isdecimal():
        raise ValueError(f"{_PORT_VARIABLE} = {text!r}: must be a port number")
    return int(text)


def find() -> list[psutil.Process]:
    """Return this user's local SuperLinks that listen where ``flwr run`` looks for one."""
    address = f"127.0.0.1:{port()}"
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        command = process.info["cmdline"] or []
        ours = process.info["uids"] is None or process.info["uids"].real == os.getuid()
        is_superlink = any(os.path.basename(part) == "flower-superlink" for part in command[:3])
        if ours and is_superlink and "--simulation" in command and address in command:
            found.append(process)
    return found


def stop(*, force: bool = False) -> list[int]:
    """Stop the local SuperLink and everything it has started.

    Parameters
    ----------
    force
        Stop it even while a run is in progress.

    Returns
    -------
    list of int
        Process ids of the SuperLinks that were stopped.

    Raises
    ------
    RunInProgressError
        If a run is in progress and ``force`` is not given.
    """
    ended = []
    for superlink in find():
        # When a run prints its last line, its processes are still shutting down.
        deadline = time.monotonic() + _ENDING
        while (busy := _busy(superlink)) and not force and time.monotonic() < deadline:
            time.sleep(0.2)
        family = [superlink, *superlink.children(recursive=True)]
        if busy and not force:
            raise RunInProgressError(
                f"the local SuperLink (process {superlink.pid}) is working on a run: wait for it, "
                "end it by `flwr stop`, or use --force"
            )
        _signal([superlink])
        _, alive = psutil.wait_procs(family, timeout=_PATIENCE)
        _signal(alive)
        _, alive = psutil.wait_procs(alive, timeout=_PATIENCE)
        for process in alive:
            process.kill()
        ended.append(superlink.pid)
    return ended


def _busy(superlink: psutil.Process) -> bool:
    """Return whether processes of a run exist."""
    return any(_name(process) in _RUN_PROCESSES for process in superlink.children(recursive=True))


def _name(process: psutil.Process) -> str:
    try:
        return next(
            (os.path.basename(part) for part in process.cmdline()[:3] if "flwr-" in part), ""
        )
    except psutil.Error:
        return ""


def _signal(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
