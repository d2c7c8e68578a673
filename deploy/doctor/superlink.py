"""Checks of a superlink from the view of a node or of `flwr`: reachable, TLS, key accepted.

They change nothing there: no node is registered or activated. The superlink logs the queries.
"""

import contextlib
import dataclasses
import os
import socket
import ssl
import stat
import time
from pathlib import Path
from typing import Any

from superfednas.deploy.doctor.finding import FAULT, OK, WARNING, Finding, few
from superfednas.flower.api import (
    CONTROL,
    DEFAULT_PORT,
    FLEET,
    PATIENCE,
    REVOKED,
    Address,
    activation,
    key_bytes,
    nodes,
)

_SOON = 14 * 86_400.0
_SETTINGS = 4  # type of the first frame of an HTTP/2 server
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
# Of openssl's x509_vfy.h
_EXPIRED, _NOT_YET = 10, 9
_OTHER_CA = (2, 7, 18, 19, 20, 21)
_OTHER_HOST = (62, 64)
_ANSWERS = ("UNAUTHENTICATED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
_INNER = "Authentication failed."  # what ServerAppIo and ClientAppIo tell strangers
_FOR = {
    FLEET: "nodes connect to that",
    CONTROL: "flwr, and superfednas run, register and revoke, connect to that",
}


def superlink(address: Address, key: Path | None = None) -> list[Finding]:
    """Check one API of a superlink.

    Parameters
    ----------
    address
        The API.
    key
        A node's private key.
    """
    found = [_reachable(address)]
    try:
        if found[-1].state != FAULT:
            found.append(_tls(address))
        if found[-1].state == FAULT:
            return found
        private: Any = None
        if key is not None:
            problem, private = load_key(key)
            if private is None:
                return [*found, problem]
            if problem.state != OK:
                found.append(problem)
        ask = _ask_fleet if address.api == FLEET else _ask_control
        return [*found, *ask(address, private)]
    except ImportError as error:  # these modules are internal to Flower
        text = f"cannot be asked by this version of Flower: {error}"
        return [*found, Finding(address.api, WARNING, text, "flwr supernode list")]


# Reachable, TLS


def _reachable(address: Address) -> Finding:
    name = f"{address.api} {address.target}"
    try:
        with socket.create_connection((address.host, address.port), PATIENCE):
            return Finding(name, OK, "reachable")
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: the text cannot be a host name
        remedy = f"check the spelling of {address.host!r}; name the superlink by its IP address, "
        remedy += "or make the name resolvable here (DNS, /etc/hosts)"
        said = getattr(error, "strerror", None) or error
        return Finding(name, FAULT, f"the host's name is not known: {said}", remedy)
    except ConnectionRefusedError:
        api = "--fleet-api-address" if address.api == FLEET else "--control-api-address"
        remedy = f"start flower-superlink there ({api} 0.0.0.0:{address.port} for other machines); "
        remedy += f"if it runs, name the port of its {address.api}, and look whether it listens on "
        remedy += "127.0.0.1 only"
        return Finding(name, FAULT, "nobody listens there", remedy)
    except OSError as error:
        remedy = f"open port {address.port} in the firewall between, and check the route"
        return Finding(name, FAULT, f"not reachable: {error.strerror or error}", remedy)


def _tls(address: Address) -> Finding:
    plain = _is_plain(address)
    name = "TLS"
    if address.certificates is None:
        if plain:
            local = address.host in ("localhost", "127.0.0.1", "::1")
            remedy = "" if local else "use TLS outside a trusted network: openssl, --ssl-certfile"
            return Finding(name, OK if local else WARNING, "none, as asked", remedy)
        text = "the superlink does not answer in plain text"
        return Finding(name, FAULT, text, "if it speaks TLS: --root-certificates FILE of its CA")
    if plain:
        in_plain_text = dataclasses.replace(address, certificates=None)
        if not any(_is_answer(_question(api, in_plain_text)) for api in (FLEET, CONTROL)):
            return _another_service(in_plain_text)
        text = "the superlink speaks plain text"
        remedy = "start it with --ssl-ca-certfile, --ssl-certfile and --ssl-keyfile, or connect "
        return Finding(name, FAULT, text, remedy + "with --insecure and without root-certificates")
    return _verified(address)


def _is_plain(address: Address) -> bool:
    """Return whether an HTTP/2 server answers without TLS."""
    with contextlib.suppress(OSError), _connect(address) as plain:
        plain.sendall(_HTTP2)
        answer = plain.recv(9)
        return len(answer) > 3 and answer[3] == _SETTINGS
    return False


def _connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), PATIENCE)


def load_authority(file: Path | None) -> Finding | ssl.SSLContext:
    """Return an SSL context that trusts only this file's CA, or why there is none.

    Parameters
    ----------
    file
        The CA's certificate.
    """
    try:
        return ssl.create_default_context(cafile=file)
    except FileNotFoundError:
        return Finding("TLS", FAULT, f"{file} is not there", "copy the CA's certificate there")
    except (ssl.SSLError, OSError) as error:
        remedy = "name the CA's certificate in PEM, the file of the superlink's --ssl-ca-certfile"
        return Finding("TLS", FAULT, f"{file} cannot be used: {error}", remedy)


def _verified(address: Address) -> Finding:
    name, file = "TLS", address.certificates
    context = load_authority(file)
    if isinstance(context, Finding):
        return context
    context.set_alpn_protocols(["h2"])
    try:
        until = str(_handshake(address, context).get("notAfter", ""))
    except ssl.SSLCertVerificationError as error:
        return _refused(address, context, error)
    except (ssl.SSLError, OSError) as error:
        text = f"the handshake fails: {error}"
        return Finding(name, FAULT, text, "check that a gRPC server with TLS listens there")
    left = ssl.cert_time_to_seconds(until) - time.time()
    if left < _SOON:
        text = f"the superlink's certificate ends on {until}"
        return Finding(name, WARNING, text, "make a new one and start the superlink with it")
    return Finding(name, OK, f"verified with {file}, until {until}")


def _handshake(address: Address, context: ssl.SSLContext) -> dict[str, Any]:
    """Return the superlink's certificate."""
    with (
        _connect(address) as raw,
        context.wrap_socket(raw, server_hostname=address.host) as wrapped,
    ):
        return dict(wrapped.getpeercert() or {})


def _refused(
    address: Address, context: ssl.SSLContext, error: ssl.SSLCertVerificationError
) -> Finding:
    """Return why a certificate is not accepted."""
    code = error.verify_code
    if code == _EXPIRED:
        text, remedy = "the certificate has expired", "make a new one, or set this machine's clock"
    elif code == _NOT_YET:
        text, remedy = "the certificate is not valid yet", "set this machine's clock (NTP)"
    elif code in _OTHER_CA:
        text = f"the certificate was not signed by the CA of {address.certificates}"
        remedy = "name the CA's certificate that signed it, the superlink's --ssl-ca-certfile"
    elif code in _OTHER_HOST:
        context.check_hostname = False
        names = [value for _, value in _handshake(address, context).get("subjectAltName", ())]
        text = f"the certificate is for {few(names) or 'no host'}, not for {address.host}"
        remedy = "use one of these names, or make the certificate with "
        remedy += (
            f"subjectAltName={'IP' if _is_ip(address.host) else 'DNS'}:{address.host} (delete "
        )
        remedy += f"superlink/server.crt, superfednas keys CREDENTIALS --host {address.host} and "
        remedy += "--host for each of the others, start the superlink again)"
    else:
        text, remedy = f"not verified: {error.verify_message}", "make new certificates"
    return Finding("TLS", FAULT, text, remedy)


def _is_ip(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdecimal()


# What the superlink says of a key, and of its nodes


def load_key(path: Path) -> tuple[Finding, Any]:
    """Read a private key as flower-supernode does.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    tuple
        A finding, and the key; None if the key cannot be used.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    make = "make one: ssh-keygen -t ecdsa -b 384 -N '' -f NODE"
    other = f"name the file of the node's key, or {make}"
    try:
        private = load_ssh_private_key(path.expanduser().read_bytes(), None)
    except OSError as error:
        return Finding("key", FAULT, f"{path} cannot be read: {error.strerror}", other), None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        text = f"{path} holds no ssh private key without a password"
        return Finding("key", FAULT, text, make), None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        return Finding("key", FAULT, f"{path} is not an elliptic-curve key", make), None
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = f"other users of this machine may read {path}"
        return Finding("key", WARNING, text, f"chmod 600 {path}"), private
    return Finding("key", OK, f"{path} can be used"), private


def _ask_fleet(address: Address, private: Any) -> list[Finding]:
    """Ask whether this is the Fleet API, and whether it knows a key.

    Whether keys must be registered cannot be found out without registering one.
    """
    answer = activation(address, private)
    if not _is_answer(answer):
        return [_no_answer(address, answer)]
    code, details = answer.code().name, str(answer.details())
    if private is None and code == "UNAUTHENTICATED":
        return [Finding(f"{address.api} {address.target}", OK, "answers; no key was named")]
    if code == "INVALID_ARGUMENT":
        return [Finding("key", OK, "known to the superlink")]
    if code == "FAILED_PRECONDITION":
        remedy = "with --enable-supernode-auth there: superfednas register CREDENTIALS, and where "
        remedy += "the key was revoked, a new one first; without: start the node without a key"
        return [Finding("key", FAULT, "not known to the superlink", remedy)]
    if code == "UNAUTHENTICATED" and "timestamp" in details:
        remedy = "set both clocks by NTP"
        return [Finding("key", FAULT, "the clocks of node and superlink differ", remedy)]
    return [_no_answer(address, answer)]


def _ask_control(address: Address, private: Any) -> list[Finding]:
    """Ask which nodes there are, and which has a key."""
    answer = nodes(address)
    if not _is_answer(answer):
        return [_no_answer(address, answer)]
    if not hasattr(answer, "nodes_info"):
        text = "the superlink requires a login"
        return [Finding("nodes", WARNING, text, "flwr login, then flwr supernode list")]
    states = [node.status for node in answer.nodes_info if node.status != REVOKED]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    found = [Finding("nodes", OK, counts or "none yet")]
    if private is not None:
        public = key_bytes(private.public_key())
        own = [node for node in answer.nodes_info if node.public_key == public]
        found.append(_node(own[-1].status if own else ""))
    return found


def _node(status: str) -> Finding:
    if not status:
        remedy = "superfednas register CREDENTIALS, before the node is started"
        return Finding("node of the key", FAULT, "not registered", remedy)
    if status == REVOKED:
        text = "the key was revoked, and this superlink never takes it again"
        remedy = "if the node may return: superfednas revoke, keys and register, for a new key"
        return Finding("node of the key", FAULT, text, remedy)
    remedy = ""
    if status == "online":
        remedy = "if it has just been killed, start it again 60 s later, when its lease has ended"
    return Finding("node of the key", OK, status, remedy)


def _question(api: str, address: Address) -> Any:
    return activation(address) if api == FLEET else nodes(address)


def _is_answer(answer: Any) -> bool:
    """Return whether it was the expected API that answered, whatever the answer."""
    if hasattr(answer, "nodes_info"):
        return True
    return answer.code().name in _ANSWERS and answer.details() != _INNER


def _no_answer(address: Address, answer: Any) -> Finding:
    code, details = answer.code().name, str(answer.details())
    if code == "UNIMPLEMENTED" or details == _INNER:
        return _another_service(address)
    text = f"no answer by gRPC: {code} {details:.200}"
    remedy = "check the superlink's own log, and look for a proxy between"
    return Finding(f"{address.api} {address.target}", FAULT, text, remedy)


def _another_service(address: Address) -> Finding:
    """Say what listens there instead of the expected API."""
    other = CONTROL if address.api == FLEET else FLEET
    answer, listens = _question(other, address), "another service"
    if _is_answer(answer):
        listens = f"the {other}"
    elif answer.details() == _INNER:
        listens = "an API for Flower's own programs (by default ports 9091 and 9094)"
    text = f"{listens} listens there, not the {address.api}"
    remedy = f"name the port of the {address.api}, by default {DEFAULT_PORT[address.api]}: "
    return Finding(f"{address.api} {address.target}", FAULT, text, remedy + _FOR[address.api])
