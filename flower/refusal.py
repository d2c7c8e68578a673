"""Refusals of a node: a sentence and an exit status instead of Flower's tracebacks."""

import sys
from typing import Protocol

from superfednas.common.words import one_line


class RefusedError(SystemExit):
    """A node that cannot start, or that the SuperLink does not admit.

    It is not an Exception, because Flower logs every Exception of a connection and continues.

    Parameters
    ----------
    text
        What is wrong, and the remedy.
    status
        The exit status: 2 for wrong options, else 1.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(status)
        self.text = text


class Explaining(Protocol):
    """Explains why a node is not admitted."""

    def why(self, said: str) -> str:
        """Explain a message of Flower, gRPC or the SuperLink, and name the remedy."""

    def meanwhile(self) -> str:
        """Explain why the SuperLink cannot be reached yet."""


def say(text: str) -> None:
    """Report something about the node, on stderr."""
    print(f"superfednas node: {one_line(text)}", file=sys.stderr, flush=True)
