"""The ``superfednas`` command: parses, calls, prints."""

from cli import deploying, fleet, searching, spaces, training
from cli.common import app, main

__all__ = ["app", "deploying", "fleet", "main", "searching", "spaces", "training"]
