"""Keys, masks and shares of secure aggregation (Bonawitz et al., CCS 2017).

The algorithms are those of kept libraries: X25519, HKDF, AES and ECDSA of ``cryptography``,
Shamir's sharing of ``pycryptodome``. All secrets of a client in one round come from one root, which
it draws from the system's entropy and forgets with the next round.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from superfednas.common.keys import private_key

SECRET = 16  # bytes of what is shared
KEY = 32  # bytes of a public key
SEALED = 12 + 16  # bytes that encryption adds
_TRIES = 32  # sets of shares that are tried for one secret


class KeyProblem(ValueError):  # noqa: N818 (what is wrong with a stranger's key or text)
    """A key, a signature or a sealed text that is not what it should be."""


def derive(secret: bytes, purpose: str, length: int = 32) -> bytes:
    """Return a key for one purpose from a secret (HKDF with SHA-256)."""
    return HKDF(hashes.SHA256(), length, salt=None, info=purpose.encode()).derive(secret)


def add_mask(numbers: list[np.ndarray], key: bytes, *, subtract: bool = False) -> None:
    """Add a key's stream (AES-256 in counter mode) modulo 2³² to arrays, one after the other.

    Parameters
    ----------
    numbers
        uint32 arrays of any shape, changed in place.
    key
        32 bytes, used for one stream alone.
    subtract
        Whether it is taken off instead.
    """
    count = sum(part.size for part in numbers)
    encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
    stream = np.frombuffer(encryptor.update(bytes(4 * count)), "<u4")
    change, offset = np.subtract if subtract else np.add, 0
    for part in numbers:
        some = stream[offset : offset + part.size].reshape(part.shape)
        change(part, some, out=part)
        offset += part.size


class Secrets:
    """A client's secrets in one round.

    Parameters
    ----------
    root
        32 bytes from which all others come.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self.seed = derive(root, "seed of the pairwise masks", SECRET)
        self._sealing = X25519PrivateKey.from_private_bytes(derive(root, "sealing"))

    @classmethod
    def fresh(cls) -> tuple["Secrets", bytes]:
        """Return secrets from the system's entropy, and their root."""
        root = os.urandom(32)
        return cls(root), root

    @property
    def public(self) -> bytes:
        """Both public keys: for masks, and for what is sealed."""
        return mask_public(self.seed) + _public(self._sealing)

    def own(self, tier: int) -> bytes:
        """Return the secret of the client's own mask of a tier."""
        return derive(self._root, f"own mask, tier {tier}", SECRET)

    def seal(self, text: bytes, to: bytes, about: bytes) -> bytes:
        """Encrypt a text for the owner of the public keys ``to``; ``about`` is bound to it."""
        nonce = os.urandom(12)
        return nonce + AESGCM(_shared(self._sealing, to[KEY:], about)).encrypt(nonce, text, about)

    def unseal(self, sealed: bytes, by: bytes, about: bytes) -> bytes:
        """Undo :meth:`seal`.

        Raises
        ------
        KeyProblem
            If the text was not sealed by the owner of ``by`` for this client, about this.
        """
        try:
            key = _shared(self._sealing, by[KEY:], about)
            return AESGCM(key).decrypt(sealed[:12], sealed[12:], about)
        except (InvalidTag, ValueError):
            raise KeyProblem("a sealed text that cannot be opened") from None


def own_key(secret: bytes) -> bytes:
    """Return the key of a client's own mask of a tier from its secret."""
    return derive(secret, "own mask")


def commitment(secret: bytes) -> bytes:
    """Return 32 bytes by which a secret can be recognised once it is known."""
    return hashlib.sha256(b"secure aggregation" + secret).digest()


def mask_public(seed: bytes) -> bytes:
    """Return the public key of a client's pairwise masks."""
    return _public(_masking(seed))


def pair_key(seed: bytes, other: bytes, about: bytes) -> bytes:
    """Return the key of the mask that two clients share.

    Parameters
    ----------
    seed
        Of one of the two.
    other
        The public keys of the other.
    about
        What both must agree on; else they have different keys.
    """
    return _shared(_masking(seed), other[:KEY], about)


def check_public(keys: bytes) -> None:
    """Refuse public keys that have another length, or with which nothing can be agreed.

    Raises
    ------
    KeyProblem
        If so.
    """
    if len(keys) != 2 * KEY:
        raise KeyProblem(f"{len(keys)} bytes of public keys in place of {2 * KEY}")
    try:
        for key in (keys[:KEY], keys[KEY:]):
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        raise KeyProblem("a public key with which nothing can be agreed") from None


def _masking(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derive(seed, "masking"))


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _shared(mine: X25519PrivateKey, other: bytes, about: bytes) -> bytes:
    agreed = mine.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(hashes.SHA256(), 32, salt=None, info=about).derive(agreed)


# Shares


def split(secret: bytes, threshold: int, clients: int) -> list[bytes]:
    """Divide a secret into one share of 16 bytes a client, of which ``threshold`` restore it."""
    return [bytes(share) for _, share in Shamir.split(threshold, clients, secret, ssss=False)]


def restore(
    shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]
) -> bytes | None:
    """Restore a secret, if some of the shares are right.

    Parameters
    ----------
    shares
        Number of a client, from 0, to its share.
    threshold
        How many restore it.
    right
        Recognises the secret.

    Returns
    -------
    bytes or None
        None if it is not found among the first few sets of so many shares. One false share is
        always found out where there is one more than needed, and at most 32 clients.
    """
    given = [(who + 1, share) for who, share in shares.items()]
    count = len(given)
    if count < threshold:
        return None
    for start in range(0, count, -(-count // _TRIES)):  # sets that leave out one after the other
        some = (given + given)[start : start + threshold]
        secret = bytes(Shamir.combine(some, ssss=False))
        if right(secret):
            return secret
        if count == threshold:
            return None
    return None


# Signatures


def signature(text: bytes, key_file: Path) -> bytes:
    """Sign a text with a node's private key (OpenSSH or PEM).

    Raises
    ------
    KeyProblem
        If the file holds no elliptic-curve key.
    """
    try:
        key = private_key(key_file)
    except OSError as error:
        raise KeyProblem(f"node-key = {str(key_file)!r}: {error.strerror}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyProblem(
            f"node-key = {str(key_file)!r}: it holds no elliptic-curve key without a password"
        )
    return key.sign(text, ec.ECDSA(hashes.SHA256()))


def check_signature(text: bytes, signed: bytes, key_file: Path) -> None:
    """Refuse a text that was not signed with the key whose public part is in a file (OpenSSH).

    Raises
    ------
    KeyProblem
        If so, or if there is no such file.
    """
    try:
        key = serialization.load_ssh_public_key(key_file.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyProblem(f"peer-keys: {str(key_file)!r}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KeyProblem(f"peer-keys: {str(key_file)!r} holds no elliptic-curve key")
    try:
        key.verify(signed, text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise KeyProblem(f"its keys are not signed with that of {str(key_file)!r}") from None
