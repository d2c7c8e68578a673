"""The calls with which a SuperNode joins, retried for as long as that can help."""

import time
from collections.abc import Callable
from typing import Any

import grpc

from superfednas.flower.refusal import Explaining, RefusedError, say

_HELD = "could not be activated"  # the SuperLink's words if a node with this key is online
_UNKNOWN = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_LEASE = 60.0  # seconds for which a node counts as online after its last sign of life
_PATIENCE = 4  # failed attempts (a few seconds) after which a node says why it is not admitted yet


class Joining:
    """The SuperNode's function that makes its retries, for a node that is not admitted.

    While the SuperLink considers a node online, it refuses anyone else with that node's key,
    including the node itself after a kill, until its lease has expired. Flower gives up at once;
    here the node keeps asking until then. If it is still refused, the key is in use elsewhere. Any
    other error that Flower does not retry before the node is admitted ends it with a
    :class:`RefusedError`; an error that Flower retries forever is reported once.

    Parameters
    ----------
    make
        Flower's function; the ``should_giveup`` of its result decides what is not retried.
    explaining
        Explains the refusal.
    """

    def __init__(self, make: Callable[..., Any], explaining: Explaining) -> None:
        self._make, self._explaining = make, explaining
        self.joined = self._told = False
        self._since: float | None = None
        self._failed = 0

    def __call__(self, *values: Any, **named: Any) -> Any:
        """Make the retries."""
        retries = self._make(*values, **named)
        gives_up, on_giveup = retries.should_giveup, retries.on_giveup
        retries.should_giveup = lambda error: self._gives_up(error, gives_up)
        retries.on_giveup = lambda state: self._ends(state, on_giveup)
        return retries

    def _gives_up(self, error: Any, gives_up: Callable[[Any], bool]) -> bool:
        if self.joined:
            if error.code() in _UNKNOWN and not self._told:
                self._told = True
                say(
                    "the SuperLink does not know this node any more, and it ends: its key was "
                    "revoked, or the SuperLink was started again without its database"
                )
            return gives_up(error)
        if self._waits(error):
            return False
        # Flower would end the node by a signal here, with status 0, and raise there.
        if error.code() in _UNKNOWN:
            return True
        if gives_up(error):
            return True
        self._failed += 1
        if self._failed == _PATIENCE:
            say(self._explaining.meanwhile())
        return False

    def _ends(self, state: Any, on_giveup: Callable[[Any], None]) -> None:
        on_giveup(state)
        if not self.joined:
            raise RefusedError(self._explaining.why(str(state.exception.details())))

    def _waits(self, error: Any) -> bool:
        if _HELD not in str(error.details()):
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
            say(
                f"the SuperLink has not noticed yet that this node ended; it is asked again until "
                f"it has, {_LEASE:g} s at most"
            )
        if now - self._since > _LEASE:
            raise RefusedError(
                "another node with the same key is online: end that one, or give this node a key "
                "of its own (superfednas keys, superfednas register)"
            )
        return True
