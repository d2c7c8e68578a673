"""Flower's codes for an error that arrives instead of a reply, by meaning."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """What went wrong with a message; the numbers are those that Flower 1.31 sends."""

    UNKNOWN = 0
    LOAD_FAILED = 1  # the node could not import the run's ClientApp
    RAISED = 2  # the ClientApp raised an exception; the reason is its text
    MESSAGE_UNAVAILABLE = 3  # the SuperLink has no such message for that node (any more)
    REPLY_UNAVAILABLE = 4  # the SuperLink has no such reply
    NODE_UNAVAILABLE = 5  # the node's lease expired before it answered
    MOD_PRECONDITION = 6  # a mod of the ClientApp refused the message
    INVALID_FAB = 7  # the app's bundle does not match its hash
    CRASHED = 8  # the ClientApp's process ended without a reply


class OwnCode(IntEnum):
    """Errors of this project, by numbers that Flower does not send."""

    UNREADABLE = 1000  # the reply has come and cannot be decoded


# Sent by the SuperLink on behalf of a node that has not answered.
GONE = frozenset(
    {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
)
