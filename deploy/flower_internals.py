"""All that ``superfednas node`` takes from inside Flower, and the check that it is still there.

Flower's SuperNode asks the SuperLink every 3 s, its SuperExec asks the SuperNode every second,
every message gets a fresh Python process, and the SuperNode looks for that process's reply every
0.5 s; a SuperNode that was killed and is started again exits for as long as the SuperLink takes its
former life for alive. No option changes any of these. The functions below run Flower's own programs
with four names replaced: ``time`` and ``subprocess`` in two of Flower's modules, the function by
which the SuperNode takes a message, and the one that makes what tries calls of the SuperLink again.

A SuperNode that is refused ends with a traceback, or with a status of 0; here it is a
:class:`RefusedError`, a sentence and a status. Options are read by Flower's own parsers.
"""

import importlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, Protocol

import click
import grpc

FLOWER = "1.31."
_SUPERNODE = "flwr.supernode.start_client_internal"
_SUPEREXEC = "flwr.supercore.superexec.run_superexec"
_OPTIONS = ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode")
_CONFIG = ("flwr.common.config", "parse_config_args")
_EXECUTOR = "flwr.supercore.superexec.executor.subprocess_executor"
_PROGRAMS = {
    "flower-supernode": ("flwr.supernode.cli.flower_supernode", "flower_supernode"),
    "flower-superexec": ("flwr.supercore.cli.flower_superexec", "flower_superexec"),
    "flwr-clientapp": ("flwr.supernode.cli.flwr_clientapp", "flwr_clientapp"),
}
_REPLACED = (
    (_SUPERNODE, "time"),
    (_SUPERNODE, "subprocess"),
    (_SUPERNODE, "_pull_and_store_message"),
    (_SUPERNODE, "_make_fleet_connection_retry_invoker"),
    (_SUPEREXEC, "time"),
    (_EXECUTOR, "subprocess"),
)
_SHORTEST, _SHARE = 0.01, 0.1
_HELD = "could not be activated"  # the SuperLink's words where a node with this key is online
_UNKNOWN = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_LEASE = 60.0  # seconds for which a node is online after its last sign of life
_PATIENCE = 4  # failed tries, a few seconds, after which it is said why a node is not in yet
# As Flower's own pattern; what it does not find, Flower drops without a word.
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")

Start = Callable[[Sequence[str]], object]


class RefusedError(SystemExit):
    """A node cannot start, or the SuperLink does not let it in.

    It is no Exception, since Flower logs every Exception of a connection and goes on.

    Parameters
    ----------
    text
        What is wrong, and the remedy.
    status
        The exit status: 2 where the options are wrong, else 1.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(status)
        self.text = text


class Explaining(Protocol):
    """Puts into words why a node is not let in."""

    def why(self, said: str) -> str:
        """Say what the words of Flower, gRPC or the SuperLink mean, and the remedy."""

    def meanwhile(self) -> str:
        """Say why the SuperLink cannot be reached yet."""


def difference() -> str | None:
    """Return in words what in this Flower is not as this module needs it; None: nothing."""
    found = version("flwr")
    if not found.startswith(FLOWER):
        return f"Flower {found} is not {FLOWER}x"
    for module, name in (*_PROGRAMS.values(), *_REPLACED, _OPTIONS, _CONFIG):
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            return f"Flower {found} has no {module}.{name}"
    return None


class Pause:
    """Sleeps that grow in proportion to the wait so far, up to a longest one.

    Parameters
    ----------
    longest
        Seconds.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self._since = time.monotonic()

    def restart(self) -> None:
        """Begin another wait: its first sleeps are short."""
        self._since = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds`` or a tenth of the wait so far, whichever is shorter."""
        waited = time.monotonic() - self._since
        time.sleep(min(seconds, self.longest, max(_SHARE * waited, _SHORTEST)))


class Taking:
    """The SuperNode's function that takes a message, with a bell and a pause around it.

    Parameters
    ----------
    take
        Flower's function; it returns a run's id where there was a message.
    ring
        Called when a message has been taken.
    pause
        Begins anew where a wait begins: for the reply to a message, or for the next message.
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


class Joining:
    """The SuperNode's function that makes its retries, for one that is not let in.

    Whoever has a node's key is refused while the SuperLink calls that node online, also the node
    itself after it was killed, until its lease has ended. Flower gives up at once; here the
    question is put again until that end. Whoever is refused after it has a key that is in use.
    What else Flower does not try again, before the node is in, ends it by a
    :class:`RefusedError`; what Flower tries again for ever is said once.

    Parameters
    ----------
    make
        Flower's function; what it returns decides by ``should_giveup`` what is not tried again.
    explaining
        Finds the words.
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
                _say(
                    "the SuperLink does not know this node any more, and it ends: its key was "
                    "revoked, or the SuperLink was started again without its database"
                )
            return gives_up(error)
        if self._waits(error):
            return False
        # Flower would end the node by a signal here, with a status of 0, and raise there.
        if error.code() in _UNKNOWN:
            return True
        if gives_up(error):
            return True
        self._failed += 1
        if self._failed == _PATIENCE:
            _say(self._explaining.meanwhile())
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
            _say(
                f"the SuperLink has not noticed yet that this node ended; it is asked again until "
                f"it has, {_LEASE:g} s at most"
            )
        if now - self._since > _LEASE:
            raise RefusedError(
                "another node with the same key is online: end that one, or give this node a key "
                "of its own (superfednas keys, superfednas register)"
            )
        return True


class Bell:
    """A pipe by which one process wakes another from a sleep.

    Parameters
    ----------
    listening
        File descriptor of the end that :meth:`sleep` reads.
    """

    def __init__(self, listening: int) -> None:
        self.listening = listening

    def sleep(self, seconds: float) -> None:
        """Sleep, but only until it rings."""
        rung, _, _ = select.select([self.listening], [], [], seconds)
        if rung and not os.read(self.listening, 4096):
            time.sleep(seconds)  # nobody is there to ring any more


def read_options(options: Sequence[str]) -> Any:
    """Read a command line as ``flower-supernode`` does.

    Raises
    ------
    RefusedError
        Where it cannot be read.
    """

    def refuse(message: str) -> None:
        raise RefusedError(
            f"{message}; superfednas node --help has an example, flower-supernode --help every "
            "option",
            2,
        )

    module, name = _OPTIONS
    parser: Any = getattr(importlib.import_module(module), name)()
    parser.error = refuse
    return parser.parse_args(list(options))


def read_node_config(text: str) -> dict[str, bool | int | float | str]:
    """Read a ``--node-config`` as ``flower-supernode`` does.

    Raises
    ------
    ValueError
        Where it cannot be read, or Flower would leave out a part of it.
    """
    module, name = _CONFIG
    rest = " ".join(_PAIR.sub(" ", text).split())
    if rest and not text.endswith(".toml"):
        raise ValueError(f"{rest!r} is no key=value")
    try:
        found: dict[str, bool | int | float | str] = getattr(importlib.import_module(module), name)(
            [text]
        )
    except OSError as error:
        raise ValueError(f"{error.strerror}") from error
    except click.ClickException as error:
        raise ValueError(f"{error.__cause__}") from error
    return found


def run_supernode(
    options: Sequence[str], longest_poll: float, start_superexec: Start, explaining: Explaining
) -> None:
    """Run ``flower-supernode`` with pauses that adapt.

    Parameters
    ----------
    options
        Its command line.
    longest_poll
        Longest pause in seconds between two questions to the SuperLink.
    start_superexec
        Called with the options of ``flower-superexec``, of which the first is the descriptor of a
        pipe that gets a byte whenever a message has come in.
    explaining
        Finds the words where the node is refused.

    Raises
    ------
    RefusedError
        Where the node is refused, or loses its SuperLink for good.
    """
    module: Any = importlib.import_module(_SUPERNODE)
    listening, ringing = os.pipe()
    pause = Pause(longest_poll)
    module.time = SimpleNamespace(sleep=pause.sleep)
    module.subprocess = SimpleNamespace(
        Popen=lambda command: start_superexec([str(listening), *command[1:]])
    )
    joining = Joining(module._make_fleet_connection_retry_invoker, explaining)
    taking = Taking(module._pull_and_store_message, lambda: _ring(ringing), pause)

    def take(**named: Any) -> int | None:
        joining.joined = True  # a node that is in asks for messages
        return taking(**named)

    module._pull_and_store_message = take
    module._make_fleet_connection_retry_invoker = joining
    try:
        run("flower-supernode", options)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            raise RefusedError(explaining.why(ended.code)) from None
        raise
    # Flower's loop has no end of its own: it logs the error that it gives up on, and returns.
    raise RefusedError(explaining.why("the connection to the SuperLink has ended, as said above"))


def run_superexec(options: Sequence[str], launch: Start) -> None:
    """Run ``flower-superexec`` so that it wakes at once.

    Parameters
    ----------
    options
        As ``start_superexec`` of :func:`run_supernode` gets them.
    launch
        Called with the options of ``flwr-clientapp`` for every message. Where it fails with an
        OSError, Flower's own way is taken.
    """

    def start(command: Sequence[str]) -> object:
        try:
            return launch(command[1:])
        except OSError as error:
            _say(f"{error}, so {command[0]} is started anew")
            return subprocess.Popen(command)

    superexec: Any = importlib.import_module(_SUPEREXEC)
    executor: Any = importlib.import_module(_EXECUTOR)
    superexec.time = SimpleNamespace(sleep=Bell(int(options[0])).sleep)
    executor.subprocess = SimpleNamespace(Popen=start)
    run("flower-superexec", options[1:])


def run_clientapp(options: Sequence[str]) -> None:
    """Run ``flwr-clientapp`` for one message."""
    run("flwr-clientapp", options)


def run(program: str, options: Sequence[str]) -> None:
    """Run one of Flower's programs in this process."""
    sys.argv = [program, *options]
    module, function = _PROGRAMS[program]
    getattr(importlib.import_module(module), function)()


def _say(text: str) -> None:
    print(f"superfednas node: {text}", file=sys.stderr, flush=True)


def _ring(pipe: int) -> None:
    if select.select([], [pipe], [], 0)[1]:  # a full pipe rings as it is
        os.write(pipe, b"!")
