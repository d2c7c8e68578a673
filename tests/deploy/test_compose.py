"""The compose files: who is in which network, and what listens where in it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compose import PLAIN, TLS, services
from tests.support.processes import ROOT

pytestmark = pytest.mark.attack
CONTROL, SERVERAPPIO, CLIENTAPPIO = "control", "serverappio", "clientappio"
AT_HOME = "127.0.0.1"


def listens(service: dict[str, Any], api: str) -> str | None:
    """Return the address that a service's options bind an API to."""
    option = f"--{api}-api-address="
    return next((w.removeprefix(option) for w in service["command"] if w.startswith(option)), None)


@pytest.mark.parametrize("files", [PLAIN, TLS], ids=["plain", "tls"])
def test_only_the_operators_reach_the_control_api(files: list[str]) -> None:
    """It listens on a loopback that no node shares, whoever else is in the nodes' network."""
    found = services(files)
    kinds: dict[str, set[str]] = {}
    for name, service in found.items():
        program, *words = service["command"]
        networks, mode = service.get("networks"), service.get("network_mode")
        assert "ports" not in service and mode != "host"
        if program == "flower-superlink":
            kind = "superlink"
            assert (networks, mode) == (["nodes"], None)
            assert listens(service, CONTROL) == f"{AT_HOME}:9093"
            assert listens(service, SERVERAPPIO) == f"{AT_HOME}:9091"
            assert "127.0.0.1', 9093" in service["healthcheck"]["test"][-1]
        elif words[:1] == ["node"]:
            kind = "node"
            assert (networks, mode) == (["nodes"], None)
            assert "--superlink=superlink:9092" in words
            assert (listens(service, CLIENTAPPIO) or AT_HOME).startswith(AT_HOME)
        elif any(word.startswith("--superlink=") for word in words):
            kind = "operator"
            assert (networks, mode) == (None, "service:superlink")
            assert f"--superlink={AT_HOME}:9093" in words
        else:
            kind = "nobody"
            assert (networks, mode) == (None, "none")
        kinds.setdefault(kind, set()).add(name)
    assert kinds["superlink"] == {"superlink"} and kinds["node"] == {"sensor", "phone", "hub"}
    assert kinds["operator"] == {"runner"} | ({"register"} if files == TLS else set())
    assert kinds["nobody"] == {"folders"} | ({"keys"} if files == TLS else set())


def test_the_server_certificate_names_where_it_is_asked() -> None:
    command = services(TLS)["keys"]["command"]
    hosts = {word.removeprefix("--host=") for word in command if word.startswith("--host=")}
    assert hosts == {"superlink", AT_HOME}


def test_every_network_that_is_named_is_there() -> None:
    for file in TLS:
        text = yaml.safe_load(Path(ROOT, file).read_text())
        assert set(text.get("networks", {})) == ({"nodes"} if file in PLAIN else set())
