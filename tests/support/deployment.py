"""A SuperLink with TLS and node authentication, and nodes that wish to join it: real processes."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from superfednas.deploy.fleet.credentials import Credentials, make_credentials
from superfednas.deploy.fleet.superlink import SuperLink, SuperLinkError
from tests.support.processes import BIN, free_ports, process


class Deployment:
    """A SuperLink, and what it takes to start nodes that wish to join it."""

    def __init__(self, home: Path, env: dict[str, str], names: Sequence[str]) -> None:
        self.home, self.env = home, env
        self.credentials = make_credentials(home / "keys", ["127.0.0.1"], names)
        self.serverappio, self.fleet, self.control = free_ports(3)
        self.superlink = SuperLink(
            f"127.0.0.1:{self.control}", self.credentials.authority_certificate
        )

    def started(self) -> contextlib.AbstractContextManager[int]:
        keys = self.credentials.folder / "superlink"
        command = [
            str(BIN / "flower-superlink"),
            f"--ssl-ca-certfile={keys / 'ca.crt'}",
            f"--ssl-certfile={keys / 'server.crt'}",
            f"--ssl-keyfile={keys / 'server.key'}",
            "--enable-supernode-auth",
            f"--serverappio-api-address=127.0.0.1:{self.serverappio}",
            f"--fleet-api-address=127.0.0.1:{self.fleet}",
            f"--control-api-address=127.0.0.1:{self.control}",
        ]
        return process(command, self.env, self.home, self.home / "superlink.log")

    def node(
        self,
        name: str,
        *trust: str,
        program: Sequence[str] = (str(BIN / "flower-supernode"),),
        part: tuple[int, int] = (0, 1),
        log: str = "",
    ) -> contextlib.AbstractContextManager[int]:
        (port,) = free_ports(1)
        command = [
            *program,
            *trust,
            f"--superlink=127.0.0.1:{self.fleet}",
            f"--clientappio-api-address=127.0.0.1:{port}",
            f'--node-config=name="{name}" partition-id={part[0]} num-partitions={part[1]}',
        ]
        return process(command, self.env, self.home, self.log(log or name))

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def has_said(self, name: str, words: str) -> bool:
        return words in self.log(name).read_text()


def trust(credentials: Credentials, node: str) -> list[str]:
    """Return a node's options: whom it trusts, and its own key."""
    folder = credentials.folder / f"node-{node}"
    return [
        f"--root-certificates={folder / 'ca.crt'}",
        f"--auth-supernode-private-key={folder / 'node.key'}",
    ]


def answers(superlink: SuperLink) -> bool:
    """Say whether a SuperLink has started."""
    try:
        superlink.online()
    except SuperLinkError:
        return False
    return True
