"""The ``superfednas`` command: parses, calls, prints."""

from cli import benching, deploying, diagnosing, fleet, nodes, searching, spaces, training
from cli.common import app, main

__all__ = [
    "app",
    "benching",
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
    *("run", "node", "probe", "keys", "register", "revoke", "doctor", "bench", "stop"),
)
app.registered_commands.sort(
    key=lambda command: _ORDER.index(command.name or command.callback.__name__)  # type: ignore[union-attr]
)
