"""Credentials: an authority, a server certificate, keys of nodes and of operators.

Each recipient has its own folder, so that nobody holds another's secret::

    authority/   ca.key                          signs; stays where it was made
    public/      ca.crt, NAME.pub, NAME.id       whom to trust, which nodes to register, their ids
                 trusted.yaml                    which operators' apps a node runs
    superlink/   server.key, server.crt, ca.crt
    node-NAME/   node.key, ca.crt
    operator-NAME/
                 signing.key                     signs the apps that nodes run
    revoked/     NAME-ID/                        what was here of a node that was revoked

Private keys have mode 0600 from their first byte on, their folders 0700. Nothing that exists is
replaced: missing files are made, ``trusted.yaml`` gets a line more for a new operator, and files
that do not match are refused.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from superfednas.common.files import write_whole
from superfednas.common.keys import others_may_read, private_key
from superfednas.deploy.fleet.certificates import builder_of, signed
from superfednas.flower.signatures import key_id

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Key = TypeVar("Key", "EllipticCurvePrivateKey", "Ed25519PrivateKey")
AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class CredentialsError(ValueError):
    """Credentials that do not match; the message names the file and says what to do."""


@dataclass
class Credentials:
    """The content of a folder of credentials.

    Parameters
    ----------
    folder
        The folder.

    Attributes
    ----------
    made, kept
        Files that were made and files that existed already, in order.
    valid_until
        When the server's certificate ends.
    """

    folder: Path
    made: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    valid_until: datetime.datetime = datetime.datetime.max

    @property
    def authority_certificate(self) -> Path:
        """The certificate that nodes and operators trust."""
        return self.folder / "public" / "ca.crt"

    def public_keys(self) -> dict[str, Path]:
        """Return the nodes' public keys by name."""
        return {path.stem: path for path in sorted((self.folder / "public").glob("*.pub"))}

    def write(self, path: Path, content: bytes, *, secret: bool = False) -> None:
        """Write a file that does not exist yet."""
        write_whole(path, content, overwrite=False, mode=0o600 if secret else 0o644)
        self.made.append(path)


def make_credentials(
    folder: Path,
    hosts: Sequence[str],
    nodes: Sequence[str],
    operators: Sequence[str] = (),
    *,
    days: int = SERVER_DAYS,
) -> Credentials:
    """Make the missing parts of a deployment's credentials.

    Parameters
    ----------
    folder
        The folder; created with mode 0700 if missing.
    hosts
        Host names and IP addresses by which nodes and operators reach the SuperLink.
    nodes
        Names of the nodes that need a key.
    operators
        Names of those who sign apps.
    days
        How long a new server certificate is valid.

    Raises
    ------
    CredentialsError
        If a name is invalid, or existing files do not match or do not cover what is asked.
    """
    names = _alternative_names(hosts)
    for key, name in [("node", n) for n in nodes] + [("operator", n) for n in operators]:
        if not _NAME.fullmatch(name):
            raise CredentialsError(
                f"{key} = {name!r}: must be letters, digits, dots, dashes or underscores"
            )
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
    found = Credentials(folder)
    _make_authority(found)
    _make_server(found, names, days)
    for node in dict.fromkeys(nodes):
        _make_node(found, node)
    for operator in dict.fromkeys(operators):
        _make_operator(found, operator)
    return found


def _alternative_names(hosts: Sequence[str]) -> "list[x509.GeneralName]":
    from cryptography import x509

    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not _NAME.fullmatch(host):
                raise CredentialsError(
                    f"host = {host!r}: must be a host name or an IP address, without a port"
                ) from None
            names.append(x509.DNSName(host))
    if not names:
        raise CredentialsError("the server certificate needs at least one host")
    return names


def _make_authority(found: Credentials) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key_file = _private(found.folder / "authority") / "ca.key"
    certificate_file = found.authority_certificate
    certificate_file.parent.mkdir(exist_ok=True)
    if certificate_file.exists() and not key_file.exists():
        found.kept.append(certificate_file)  # the key is kept elsewhere; it is needed only to sign
        return
    key = _key(found, key_file, ec.generate_private_key(ec.SECP256R1()))
    if certificate_file.exists():
        found.kept.append(certificate_file)
        return
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "superfednas authority")])
    builder = builder_of(name, name, key, AUTHORITY_DAYS).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    found.write(certificate_file, signed(builder, key, key, signs=True))


def _make_server(found: Credentials, names: "list[x509.GeneralName]", days: int) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    folder = _private(found.folder / "superlink")
    _copy_authority(found, folder)
    authority = x509.load_pem_x509_certificate(found.authority_certificate.read_bytes())
    key = _key(found, folder / "server.key", ec.generate_private_key(ec.SECP256R1()))
    file = folder / "server.crt"
    if file.exists():
        found.kept.append(file)
    else:
        signer_file = found.folder / "authority" / "ca.key"
        if not signer_file.exists():
            raise CredentialsError(f"{str(signer_file)!r} is not there and is needed to sign")
        signer = _load(signer_file, key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "superlink")])
        builder = (
            builder_of(subject, authority.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        found.write(file, signed(builder, key, signer, signs=False))
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    anew = f"delete {str(file)!r} and run this again"
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError):
        raise CredentialsError(
            f"{str(file)!r} is not signed by {str(found.authority_certificate)!r}: {anew}"
        ) from None
    if certificate.public_key() != key.public_key():
        raise CredentialsError(f"{str(file)!r} belongs to another key: {anew}")
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    missing = [name for name in names if name not in held]
    if missing:
        raise CredentialsError(
            f"{str(file)!r} does not name {', '.join(str(name.value) for name in missing)}: {anew}"
        )
    found.valid_until = certificate.not_valid_after_utc


def _make_node(found: Credentials, name: str) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public_file = found.folder / "public" / f"{name}.pub"
    key_file = found.folder / f"node-{name}" / "node.key"
    if public_file.exists() and not key_file.exists():
        found.kept.append(public_file)  # the node has its key; a second would lock it out
        return
    folder = _private(key_file.parent)
    _copy_authority(found, folder)
    key = _key(found, key_file, ec.generate_private_key(ec.SECP384R1()), openssh=True)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    if not public_file.exists():
        found.write(public_file, public + b"\n")
    elif public_file.read_bytes().split()[:2] == public.split():
        found.kept.append(public_file)
    else:
        raise CredentialsError(f"{str(public_file)!r} is not the public part of {str(key_file)!r}")


def _make_operator(found: Credentials, name: str) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    trusted_file = found.folder / "public" / "trusted.yaml"
    key_file = found.folder / f"operator-{name}" / "signing.key"
    lines = trusted_file.read_text().splitlines() if trusted_file.exists() else []
    of_name = [line for line in lines if line.split()[-1:] == [name]]
    if of_name and not key_file.exists():
        found.kept.append(trusted_file)  # the operator has the key
        return
    _private(key_file.parent)
    key = _key(found, key_file, Ed25519PrivateKey.generate(), openssh=True)
    public = key.public_key()
    openssh = public.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    line = f"{key_id(public.public_bytes_raw())}: {openssh} {name}"
    if of_name and of_name != [line]:
        raise CredentialsError(
            f"{str(trusted_file)!r} has another key of operator {name!r}: remove its line there "
            "and on the nodes, and run this again"
        )
    if of_name:
        found.kept.append(trusted_file)
        return
    write_whole(trusted_file, "".join(f"{each}\n" for each in [*lines, line]), mode=0o644)
    found.made.append(trusted_file)


def _private(folder: Path) -> Path:
    """Return a folder that nobody else may enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _copy_authority(found: Credentials, folder: Path) -> None:
    """Put the authority's certificate beside a key: both go to the same machine."""
    content = found.authority_certificate.read_bytes()
    copy = folder / "ca.crt"
    if not copy.exists():
        found.write(copy, content)
    elif copy.read_bytes() == content:
        found.kept.append(copy)
    else:
        raise CredentialsError(
            f"{str(copy)!r} is not the same as {str(found.authority_certificate)!r}: put the right "
            "one of the two in both places"
        )


def _key(found: Credentials, file: Path, new: Key, *, openssh: bool = False) -> Key:
    """Return the private key in a file; if that is missing, ``new`` is written to it."""
    from cryptography.hazmat.primitives import serialization

    if file.exists():
        if others_may_read(file):
            raise CredentialsError(
                f"{str(file)!r} can be read by others (mode {file.stat().st_mode & 0o777:o}): make "
                "a new key, or chmod 600 if nobody has read it"
            )
        found.kept.append(file)
        return _load(file, new)
    formats = serialization.PrivateFormat
    content = new.private_bytes(
        serialization.Encoding.PEM,
        formats.OpenSSH if openssh else formats.PKCS8,
        serialization.NoEncryption(),
    )
    found.write(file, content, secret=True)
    return new


def _load(file: Path, like: Key) -> Key:
    """Return the private key in a file, which must be of the same kind as another."""
    key = private_key(file)
    if not isinstance(key, type(like)):
        kind = "elliptic-curve" if hasattr(like, "curve") else "Ed25519"
        raise CredentialsError(f"{str(file)!r} is no {kind} private key without a password")
    return key
