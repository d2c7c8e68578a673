"""Refusals: why a reply, a node or a start was not accepted, as a code beside its sentence.

Codes are in ``metrics.jsonl`` and ``log.jsonl``, for programs; sentences are for human readers and
may change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from superfednas.common.words import one_line
from superfednas.flower.codes import ErrorCode, OwnCode
from superfednas.wire.claims import shown
from superfednas.wire.errands import NOT_ALLOWED, PROBLEM, PROBLEM_CODE


class Refusal(StrEnum):
    """Why something was not accepted."""

    # No reply arrived
    NO_REPLY = "no-reply"  # within the time-out
    ROUND_CLOSED = "round-closed"  # before the round had enough others
    # Flower's errors instead of a reply
    FLOWER_ERROR = "flower-error"  # one without its own code: its text says more
    LOAD_FAILED = "load-failed"
    RAISED = "raised"
    MESSAGE_UNAVAILABLE = "message-unavailable"
    MESSAGE_LOST = "message-lost"
    NODE_GONE = "node-gone"
    MOD_PRECONDITION = "mod-precondition"
    INVALID_FAB = "invalid-fab"
    CRASHED = "crashed"
    # A reply that is not what was asked for
    UNREADABLE = "unreadable"  # it cannot be decoded
    NAMES = "names"
    ROUND = "round"
    ARCHITECTURE = "architecture"
    SIZE = "size"
    SHAPE = "shape"
    DTYPE = "dtype"
    NOT_FINITE = "not-finite"
    TOO_FAR = "too-far"  # weights moved further than the order's training can move them
    MERGED = "merged"  # fine by itself, but the round's average was not finite
    METRIC = "metric"  # an impossible number
    MORE_THAN_DECLARED = "more-than-declared"  # more images than the node declared
    SCORES = "scores"  # not one score for each subnet
    WEIGHTS = "weights"  # although none should come back
    PROTOCOL = "protocol"  # an answer of secure aggregation that is none
    NOT_UNMASKED = "not-unmasked"  # fine by itself, but the round's masked sum was given up
    TARGET_GONE = "target-gone"  # it is late, and for a state that its method has dropped
    # A node that is left out
    NO_IDENTITY = "no-identity"  # it does not say who it is
    NODE_PROBLEM = "node-problem"  # it says itself what is wrong with its config or data
    NOT_ALLOWED = "not-allowed"  # its operator does not allow what it is asked
    NAME_TAKEN = "name-taken"
    TOO_SMALL = "too-small"  # for every subnet that it could be assigned
    DEVICE_CLASS = "device-class"
    CLASS_COUNTS = "class-counts"
    MEANING = "meaning"  # its labels or pixels stand for something else than the run's
    CLAIM = "claim"  # it says something of itself that cannot be
    UNKNOWN_LIMIT = "unknown-limit"  # on a cost that this run does not know
    # A start, or a run, that cannot continue
    TOO_FEW_NODES = "too-few-nodes"
    NO_SERVER_DATA = "no-server-data"  # and nothing said of the images in its place
    BEING_WRITTEN = "being-written"  # another process is using the run folder
    STALLED = "stalled"  # several rounds without a usable reply
    UNTRUSTED_CODE = "untrusted-code"  # a file names a module that nobody has trusted


# A reply refused with one of these was usable: the round that it belonged to was given up
BLAMELESS = frozenset({Refusal.MERGED, Refusal.NOT_UNMASKED})

_FLOWER = {
    ErrorCode.UNKNOWN: Refusal.FLOWER_ERROR,
    ErrorCode.LOAD_FAILED: Refusal.LOAD_FAILED,
    ErrorCode.RAISED: Refusal.RAISED,
    ErrorCode.MESSAGE_UNAVAILABLE: Refusal.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_UNAVAILABLE: Refusal.MESSAGE_LOST,
    ErrorCode.NODE_UNAVAILABLE: Refusal.NODE_GONE,
    ErrorCode.MOD_PRECONDITION: Refusal.MOD_PRECONDITION,
    ErrorCode.INVALID_FAB: Refusal.INVALID_FAB,
    ErrorCode.CRASHED: Refusal.CRASHED,
}

_LONGEST = 1_000  # characters of a reason
_SAID = 500  # of a node's own words


@dataclass(frozen=True)
class Refused:
    """Why something was not accepted.

    Parameters
    ----------
    code
        For programs.
    reason
        For human readers, on one line.
    """

    code: Refusal
    reason: str

    def __post_init__(self) -> None:
        """Keep an untrusted text on one line."""
        object.__setattr__(self, "reason", one_line(self.reason, _LONGEST))

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason


def said_by_node(config: Mapping[str, object]) -> Refused | None:
    """Return why a node does not do what it is asked, if its answer's config says so."""
    problem = config.get(PROBLEM)
    if not problem:
        return None
    text = problem[:_SAID] if isinstance(problem, str) else shown(problem)
    allowed = config.get(PROBLEM_CODE) != NOT_ALLOWED
    return Refused(Refusal.NODE_PROBLEM if allowed else Refusal.NOT_ALLOWED, text)


def of_flower(code: int) -> Refusal:
    """Return the meaning of an error; an unknown code of a later Flower is just an error."""
    if code == OwnCode.UNREADABLE:
        return Refusal.UNREADABLE
    try:
        return _FLOWER[ErrorCode(code)]
    except ValueError:
        return Refusal.FLOWER_ERROR


def code_of(error: BaseException) -> Refusal | None:
    """Return the code of an exception that has one as its ``refusal``."""
    code = getattr(error, "refusal", None)
    return None if code is None else known(code)


def causes_of(error: BaseException) -> tuple[Refusal, ...]:
    """Return the codes of an exception's causes, if it has them as its ``causes``."""
    return tuple(getattr(error, "causes", ()))


def known(code: object) -> Refusal | None:
    """Return a code that was read; None if this version does not have it."""
    try:
        return Refusal(str(code))
    except ValueError:
        return None
