"""The runtime: one folder that a device copies, so it imports nothing from outside itself."""

import sys

# `python -m runtime` puts the current folder first on the path (unless it is told -P), where any
# file would take the place of a library that is imported from here on. While Python looks for this
# folder, the first argument is "-m". Within superfednas, that has done it.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and __name__.split(".")[0] != "superfednas":
    del sys.path[0]
