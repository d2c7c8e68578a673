"""What TLS and node authentication need: an authority, the SuperLink's certificate, a key a node.

There is one folder for each who gets it, so that nobody holds another's secret::

    authority/   ca.key                          signs; stays where it was made
    public/      ca.crt, NAME.pub, NAME.id       whom to trust, which nodes to register, their ids
    superlink/   server.key, server.crt, ca.crt
    node-NAME/   node.key, ca.crt
    revoked/     NAME-ID/                        what was here of a node that was revoked

Private keys have mode 0600 from their first byte on, their folders 0700. Nothing that exists is
replaced: what is missing is made, and what does not fit together is refused.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from supernet.files import write_whole

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurve, EllipticCurvePrivateKey

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CLOCK_SKEW = datetime.timedelta(hours=1)


class CredentialsError(ValueError):
    """Credentials that do not fit together; the message names the file and says what to do."""


@dataclass
class Credentials:
    """What a folder of credentials holds.

    Parameters
    ----------
    folder
        The folder.

    Attributes
    ----------
    made, kept
        Files that were made, and files that were there already, in the order of their making.
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
        """Write a file that is not there yet."""
        write_whole(path, content, overwrite=False, mode=0o600 if secret else 0o644)
        self.made.append(path)


def make_credentials(
    folder: Path, hosts: Sequence[str], nodes: Sequence[str], *, days: int = SERVER_DAYS
) -> Credentials:
    """Make what is missing of a deployment's credentials.

    Parameters
    ----------
    folder
        Where; made with mode 0700 if it is not there.
    hosts
        Host names and IP addresses by which nodes and operators reach the SuperLink.
    nodes
        Names of the nodes that need a key.
    days
        How long a new server certificate is valid.

    Raises
    ------
    CredentialsError
        Where a name cannot be one, or files that are there do not fit together or do not cover
        what is asked.
    """
    names = _alternative_names(hosts)
    for node in nodes:
        if not _NAME.fullmatch(node):
            raise CredentialsError(
                f"node = {node!r}: must be letters, digits, dots, dashes or underscores"
            )
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
    found = Credentials(folder)
    _make_authority(found)
    _make_server(found, names, days)
    for node in dict.fromkeys(nodes):
        _make_node(found, node)
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
        found.kept.append(certificate_file)  # the key is kept elsewhere; needed only to sign
        return
    key = _key(found, key_file, ec.SECP256R1())
    if certificate_file.exists():
        found.kept.append(certificate_file)
        return
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "superfednas authority")])
    builder = _builder(name, name, key, AUTHORITY_DAYS).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    found.write(certificate_file, _signed(builder, key, key, signs=True))


def _make_server(found: Credentials, names: "list[x509.GeneralName]", days: int) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    folder = _private(found.folder / "superlink")
    _copy_authority(found, folder)
    authority = x509.load_pem_x509_certificate(found.authority_certificate.read_bytes())
    key = _key(found, folder / "server.key", ec.SECP256R1())
    file = folder / "server.crt"
    if file.exists():
        found.kept.append(file)
    else:
        signer_file = found.folder / "authority" / "ca.key"
        if not signer_file.exists():
            raise CredentialsError(f"{str(signer_file)!r} is not there and is needed to sign")
        signer = _load(signer_file)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "superlink")])
        builder = (
            _builder(subject, authority.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        found.write(file, _signed(builder, key, signer, signs=False))
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
        found.kept.append(public_file)  # the node has its key already; a second would lock it out
        return
    folder = _private(key_file.parent)
    _copy_authority(found, folder)
    key = _key(found, key_file, ec.SECP384R1(), openssh=True)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    if not public_file.exists():
        found.write(public_file, public + b"\n")
    elif public_file.read_bytes().split()[:2] == public.split():
        found.kept.append(public_file)
    else:
        raise CredentialsError(f"{str(public_file)!r} is not the public part of {str(key_file)!r}")


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


def _key(
    found: Credentials, file: Path, curve: "EllipticCurve", *, openssh: bool = False
) -> "EllipticCurvePrivateKey":
    """Return the private key in a file, which is made if it is not there."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if file.exists():
        if file.stat().st_mode & 0o077:
            raise CredentialsError(
                f"{str(file)!r} can be read by others (mode {file.stat().st_mode & 0o777:o}): make "
                "a new key, or chmod 600 if nobody has read it"
            )
        found.kept.append(file)
        return _load(file)
    key = ec.generate_private_key(curve)
    formats = serialization.PrivateFormat
    content = key.private_bytes(
        serialization.Encoding.PEM,
        formats.OpenSSH if openssh else formats.PKCS8,
        serialization.NoEncryption(),
    )
    found.write(file, content, secret=True)
    return key


def _load(file: Path) -> "EllipticCurvePrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = file.read_bytes()
    load = (
        serialization.load_ssh_private_key
        if b"OPENSSH" in content
        else serialization.load_pem_private_key
    )
    try:
        key = load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialsError(f"{str(file)!r} is no elliptic-curve private key without a password")
    return key


def _builder(
    subject: "x509.Name", issuer: "x509.Name", key: "EllipticCurvePrivateKey", days: int
) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _signed(
    builder: "x509.CertificateBuilder",
    key: "EllipticCurvePrivateKey",
    signer: "EllipticCurvePrivateKey",
    *,
    signs: bool,
) -> bytes:
    """Return a certificate of ``key``, as PEM; ``signs``: whether it may sign others."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    usage = x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        builder.add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
