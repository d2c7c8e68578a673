"""The ``superfednas`` command: parses, calls, prints."""

from cli import deploying, nodes, searching, spaces, training
from cli.common import app, main

__all__ = ["app", "deploying", "main", "nodes", "searching", "spaces", "training"]
