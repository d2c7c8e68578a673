"""The ``superfednas`` command: parses, calls, prints."""

from superfednas.cli import (
    benching,
    comparing,
    deploying,
    diagnosing,
    fleet,
    nodes,
    personal,
    searching,
    spaces,
    timing,
    training,
)
from superfednas.cli.common import app, main

__all__ = [
    "app",
    "benching",
    "comparing",
    "deploying",
    "diagnosing",
    "fleet",
    "main",
    "nodes",
    "personal",
    "searching",
    "spaces",
    "timing",
    "training",
]

# `--help` lists the verbs in the order of the work.
_ORDER = (
    *("methods", "train", "evaluate", "report", "compare", "personalise"),
    *("search", "test", "export", "pictures", "classify", "latency", "score"),
    *("spaces", "cost"),
    *("run", "node", "probe", "keys", "register", "revoke", "release"),
    *("doctor", "bench", "stop"),
)
app.registered_commands.sort(
    key=lambda command: _ORDER.index(command.name or command.callback.__name__)  # type: ignore[union-attr]
)
