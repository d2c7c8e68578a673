"""The fingerprint of a round's code, which server and client compare."""

import functools
import hashlib
from pathlib import Path

ROOMS = (
    "common",
    "tasks",
    "supernet",
    "data",
    "wire",
    "flower",
    "nas",
    "client",
    "records",
    "server",
)


def source_root() -> Path:
    """Return the folder whose rooms this process runs: a checkout, a bundle, or the package."""
    return Path(__file__).resolve().parent.parent


@functools.cache
def source_fingerprint() -> str:
    """Hash the code of the rooms that a round runs through.

    A node may have an older version installed, and a simulation's actors may find another checkout
    first on their path; comparing fingerprints reveals both.
    """
    digest = hashlib.sha256()
    root = source_root()
    for room in ROOMS:
        for path in sorted((root / room).glob("**/*.py")):
            name = f"superfednas/{path.relative_to(root).as_posix()}"
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
