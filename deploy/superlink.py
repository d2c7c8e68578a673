"""A SuperLink elsewhere, through the ``flwr`` command: its nodes, and a run on it.

``flwr`` looks for addresses in a file of the user's; here it gets a folder of its own for the time
of a ``with`` block, so that an address is enough and the user's file stays as it is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.asking import CONTROL, Address
from deploy.finding import FAULT, Finding
from deploy.superlink_checks import superlink as look_at
from supernet.config import Scalar

_NAME = "superfednas"
_IN_USE = "already in use"
_FINISHED = "finished:"
_ASKING, _SUBMITTING = 30.0, 300.0  # seconds for an answer; a submission carries the app
_LOOKING = 60.0  # seconds between two looks whether a run that is followed has ended
_LAST_LINES = 5.0
COMPLETED = "finished:completed"
# What the app says of itself, a line each (server/app.py, server/progress.py)
_ERROR = re.compile(r"error: (.+)")
_ROUND = re.compile(r"round +(\d+)/\d+ ·")
_RESUMED = re.compile(r"resuming .* after round (\d+),")


class SuperLinkError(RuntimeError):
    """A SuperLink that cannot be reached or says no; the message says why."""


@dataclass(frozen=True)
class Ending:
    """How a run has ended.

    Parameters
    ----------
    status
        ``finished:completed``, ``finished:failed`` or ``finished:stopped``.
    error
        What the app itself has said is wrong; empty where it was killed, or nothing is.
    first, last
        The last finished round when it began, and when it ended; 0 before the first.
    """

    status: str
    error: str = ""
    first: int = 0
    last: int = 0

    @classmethod
    def read(cls, lines: Iterable[str]) -> "Ending":
        """Read what a run's log says, but for the status."""
        error, first, last = "", 0, 0
        for line in lines:
            if found := _RESUMED.match(line):
                first = last = int(found[1])
            elif found := _ROUND.match(line):
                last = int(found[1])
            elif found := _ERROR.match(line):
                error = found[1]
        return cls("", error, first, last)


class SuperLink:
    """A SuperLink's Control API; a context manager.

    Parameters
    ----------
    address
        ``HOST:PORT`` of the Control API (port 9093 by default).
    root_certificates
        The authority's certificate; without it the connection is in plain text.
    """

    def __init__(self, address: str, root_certificates: Path | None = None) -> None:
        self.address = address
        self.root_certificates = root_certificates
        self._home = tempfile.TemporaryDirectory(prefix="superfednas-")

    def __enter__(self) -> "SuperLink":
        """Write down where the SuperLink is."""
        trust = (
            f"root-certificates = {json.dumps(str(self.root_certificates.resolve()))}"
            if self.root_certificates
            else "insecure = true"
        )
        Path(self._home.name, "config.toml").write_text(
            f'[superlink]\ndefault = "{_NAME}"\n\n'
            f"[superlink.{_NAME}]\naddress = {json.dumps(self.address)}\n{trust}\n"
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was written."""
        self._home.cleanup()

    def fault(self) -> Finding | None:
        """Return why it cannot be spoken to, as far as it shows from here."""
        address = Address.parse(CONTROL, self.address, self.root_certificates)
        return next((f for f in look_at(address) if f.state == FAULT), None)

    def online(self) -> int:
        """Return the number of nodes that are connected.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not answer.
        """
        return sum(status == "online" for status in self.nodes().values())

    def nodes(self) -> dict[str, str]:
        """Return the status of every node by its id, of those too that are ``unregistered``.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not answer.
        """
        listed = self._ask("supernode", "list", _NAME)["nodes"]
        return {str(node["node-id"]): str(node["status"]) for node in listed}

    def wait_for_nodes(self, least: int, seconds: float) -> int:
        """Return the number of connected nodes once there are ``least``.

        Raises
        ------
        SuperLinkError
            After ``seconds`` with fewer, or where the SuperLink does not answer.
        """
        deadline = time.monotonic() + seconds
        while (online := self.online()) < least:
            if time.monotonic() > deadline:
                raise SuperLinkError(
                    f"{online} of {least} nodes are connected to {self.address} after {seconds:g} s"
                )
            time.sleep(1)
        return online

    def register(self, public_key: Path) -> str | None:
        """Register a node by its public key, so that it may connect.

        Returns
        -------
        str or None
            The node's id; None where the key had been registered before, revoked or not.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not answer, or does not take the key.
        """
        try:
            answer = self._ask("supernode", "register", str(public_key.resolve()), _NAME)
        except SuperLinkError as error:
            if _IN_USE in str(error):
                return None
            raise
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Let a node in no more: what it asks from now on is refused, and its key for ever.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not answer, or has no such node any more.
        """
        self._ask("supernode", "unregister", node, _NAME)

    def submit(self, app: Path, settings: Mapping[str, Scalar], run_config: str = "") -> str:
        """Start a run.

        Parameters
        ----------
        app
            The folder with the app's pyproject.toml.
        settings
            Its run-config.
        run_config
            More of it, as ``flwr run --run-config`` takes it.

        Returns
        -------
        str
            The run's id.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not take the run.
        """
        pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        config = " ".join(filter(None, [*pairs, run_config]))
        answer = self._ask("run", str(app.resolve()), _NAME, "--run-config", config)
        return str(answer["run-id"])

    def follow(self, run: str) -> Ending:
        """Show a run's log until the run has ended.

        Returns
        -------
        Ending
            How it ended; where the SuperLink went away on the way, its ``status`` says so. The
            exit status of ``flwr run --stream`` and ``flwr log`` says nothing about it.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not answer any more.
        """
        lines: list[str] = []
        try:
            while not (status := self.status(run)).startswith(_FINISHED):
                # It ends with the run, or where the connection breaks: then it is taken up again.
                lines += self._show(["log", run, _NAME, "--stream"], lambda: self.ended(run))
                time.sleep(1)
        except SuperLinkError as error:
            if not lines:
                raise
            status = str(error)  # the rounds until then count
        return replace(Ending.read(lines), status=status)

    def ended(self, run: str) -> bool:
        """Say whether a run has ended, well or not; raises as :meth:`status`."""
        return self.status(run).startswith(_FINISHED)

    def status(self, run: str) -> str:
        """Return a run's status, as ``flwr list`` tells it.

        Raises
        ------
        SuperLinkError
            Where the SuperLink does not answer, or does not know the run.
        """
        return str(self._ask("list", _NAME, "--run-id", run)["runs"][0]["status"])

    def _ask(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON answer of a ``flwr`` command, whose exit status is 0 in any case."""
        # Where a SuperLink has gone, flwr may wait for it without an end.
        seconds = _SUBMITTING if arguments[0] == "run" else _ASKING
        try:
            done = subprocess.run(
                self._command(*arguments, "--format", "json"),
                env=self._environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise SuperLinkError(
                f"flwr {arguments[0]} on {self.address}: no answer within {seconds:g} s"
            ) from None
        start = done.stdout.find("{")
        try:
            answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
        except ValueError:
            answer = {}
        if not answer.get("success"):
            said = answer.get("error-message") or done.stderr or done.stdout
            reason = " ".join(str(said).strip().split("\n\n")[-1].split())
            raise SuperLinkError(f"flwr {arguments[0]} on {self.address}: {reason}")
        return answer

    def _show(self, arguments: list[str], ended: Callable[[], bool]) -> list[str]:
        """Print what a ``flwr`` command says, line by line, and return the lines.

        It is asked from time to time whether what it speaks of has ``ended``: a line that was cut
        says nothing and ends nothing.
        """
        lines: list[str] = []
        running = subprocess.Popen(
            self._command(*arguments), env=self._environment(), stdout=subprocess.PIPE, text=True
        )

        def read() -> None:
            for line in running.stdout or ():
                print(line, end="", flush=True)
                lines.append(line.rstrip("\n"))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while reader.is_alive():
                reader.join(_LOOKING)
                if reader.is_alive() and ended():
                    reader.join(_LAST_LINES)
                    break
        finally:
            running.terminate()
            running.wait()
            reader.join(_LOOKING)
        return lines

    def _command(self, *arguments: str) -> list[str]:
        beside = str(Path(sys.executable).parent)
        flwr = shutil.which("flwr", path=beside) or shutil.which("flwr")
        if flwr is None:
            raise SuperLinkError(f"there is no flwr command in {beside} or on the PATH")
        return [flwr, *arguments]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "FLWR_HOME": self._home.name,
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }
