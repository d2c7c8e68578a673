"""Registering and revoking by name, at a SuperLink that is played here."""

import itertools
import json
from pathlib import Path

import pytest

from superfednas import cli
from superfednas.deploy.fleet import registration
from superfednas.deploy.fleet.credentials import Credentials, make_credentials
from superfednas.deploy.fleet.superlink import SuperLink, SuperLinkError


class Played(SuperLink):
    """A SuperLink that answers as Flower's does: ids by key, and no key a second time."""

    def __init__(self) -> None:
        super().__init__("lab.example:9093")
        self.keys: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self._ids = itertools.count(7001)

    def __enter__(self) -> "Played":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def nodes(self) -> dict[str, str]:
        return dict(self.states)

    def register(self, public_key: Path) -> str | None:
        if public_key.read_text() in self.keys:
            return None
        node = self.keys[public_key.read_text()] = str(next(self._ids))
        self.states[node] = "registered"
        return node

    def unregister(self, node: str) -> None:
        assert self.states[node] != "unregistered"
        self.states[node] = "unregistered"


@pytest.fixture
def made(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path / "c", ["lab.example"], ["shed", "yard"])


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr("superfednas.deploy.fleet.superlink.SuperLink", lambda *_: played)

    def find(link: Played, key: Path) -> tuple[str, str] | None:
        node = link.keys.get(key.read_text())
        return None if node is None else (node, link.states[node])

    monkeypatch.setattr(registration, "_find_by_key", find)
    return played


def verb(made: Credentials, name: str, *nodes: str, json_: bool = False) -> None:
    options = [f"--node={node}" for node in nodes] + ["--json"] * json_
    cli.app([name, str(made.folder), *options], standalone_mode=False)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_id_is_kept_once_and_told_again(
    made: Credentials, link: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(made, "register")
    verb(made, "register")
    assert capsys.readouterr().out.splitlines() == [
        "shed: registered, node 7001",
        "yard: registered, node 7002",
        "shed: was registered already, node 7001",
        "yard: was registered already, node 7002",
    ]
    assert (made.folder / "public/yard.id").read_text().startswith("7002 ecdsa-sha2-nistp384 ")


def test_nothing_is_revoked_where_one_of_the_nodes_is_not_known(
    made: Credentials, link: Played
) -> None:
    verb(made, "register", "shed")
    before = names(made.folder)
    with pytest.raises(SuperLinkError) as refusal:
        verb(made, "revoke", "shed", "yard")
    assert str(refusal.value) == (
        "yard is not registered at lab.example:9093, and nothing was changed: name the SuperLink "
        f"that it takes part in, or move '{made.folder}/public/yard.pub' away if there is none"
    )
    with pytest.raises(ValueError, match=r"node = 'barn': .* has keys of shed, yard$"):
        verb(made, "revoke", "shed", "barn")
    assert link.nodes() == {"7001": "registered"}
    assert names(made.folder) == before


def test_what_was_revoked_by_its_id_is_told_apart(
    made: Credentials, link: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(made, "register", "shed")
    link.unregister("7001")
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"^shed: the key was revoked, and a SuperLink never"):
        verb(made, "register", json_=True)
    assert json.loads(capsys.readouterr().out) == {
        "registered": ["yard"],
        "known": [],
        "revoked": ["shed"],
        "nodes": {"shed": "7001", "yard": "7002"},
    }
    verb(made, "revoke", "shed")
    assert "shed: revoked, node 7001 (it was unregistered)" in capsys.readouterr().out
    away = {"shed.pub", "shed.id", "node-shed", "node-shed/node.key", "node-shed/ca.crt"}
    assert names(made.folder / "revoked/shed-7001") == away
    with pytest.raises(ValueError, match=r"has keys of yard; one of shed was revoked and is in"):
        verb(made, "revoke", "shed")


def test_an_id_that_was_kept_for_an_earlier_key_is_not_taken_for_this_ones(
    made: Credentials, link: Played
) -> None:
    verb(made, "register", "shed")
    link.unregister("7001")  # and the key was thrown away by hand, all but its id
    for name in ("public/shed.pub", "node-shed/node.key"):
        (made.folder / name).unlink()
    make_credentials(made.folder, ["lab.example"], ["shed"])
    assert link.register(made.folder / "public/shed.pub") == "7002"
    verb(made, "revoke", "shed")
    assert link.nodes() == {"7001": "unregistered", "7002": "unregistered"}


@pytest.mark.parametrize("text", ["", "7", "\n", "x" * 9000])
def test_a_torn_id_is_asked_for(made: Credentials, link: Played, text: str) -> None:
    verb(made, "register", "shed")
    (made.folder / "public/shed.id").write_text(text)
    verb(made, "revoke", "shed")
    assert link.nodes() == {"7001": "unregistered"}


def test_where_only_the_public_part_is_the_public_part_is_put_away(
    made: Credentials, link: Played
) -> None:
    verb(made, "register", "shed")
    (made.folder / "node-shed").rename(made.folder.parent / "the-node")
    verb(made, "revoke", "shed")
    assert names(made.folder / "revoked/shed-7001") == {"shed.pub", "shed.id"}


def test_a_folder_that_is_read_only_keeps_nobody_out_and_nobody_in(
    made: Credentials,
    link: Played,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(registration, "write_whole", read_only)
    monkeypatch.setattr(Path, "rename", read_only)
    verb(made, "register", "shed")
    assert link.nodes() == {"7001": "registered"}
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "shed: its id is not kept here: [Errno 30] Read-only file system"
    with pytest.raises(ValueError, match=r"^shed is revoked, but its keys could not be put away"):
        verb(made, "revoke", "shed")
    assert link.nodes() == {"7001": "unregistered"}
    assert (made.folder / "public/shed.pub").exists()
