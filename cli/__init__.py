"""The ``superfednas`` command: parses, calls, prints."""

from cli import deploying, diagnosing, fleet, nodes, searching, spaces, training
from cli.common import app, main

__all__ = [
    "app",
    "deploying",
    "diagnosing",
    "fleet",
    "main",
    "nodes",
    "searching",
    "spaces",
    "training",
]

# `--help` lists the verbs in the order of the work.
_ORDER = (
    *("train", "evaluate", "report"),
    *("search", "test", "export", "pictures", "classify", "latency", "score"),
    *("spaces", "cost"),
    *("run", "node", "probe", "keys", "register", "revoke", "doctor", "stop"),
)
app.registered_commands.sort(
    key=lambda command: _ORDER.index(command.name or command.callback.__name__)  # type: ignore[union-attr]
)
