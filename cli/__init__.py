"""The ``superfednas`` command: parses, calls, prints."""

from cli import deploying, searching, spaces, training
from cli.common import app, main

__all__ = ["app", "deploying", "main", "searching", "spaces", "training"]
