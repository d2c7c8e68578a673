"""The ``superfednas`` command: parses, calls, prints."""

from cli import deploying, diagnosing, searching, spaces, training
from cli.common import app, main

__all__ = ["app", "deploying", "diagnosing", "main", "searching", "spaces", "training"]
