"""``python -m cli``: the command where it is not installed."""

from superfednas.cli import main

main()
