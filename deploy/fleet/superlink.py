"""A remote SuperLink, through the ``flwr`` command: its nodes, and runs on it.

``flwr`` reads addresses from a file of the user. Here it gets its own folder for the duration of a
``with`` block, so that an address is enough and the user's file stays as it is.
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

from superfednas.common.settings import Scalar
from superfednas.common.words import one_line
from superfednas.deploy.doctor.finding import FAULT, Finding
from superfednas.deploy.doctor.superlink import superlink as look_at
from superfednas.flower.api import CONTROL, Address
from superfednas.flower.signatures import SIGNATURE, read_signing_key, sign_app
from superfednas.records.announcements import Announcement, Event

_NAME = "superfednas"
_IN_USE = "already in use"
_FINISHED = "finished:"
_ASKING, _SUBMITTING = 30.0, 300.0  # seconds for an answer; a submission carries the app
_LOOKING = 60.0  # seconds between two checks whether a followed run has ended
_LAST_LINES = 5.0
COMPLETED = "finished:completed"
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


class SuperLinkError(RuntimeError):
    """A SuperLink that cannot be reached or refuses; the message says why."""


@dataclass(frozen=True)
class Ending:
    """The end of a run.

    Parameters
    ----------
    status
        ``finished:completed``, ``finished:failed`` or ``finished:stopped``.
    error
        The app's own error message; empty if it was killed or nothing is wrong.
    first, last
        The last round that used a reply when it started and when it ended; 0 before the first.
    at_work
        The run that kept this one from its run folder; empty where none did.
    """

    status: str
    error: str = ""
    first: int = 0
    last: int = 0
    at_work: str = ""

    @classmethod
    def read(cls, lines: Iterable[str]) -> "Ending":
        """Read what a run has announced in its log: all but the status."""
        ending = cls("")
        for said in filter(None, map(Announcement.read, lines)):
            if said.event == Event.RESUMED:
                ending = replace(ending, first=said.round, last=said.round)
            elif said.event == Event.ROUND:
                ending = replace(ending, last=said.round)
            elif said.event == Event.ERROR:
                ending = replace(ending, error=said.text, at_work=said.run)
        return ending


class SuperLink:
    """A SuperLink's Control API; a context manager.

    Parameters
    ----------
    address
        ``HOST:PORT`` of the Control API (port 9093 by default).
    root_certificates
        The authority's certificate; without it the connection is in plain text.
    signing_key
        What signs the apps that are submitted, for nodes that run no others.

    Raises
    ------
    TrustError
        If the key cannot be used.
    """

    def __init__(
        self,
        address: str,
        root_certificates: Path | None = None,
        signing_key: Path | None = None,
    ) -> None:
        self.address = address
        self.root_certificates = root_certificates
        self._signer = None if signing_key is None else read_signing_key(signing_key)
        self._home = tempfile.TemporaryDirectory(prefix="superfednas-")

    def __enter__(self) -> "SuperLink":
        """Write the SuperLink's address for ``flwr``."""
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
        """Remove the written file."""
        self._home.cleanup()

    def fault(self) -> Finding | None:
        """Return why it cannot be reached, as far as can be seen from here."""
        address = Address.parse(CONTROL, self.address, self.root_certificates)
        return next((f for f in look_at(address) if f.state == FAULT), None)

    def online(self) -> int:
        """Return the number of nodes that are connected.

        Raises
        ------
        SuperLinkError
            If the SuperLink does not answer.
        """
        return sum(status == "online" for status in self.nodes().values())

    def nodes(self) -> dict[str, str]:
        """Return the status of every node by its id, including ``unregistered`` ones.

        Raises
        ------
        SuperLinkError
            If the SuperLink does not answer.
        """
        listed = self._ask("supernode", "list", _NAME)["nodes"]
        return {str(node["node-id"]): str(node["status"]) for node in listed}

    def wait_for_nodes(self, least: int, seconds: float) -> int:
        """Return the number of connected nodes once there are ``least``.

        Raises
        ------
        SuperLinkError
            After ``seconds`` with fewer, or if the SuperLink does not answer.
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
            The node's id; None if the key had been registered before, revoked or not.

        Raises
        ------
        SuperLinkError
            If the SuperLink does not answer, or does not accept the key.
        """
        try:
            answer = self._ask("supernode", "register", str(public_key.resolve()), _NAME)
        except SuperLinkError as error:
            if _IN_USE in str(error):
                return None
            raise
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Revoke a node: its requests are refused from now on, and its key forever.

        Raises
        ------
        SuperLinkError
            If the SuperLink does not answer, or no longer has such a node.
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
            Further settings, as ``flwr run --run-config`` takes them.

        Returns
        -------
        str
            The run's id.

        Raises
        ------
        SuperLinkError
            If the SuperLink does not accept the run.
        """
        if self._signer is not None:
            settings = {**settings, SIGNATURE: sign_app(app, self._signer)}
        pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        config = " ".join(filter(None, [*pairs, run_config]))
        answer = self._ask("run", str(app.resolve()), _NAME, "--run-config", config)
        return str(answer["run-id"])

    def follow(self, run: str) -> Ending:
        """Show a run's log until the run has ended; a terminal is spared its announcements.

        Returns
        -------
        Ending
            How it ended; if the SuperLink disappeared meanwhile, its ``status`` says so. The exit
            status of ``flwr run --stream`` and ``flwr log`` says nothing about it.

        Raises
        ------
        SuperLinkError
            If the SuperLink no longer answers.
        """
        lines: list[str] = []
        try:
            while not (status := self.status(run)).startswith(_FINISHED):
                # It ends with the run or when the connection breaks; in the latter case, continue
                # it.
                lines += self._show(["log", run, _NAME, "--stream"], lambda: self.ended(run))
                time.sleep(1)
        except SuperLinkError as error:
            if not lines:
                raise
            status = str(error)  # the rounds until then count
        return replace(Ending.read(lines), status=status)

    def ended(self, run: str) -> bool:
        """Return whether a run has ended, successfully or not; raises as :meth:`status`."""
        return self.status(run).startswith(_FINISHED)

    def status(self, run: str) -> str:
        """Return a run's status, as ``flwr list`` shows it.

        Raises
        ------
        SuperLinkError
            If the SuperLink does not answer, or does not know the run.
        """
        return str(self._ask("list", _NAME, "--run-id", run)["runs"][0]["status"])

    def _ask(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON answer of a ``flwr`` command, whose exit status is always 0."""
        # If a SuperLink is gone, flwr may wait for it forever.
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
        """Print the output of a ``flwr`` command, line by line, and return the lines.

        From time to time it checks whether the run in question has ``ended``: a broken connection
        shows no sign of it.
        """
        lines: list[str] = []
        running = subprocess.Popen(
            self._command(*arguments), env=self._environment(), stdout=subprocess.PIPE, text=True
        )

        def read() -> None:
            for line in running.stdout or ():
                lines.append(line.rstrip("\n"))
                announced = Announcement.read(line)
                if announced is None:  # what Flower's own logger says is coloured
                    print(one_line(_COLOUR.sub("", lines[-1]).expandtabs()), flush=True)
                elif not sys.stdout.isatty():
                    print(announced.line(), flush=True)

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
