"""A node is revoked by its name, at a real SuperLink with TLS and node authentication."""

import json
import stat
from collections.abc import Iterator

import pytest

from superfednas import cli
from superfednas.deploy.doctor.finding import FAULT
from superfednas.deploy.doctor.superlink import superlink as look
from superfednas.deploy.fleet import registration
from superfednas.deploy.fleet.credentials import make_credentials
from superfednas.deploy.fleet.superlink import SuperLinkError
from superfednas.flower.api import CONTROL, Address
from tests.support.deployment import Deployment, answers, trust
from tests.support.faulty import NODE
from tests.support.processes import environment, wait_until

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("revoke")
    with pytest.MonkeyPatch.context() as patch:
        made = Deployment(home, environment(home), ["kitchen", "garage", "attic", "cellar"])
        for key, value in made.env.items():
            patch.setenv(key, value)
        with made.started(), made.superlink:
            wait_until(lambda: answers(made.superlink), 120, "an answer of the SuperLink")
            yield made


def verb(deployment: Deployment, name: str, *nodes: str) -> list[str]:
    """Return the arguments of a verb about nodes of the deployment."""
    options = [f"--node={node}" for node in nodes]
    address = f"--superlink={deployment.superlink.address}"
    return [name, str(deployment.credentials.folder), address, *options]


def told(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    cli.app(arguments, standalone_mode=False)
    return capsys.readouterr().out


def test_a_revoked_node_is_refused_from_its_next_question_on(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    link, folder = deployment.superlink, deployment.credentials.folder
    said = told(capsys, verb(deployment, "register", "kitchen", "garage"))
    (kitchen, garage) = (line.split("node ")[1] for line in said.splitlines())
    assert said == f"kitchen: registered, node {kitchen}\ngarage: registered, node {garage}\n"
    assert link.nodes() == {kitchen: "registered", garage: "registered"}
    kept = (folder / "public/garage.id").read_text().split()
    assert kept == [garage, *(folder / "public/garage.pub").read_text().split()]
    key = (folder / "node-garage/node.key").read_bytes()
    options = {name: trust(deployment.credentials, name) for name in ("kitchen", "garage")}
    with (
        deployment.node("kitchen", *options["kitchen"]),
        deployment.node("garage", *options["garage"], program=NODE),
    ):
        wait_until(lambda: link.nodes()[garage] == "online", 60, "the node's start")
        said = told(capsys, verb(deployment, "revoke", "garage"))
        away = folder / f"revoked/garage-{garage}"
        assert said.splitlines() == [
            f"garage: revoked, node {garage} (it was online)",
            f"garage: its keys here are now in {away}",
            "garage: left to do: on its machine, end the node and delete its node.key",
        ]
        assert link.nodes()[garage] == "unregistered"
        # It asks every 3 s, is refused, and ends itself.
        wait_until(lambda: deployment.has_said("garage", "terminated gracefully"), 30, "its end")
        wait_until(lambda: link.nodes()[kitchen] == "online", 30, "the other's staying")
    # Nothing is lost: all that was there is in one place, which only the owner may enter.
    assert {path.name for path in away.iterdir()} == {"garage.pub", "garage.id", "node-garage"}
    assert (away / "node-garage/node.key").read_bytes() == key
    assert stat.S_IMODE(away.stat().st_mode) == stat.S_IMODE(away.parent.stat().st_mode) == 0o700
    options["garage"][1] = f"--auth-supernode-private-key={away / 'node-garage/node.key'}"
    options["garage"][0] = f"--root-certificates={folder / 'public/ca.crt'}"
    with deployment.node("garage", *options["garage"], log="again"):
        unknown = "No SuperNode found with the given public key"
        wait_until(lambda: deployment.has_said("again", unknown), 60, "the refusal")
    at = Address(CONTROL, "127.0.0.1", deployment.control, folder / "public/ca.crt")
    doctors = look(at, away / "node-garage/node.key")[-1]
    assert doctors.state == FAULT and "was revoked" in doctors.found
    with pytest.raises(
        ValueError, match=r"'garage': .* has keys of attic, cellar, kitchen; one of"
    ):
        cli.app(verb(deployment, "revoke", "garage"), standalone_mode=False)
    # It comes back as another node, with another key.
    make_credentials(folder, ["127.0.0.1"], ["garage"])
    said = told(capsys, [*verb(deployment, "register", "garage"), "--json"])
    again = json.loads(said)["nodes"]["garage"]
    assert json.loads(said) == {
        "registered": ["garage"],
        "known": [],
        "revoked": [],
        "nodes": {"garage": again},
    }
    assert again != garage and link.nodes()[again] == "registered"


def test_without_a_kept_id_the_key_says_who_it_is(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, public = deployment.superlink, deployment.credentials.folder / "public"
    node = link.register(public / "attic.pub")  # as `flwr supernode register` does
    other = link.register(public / "cellar.pub")
    assert node and other
    (public / "attic.id").write_text(f"{other} {(public / 'cellar.pub').read_text()}")

    def another_flower(_: bytes) -> bytes:
        raise ImportError("no such module")

    with monkeypatch.context() as patch:
        patch.setattr(registration, "key_bytes", another_flower)
        with pytest.raises(SuperLinkError, match=r"'joined' in a run folder's log\.jsonl"):
            cli.app(verb(deployment, "revoke", "attic"), standalone_mode=False)
        said = told(capsys, verb(deployment, "register", "attic"))
        assert said == "attic: was registered already, node not known\n"
    assert link.nodes()[other] == link.nodes()[node] == "registered"
    (said,) = json.loads(told(capsys, [*verb(deployment, "revoke", "attic"), "--json"]))
    assert (said["node"], said["before"], said["problem"]) == (node, "registered", "")
    assert {id_: link.nodes()[id_] for id_ in (node, other)} == {
        node: "unregistered",
        other: "registered",
    }
