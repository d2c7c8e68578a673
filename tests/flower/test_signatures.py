"""Signatures of apps: what Flower's own node makes of them, and of what is none."""

import hashlib
import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.typing import Fab
from hypothesis import given
from hypothesis import strategies as st

from superfednas.deploy.fleet.admission import Entrance
from superfednas.deploy.fleet.credentials import make_credentials
from superfednas.flower.refusal import RefusedError
from superfednas.flower.signatures import (
    SIGNATURE,
    Carrying,
    TrustError,
    check_trusted,
    deliver_refusals,
    key_id,
    read_signing_key,
    sign,
    sign_app,
    verifications,
)
from tests.support.processes import ROOT

pytestmark = pytest.mark.attack
SUPERNODE = importlib.import_module("flwr.supernode.start_client_internal")
OURS, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))


def trusted(*keys: Ed25519PrivateKey) -> dict[str, str]:
    return {
        key_id(key.public_key().public_bytes_raw()): key.public_key()
        .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        .decode()
        for key in keys
    }


def runs(content: bytes, text: object, trust: dict[str, str]) -> bool:
    """Say whether Flower's node would run an app that came with a text."""
    run = SimpleNamespace(override_config={SIGNATURE: text})
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    carrying = Carrying(lambda run_id: run, lambda fab_hash, run_id: fab)
    assert carrying.get_run(5) is run
    found = carrying.get_fab(fab.hash_str, 5)
    assert fab.verifications == {} and found.content is content
    # As Flower's loop asks, in this order.
    return bool(found.verifications.get("valid_license", "")) and SUPERNODE._verify_fab(
        found, trust
    )


@given(content=st.binary(max_size=100), other=st.binary(max_size=100))
def test_an_app_runs_where_its_signer_is_trusted_and_only_as_it_was_signed(
    content: bytes, other: bytes
) -> None:
    text = sign(content, OURS)
    assert runs(content, text, trusted(OURS)) and runs(content, text, trusted(OTHER, OURS))
    assert not runs(content, text, trusted(OTHER))
    assert runs(other, text, trusted(OURS)) == (other == content)
    # Another's signature under a trusted name.
    (name,) = trusted(OURS)
    forged = f"{name}:{sign(content, OTHER).partition(':')[2]}"
    assert not runs(content, forged, trusted(OURS))


@given(
    text=st.none()
    | st.integers()
    | st.text(max_size=200)
    | st.from_regex(r"\Afpk_[0-9a-f]{16}:[0-9]{1,30}:[A-Za-z0-9_=+/-]{80,90}\Z")
    | st.builds(
        lambda at, character: sign(b"app", OURS)[:at] + character + sign(b"app", OURS)[at + 1 :],
        st.integers(0, 117),
        st.characters(),
    )
)
def test_what_is_no_signature_is_refused_and_never_ends_the_node(text: object) -> None:
    """Whoever may submit writes it."""
    assert not runs(b"another app", text, trusted(OURS))
    for value in verifications(text).values():
        assert value == "Valid" or json.loads(value)


def test_what_came_with_the_app_stays() -> None:
    fab = Fab("h", b"app", {"fpk_hub": "{}"})
    run = SimpleNamespace(override_config={})
    carrying = Carrying(lambda run_id: run, lambda fab_hash, run_id: fab)
    carrying.get_run(1)
    assert carrying.get_fab("h", 1).verifications == {"fpk_hub": "{}"}


def test_a_refusal_is_sent_although_nobody_has_worked_on_the_message() -> None:
    store = importlib.import_module("flwr.supercore.object_store").ObjectStoreFactory()
    state = (
        importlib.import_module("flwr.supernode.nodestate")
        .NodeStateFactory(objectstore_factory=store)
        .state()
    )
    with pytest.raises(ValueError):
        state.get_message_processing_duration(message_id="a")
    for _ in range(2):
        deliver_refusals(state)
        assert state.get_message_processing_duration(message_id="a") == 0.0


def test_an_app_is_signed_as_flwr_run_builds_it(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(ROOT / "pyproject.toml", app)
    (app / "superfednas").mkdir()
    (app / "superfednas" / "app.py").write_text("client_app = server_app = None\n")
    (app / "README.md").touch()
    (app / "LICENSE").touch()
    content = importlib.import_module("flwr.cli.build").build_fab_from_disk(app)
    assert runs(content, sign_app(app, OURS), trusted(OURS))
    (app / "superfednas" / "app.py").write_text("client_app = server_app = 1\n")
    assert not runs(content, sign_app(app, OURS), trusted(OURS))


# Files


def test_operators_get_keys_and_nodes_a_file_of_those_they_trust(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_credentials(folder, ["a"], ["kitchen"], ["ada"])
    file, key = folder / "public" / "trusted.yaml", folder / "operator-ada" / "signing.key"
    assert key.stat().st_mode & 0o777 == 0o600 and key.parent.stat().st_mode & 0o777 == 0o700
    first = file.read_text()
    again = make_credentials(folder, ["a"], [], ["ada", "bob"])
    assert file.read_text().startswith(first) and file in again.made
    content = b"app"
    trust = SUPERNODE_CLI._try_obtain_trusted_entities(file)
    SUPERNODE_CLI._validate_public_keys_ed25519(trust)
    check_trusted(file)
    for name in ("ada", "bob"):
        signer = read_signing_key(folder / f"operator-{name}" / "signing.key")
        assert runs(content, sign(content, signer), trust)
    assert not runs(content, sign(content, OURS), trust)
    # An operator who has taken the key away keeps the line.
    shutil.rmtree(folder / "operator-ada")
    before = file.read_text()
    make_credentials(folder, ["a"], [], ["ada"])
    assert file.read_text() == before and not (folder / "operator-ada").exists()
    # Another key under a name that is taken is not trusted by the way.
    shutil.copytree(folder / "operator-bob", folder / "operator-ada")
    with pytest.raises(ValueError, match="ada"):
        make_credentials(folder, ["a"], [], ["ada"])
    assert file.read_text() == before


SUPERNODE_CLI = importlib.import_module("flwr.supernode.cli.flower_supernode")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "a", "fpk_1: ssh-ed25519 AAAA", "fpk_1: 5", "a: b: c", "1: {}", "\x00"],
)
def test_a_node_that_would_trust_everybody_or_nobody_does_not_start(
    text: str, tmp_path: Path
) -> None:
    """Flower's own runs every app where the file is an empty mapping."""
    file = tmp_path / "trusted.yaml"
    file.write_text(text)
    with pytest.raises(RefusedError) as refused:
        Entrance.of(["--insecure", "--superlink", "a:9092", f"--trusted-entities={file}"])
    assert refused.value.code == 2
    with pytest.raises(RefusedError):
        Entrance.of(["--insecure", "--superlink", "a:9092", f"--trusted-entities={file}.gone"])


def test_a_signing_key_is_a_private_file_with_such_a_key(tmp_path: Path) -> None:
    made = make_credentials(tmp_path / "keys", ["a"], ["kitchen"], ["ada"])
    key = made.folder / "operator-ada" / "signing.key"
    read_signing_key(key)
    for file in (made.folder / "node-kitchen" / "node.key", made.authority_certificate, tmp_path):
        with pytest.raises(TrustError):
            read_signing_key(file)
    key.chmod(0o644)
    with pytest.raises(TrustError):
        read_signing_key(key)
