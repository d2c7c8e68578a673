"""The compose files' programs in network namespaces: what a neighbour of the nodes can reach.

As root, with iproute2.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.compose import PLAIN, services
from tests.support.namespaces import Machines, machines, unavailable
from tests.support.processes import BIN, ROOT, environment, process, wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.attack,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
SUPERLINK, SENSOR, NEIGHBOUR = range(3)
SERVERAPPIO, FLEET, CONTROL, CLIENTAPPIO = range(9091, 9095)


def reaches(network: Machines, where: int, host: str, port: int) -> bool:
    """Say whether a connection from a namespace is accepted."""
    code = f"import socket; socket.create_connection(({host!r}, {port}), 5)"
    command = network.command(where, [sys.executable, "-c", code])
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_in_the_nodes_network_nothing_listens_but_the_fleet_api(tmp_path: Path) -> None:
    found = services(PLAIN)
    with machines(3) as network, contextlib.ExitStack() as stack:
        hosts = [f"{network.network}.{number + 1}" for number in range(3)]
        for number, name in ((SUPERLINK, "superlink"), (SENSOR, "sensor")):
            program, *options = found[name]["command"]
            options = [o.replace("=superlink:", f"={hosts[SUPERLINK]}:") for o in options]
            line = network.command(number, [str(BIN / program), *options])
            home = tmp_path / name
            home.mkdir()
            env = environment(home, PYTHONPATH=str(ROOT))
            stack.enter_context(process(line, env, home, home / "log"))
            if number == SUPERLINK:
                wait_until(
                    lambda: reaches(network, SUPERLINK, "127.0.0.1", CONTROL), 60, "its start"
                )
        log = tmp_path / "sensor" / "log"
        wait_until(lambda: "SuperNode ID" in log.read_text(), 60, "the node's coming in")
        assert reaches(network, SENSOR, "127.0.0.1", CLIENTAPPIO)
        open_ = {
            (number, port)
            for number in (SUPERLINK, SENSOR)
            for port in (SERVERAPPIO, FLEET, CONTROL, CLIENTAPPIO)
            if reaches(network, NEIGHBOUR, hosts[number], port)
        }
    assert open_ == {(SUPERLINK, FLEET)}
