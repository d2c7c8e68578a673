"""Private keys in files: OpenSSH or PEM, without a password."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


def private_key(file: Path) -> "PrivateKeyTypes | None":
    """Return the private key in a file, of whatever kind; None if it holds none, or a password.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    content = file.read_bytes()
    ssh = b"OPENSSH" in content
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        return load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def others_may_read(file: Path) -> bool:
    """Return whether another user than the file's owner may read or write it."""
    return bool(file.stat().st_mode & 0o077)
