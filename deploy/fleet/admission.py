"""Reasons why a node cannot start or is not admitted, in one sentence each.

The node config, the options and the files they name are checked before anything connects. Messages
of the SuperLink are explained by :mod:`superfednas.deploy.doctor.faults`; if they are of no use,
the node runs the checks of ``superfednas doctor`` itself.
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from superfednas.client.node_config import EXAMPLE, NodeConfigError, check_node_config
from superfednas.deploy.doctor.faults import known_fault
from superfednas.deploy.doctor.finding import FAULT, Finding
from superfednas.deploy.doctor.superlink import load_authority, load_key, superlink
from superfednas.flower.api import FLEET, Address
from superfednas.flower.options import read_config, read_options
from superfednas.flower.refusal import RefusedError
from superfednas.flower.signatures import TrustError, check_trusted

_DOCTOR = "superfednas doctor --superlink"


def check_config_of(options: Sequence[str]) -> None:
    """Check the node config of a command line.

    Parameters
    ----------
    options
        Options of ``flower-supernode``.

    Raises
    ------
    RefusedError
        If it cannot be read, or one of its keys or values is invalid.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--node-config", default="")
    try:
        text = parser.parse_known_args(list(options))[0].node_config
    except argparse.ArgumentError as error:
        raise RefusedError(str(error), 2) from None
    try:
        config = read_config(text)
    except ValueError as error:
        raise RefusedError(
            f"the node config cannot be read ({error}): texts need quotes within quotes, as in "
            f"--node-config '{EXAMPLE}'",
            2,
        ) from None
    except (ImportError, AttributeError):
        return  # an unknown version of Flower: its own node runs, and reads this itself
    try:
        check_node_config(config)
    except NodeConfigError as error:
        raise RefusedError(str(error), 2) from None


@dataclass(frozen=True)
class Entrance:
    """The SuperLink as a node is told to reach it, and what the node can observe of it.

    Parameters
    ----------
    superlink
        ``HOST:PORT``.
    certificates
        The CA's certificate.
    key
        The node's private key.
    insecure
        Whether the connection is in plain text.
    """

    superlink: str
    certificates: Path | None
    key: Path | None
    insecure: bool

    @classmethod
    def of(cls, options: Sequence[str]) -> "Entrance":
        """Read a command line of ``flower-supernode``, and the files that it names.

        Raises
        ------
        RefusedError
            If options contradict each other, or a file cannot be used.
        """
        given = read_options(options)
        certificates, key = given.root_certificates, given.auth_supernode_private_key
        if given.insecure and certificates:
            raise RefusedError("--insecure contradicts --root-certificates: leave out one", 2)
        if given.insecure and key:
            raise RefusedError(
                "a key needs TLS: --root-certificates FILE in place of --insecure, or leave out "
                "--auth-supernode-private-key",
                2,
            )
        try:
            Address.parse(FLEET, given.superlink)
        except ValueError as error:
            raise RefusedError(f"--superlink: {error}", 2) from None
        if given.trusted_entities is not None:
            try:
                check_trusted(given.trusted_entities.expanduser())
            except TrustError as error:
                raise RefusedError(f"--trusted-entities: {error}", 2) from None
        found = cls(
            given.superlink,
            Path(certificates) if certificates else None,
            Path(key).expanduser() if key else None,
            given.insecure,
        )
        found._check_files()
        return found

    def why(self, said: str) -> str:
        """Explain a message of Flower, gRPC or the SuperLink, and name the remedy."""
        fault = known_fault(said)
        if fault is not None and not fault.remedy.startswith(_DOCTOR):
            return f"{fault.meaning} ({said.rstrip('.')}): {fault.remedy}"
        seen = self._look()
        if seen is not None:
            return f"{self.superlink}: {seen.found}: {seen.remedy}"
        return f"{fault.meaning if fault else said}: {self._doctor} may name the reason"

    def meanwhile(self) -> str:
        """Explain why the SuperLink cannot be reached yet."""
        seen = self._look()
        text = f"; {seen.found}: {seen.remedy}" if seen is not None else ""
        return (
            f"{self.superlink} has not let this node in yet, it goes on trying{text} "
            f"({self._doctor} looks again)"
        )

    @property
    def _doctor(self) -> str:
        words = [*_DOCTOR.split(), self.superlink]
        words += ["--root-certificates", str(self.certificates)] if self.certificates else []
        words += ["--key", str(self.key)] if self.key else []
        return shlex.join(words)

    def _check_files(self) -> None:
        found = [] if self.certificates is None else [load_authority(self.certificates)]
        found += [] if self.key is None else [load_key(self.key)[0]]
        for each in found:
            if isinstance(each, Finding) and each.state == FAULT:
                raise RefusedError(f"{each.found}: {each.remedy}")

    def _look(self) -> Finding | None:
        """Return the first fault that the doctor finds."""
        address = Address.parse(FLEET, self.superlink, self.certificates)
        try:
            found = superlink(address, self.key)
        except OSError:  # it disappeared between two checks
            return None
        seen = next((each for each in found if each.state == FAULT), None)
        if seen is not None and seen.name == "TLS" and not (self.insecure or self.certificates):
            text = "its certificate was not signed by a public authority, and no other was named"
            return Finding("TLS", FAULT, text, "--root-certificates FILE of its CA")
        return seen
