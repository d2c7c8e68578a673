"""Signatures of apps: made by who submits, checked by a node's own Flower.

Flower's SuperNode runs only apps that one of its trusted entities has signed, if it has any. The
signatures reach it beside the app, but a SuperLink of Flower 1.31 sends along only those of Flower
Hub: for an app from somebody's disk it sends none, and such a node refuses every such app. Here the
signature travels in the run-config, and is put where Flower looks for it when the app arrives. What
is signed, and how it is checked, is Flower's.
"""

import base64
import hashlib
import importlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superfednas.common.keys import others_may_read, private_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "app-signature"
"""The key of the run-config."""
_SIGNATURE = re.compile(r"(fpk_[0-9a-f]{16}):([0-9]{1,12}):([A-Za-z0-9_-]{86})")
_KEYS = "flwr.supercore.primitives.asymmetric_ed25519"


class TrustError(ValueError):
    """A signing key or a file of trusted keys that cannot be used; the message says why."""


def key_id(public: bytes) -> str:
    """Return the name by which Flower knows a public key (32 bytes)."""
    return f"fpk_{hashlib.sha256(public).hexdigest()[:16]}"


def sign_app(app: Path, key: "Ed25519PrivateKey") -> str:
    """Build an app as ``flwr run`` does, and sign it.

    Parameters
    ----------
    app
        The folder with its pyproject.toml.
    key
        The signer's key.

    Returns
    -------
    str
        For the run-config's :data:`SIGNATURE`: key, time and signature.
    """
    build: Any = importlib.import_module("flwr.cli.build")
    return sign(build.build_fab_from_disk(app), key)


def sign(content: bytes, key: "Ed25519PrivateKey") -> str:
    """Sign an app's file; see :func:`sign_app`."""
    keys: Any = importlib.import_module(_KEYS)
    now = int(time.time())
    signed = key.sign(keys.create_message_to_sign(hashlib.sha256(content).digest(), now))
    name = key_id(key.public_key().public_bytes_raw())
    return f"{name}:{now}:{base64.urlsafe_b64encode(signed).decode().rstrip('=')}"


def verifications(text: object) -> dict[str, str]:
    """Return what Flower reads a signature from; empty where the text is none.

    Anybody who may submit writes the text, and Flower's node ends by what it cannot read.
    """
    found = _SIGNATURE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return {}
    name, when, signature = found.groups()
    return {
        "valid_license": "Valid",
        name: json.dumps({"signed_at": int(when), "signature": signature}),
    }


def deliver_refusals(state: Any) -> None:
    """Let a SuperNode send its refusal of an app, by its state's answer to how long that took.

    Flower 1.31 looks for how long a ClientApp has worked on the message, where none has, and fails:
    the server would wait for a node that has answered.
    """
    measured = state.get_message_processing_duration
    if "get_message_processing_duration" in vars(state):
        return

    def duration(message_id: str) -> float:
        try:
            return float(measured(message_id=message_id))
        except ValueError:
            return 0.0

    state.get_message_processing_duration = duration


class Carrying:
    """The SuperNode's functions that fetch a run and its app, which bring the signature along.

    Parameters
    ----------
    get_run, get_fab
        Flower's functions.
    """

    def __init__(self, get_run: Callable[[int], Any], get_fab: Callable[[str, int], Any]) -> None:
        self._get_run, self._get_fab = get_run, get_fab
        self._said: Mapping[str, object] = {}

    def get_run(self, run_id: int) -> Any:
        """Fetch a run; Flower fetches its app next."""
        run = self._get_run(run_id)
        self._said = run.override_config
        return run

    def get_fab(self, fab_hash: str, run_id: int) -> Any:
        """Fetch the app, with the signatures that it came with and the one of its run."""
        fab = self._get_fab(fab_hash, run_id)
        signed = verifications(self._said.get(SIGNATURE))
        return replace(fab, verifications={**fab.verifications, **signed})


def read_signing_key(file: Path) -> "Ed25519PrivateKey":
    """Read a signing key.

    Raises
    ------
    TrustError
        If it is none, or others can read it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        exposed, key = others_may_read(file), private_key(file)
    except OSError as error:
        raise TrustError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    if exposed:
        raise TrustError(f"{str(file)!r} can be read by others: chmod 600 if nobody has read it")
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{str(file)!r} is no Ed25519 key without a password")
    return key


def check_trusted(file: Path) -> None:
    """Check a node's file of trusted keys, of which Flower reports what is wrong by a traceback.

    Raises
    ------
    TrustError
        If it cannot be read, holds a key that is no Ed25519 key, or holds none: Flower would then
        trust everybody.
    """
    import yaml
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        found = yaml.safe_load(file.read_text())
    except OSError as error:
        raise TrustError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or not found:
        raise TrustError(
            f"{str(file)!r} names no key to trust: fpk_ID: ssh-ed25519 KEY, a line each"
        )
    for name, text in found.items():
        try:
            key = load_ssh_public_key(str(text).encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(name, str) or not isinstance(key, Ed25519PublicKey):
            raise TrustError(f"{str(file)!r}: {name!r:.80} is no Ed25519 public key")
