"""Flower's SuperNode with adaptive pauses: what is replaced in ``start_client_internal``.

These are ``time`` and ``subprocess``, the function with which the SuperNode takes a message, the
one that makes its retries of calls to the SuperLink, and the one that serves its ClientAppIo API. A
refused SuperNode ends with a traceback or with status 0; here it raises a
:class:`~superfednas.flower.refusal.RefusedError`. Apps arrive with the signatures of their runs
(:mod:`superfednas.flower.signatures`) where the node trusts only some signers.

At the ClientAppIo port, Flower hands a message to whoever asks first, which on a shared machine may
be another user. Its SuperNode and its SuperExec can share a secret, but ignore it where one starts
the other; here they get a fresh one every start.
"""

import importlib
import os
import secrets
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from superfednas.flower.joining import Joining
from superfednas.flower.options import read_options
from superfednas.flower.programs import SUPERNODE, run
from superfednas.flower.refusal import Explaining, RefusedError
from superfednas.flower.signatures import Carrying, deliver_refusals

_SHORTEST, _SHARE = 0.01, 0.1
_SECRET_BYTES = 32


class Pause:
    """Sleeps that grow in proportion to the wait so far, up to a maximum.

    Parameters
    ----------
    longest
        Seconds.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self._since = time.monotonic()

    def restart(self) -> None:
        """Begin a new wait, with short sleeps at first."""
        self._since = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds`` or a tenth of the wait so far, whichever is shorter."""
        waited = time.monotonic() - self._since
        time.sleep(min(seconds, self.longest, max(_SHARE * waited, _SHORTEST)))


class Taking:
    """The SuperNode's function that takes a message, wrapped with a bell and a pause.

    Parameters
    ----------
    take
        Flower's function; it returns a run's id if there was a message.
    ring
        Called once a message has been taken.
    pause
        Restarted whenever a wait begins: for the reply to a message, or for the next message.
    """

    def __init__(
        self, take: Callable[..., int | None], ring: Callable[[], None], pause: Pause
    ) -> None:
        self._take, self._ring, self._pause = take, ring, pause
        self._took = False

    def __call__(self, *values: Any, **named: Any) -> int | None:
        """Take a message."""
        run_id = self._take(*values, **named)
        if self._took or run_id is not None:
            self._pause.restart()
        self._took = run_id is not None
        if self._took:
            self._ring()
        return run_id


def run_supernode(
    options: Sequence[str],
    longest_poll: float,
    start_superexec: Callable[[Sequence[str]], object],
    explaining: Explaining,
    secret_file: Path,
) -> None:
    """Run ``flower-supernode`` with adaptive pauses.

    Parameters
    ----------
    options
        Its command line.
    longest_poll
        Longest pause between two polls of the SuperLink, in seconds.
    start_superexec
        Called with the options of ``flower-superexec``; the first is the descriptor of a pipe that
        receives a byte whenever a message has arrived.
    explaining
        Explains why the node is refused.
    secret_file
        A new file, which nobody else must be able to read: what the SuperExec proves to know when
        it asks for messages. With ``--isolation=process`` the user's own SuperExec does, and none
        is made.

    Raises
    ------
    RefusedError
        If the options cannot be read, the node is refused, or it loses its SuperLink for good.
    """
    module: Any = importlib.import_module(SUPERNODE)
    listening, ringing = os.pipe()
    pause = Pause(longest_poll)
    module.time = SimpleNamespace(sleep=pause.sleep)
    shared: list[str] = []
    if read_options(options).isolation == "subprocess":
        serve, secret = module.run_clientappio_api_grpc, _new_secret(secret_file)
        module.run_clientappio_api_grpc = lambda **named: serve(
            **{**named, "superexec_auth_secret": secret}
        )
        shared = ["--superexec-auth-secret-file", str(secret_file)]
    module.subprocess = SimpleNamespace(
        Popen=lambda command: start_superexec([str(listening), *command[1:], *shared])
    )
    joining = Joining(module._make_fleet_connection_retry_invoker, explaining)
    taking = Taking(module._pull_and_store_message, lambda: _ring(ringing), pause)

    def take(**named: Any) -> int | None:
        joining.joined = True  # only an admitted node asks for messages
        if named.get("trusted_entities"):
            deliver_refusals(named["state"])
            carrying = Carrying(named["get_run"], named["get_fab"])
            named |= {"get_run": carrying.get_run, "get_fab": carrying.get_fab}
        return taking(**named)

    module._pull_and_store_message = take
    module._make_fleet_connection_retry_invoker = joining
    try:
        run("flower-supernode", options)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise RefusedError(explaining.why(ended.code)) from None
        raise
    # Flower's loop never ends normally: it logs the error it gives up on, and returns.
    raise RefusedError(explaining.why("the connection to the SuperLink has ended, as said above"))


def _new_secret(file: Path) -> bytes:
    """Write a secret that only this user can read, and return it."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(file, flags, 0o600), "wb") as out:
        out.write(secret)
    return secret


def _ring(pipe: int) -> None:
    if select.select([], [pipe], [], 0)[1]:  # a full pipe rings anyway
        os.write(pipe, b"!")
