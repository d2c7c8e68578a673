"""Credentials: who can read what, what stays, and what a TLS client says of the certificate."""

import datetime
import ipaddress
import json
import socket
import ssl
import stat
import threading
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from superfednas import cli
from superfednas.common.files import write_whole
from superfednas.deploy.fleet.credentials import Credentials, CredentialsError, make_credentials
from tests.support.processes import ROOT

HOSTS = ["localhost", "127.0.0.1", "lab.example"]
SECRET = {"authority/ca.key", "superlink/server.key", "node-a/node.key", "node-b/node.key"}
PUBLIC = {"public/ca.crt", "public/a.pub", "public/b.pub", "superlink/ca.crt"} | {
    f"node-{name}/ca.crt" for name in "ab"
}


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def made(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path / "c", HOSTS, ["a", "b"])


def test_everybody_gets_one_folder_and_only_owners_can_read_keys(made: Credentials) -> None:
    found = content(made.folder)
    assert set(found) == SECRET | PUBLIC | {"superlink/server.crt"}
    assert {name for name, text in found.items() if b"PRIVATE KEY" in text} == SECRET
    for name in found:
        mode = stat.S_IMODE((made.folder / name).stat().st_mode)
        assert mode & 0o077 == 0 if name in SECRET else mode == 0o644, (name, oct(mode))
    for name in (".", "authority", "superlink", "node-a", "node-b"):
        assert stat.S_IMODE((made.folder / name).stat().st_mode) == 0o700, name
    assert sorted(str(path.relative_to(made.folder)) for path in made.made) == sorted(found)
    assert made.kept == []


def test_a_key_is_never_readable_by_others_not_even_while_it_is_written(tmp_path: Path) -> None:
    stale = tmp_path / "key.part"  # left by a kill, and readable
    stale.touch(0o644)
    write_whole(tmp_path / "key", b"secret", overwrite=False, mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "key", b"other", overwrite=False, mode=0o600)
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_the_same_call_again_changes_nothing(made: Credentials) -> None:
    before = content(made.folder)
    again = make_credentials(made.folder, HOSTS, ["b", "a"])
    assert content(made.folder) == before
    assert again.made == []
    assert sorted(again.kept) == sorted(made.made)
    assert again.valid_until == made.valid_until


def test_a_further_node_leaves_the_others_alone(made: Credentials) -> None:
    before = content(made.folder)
    more = make_credentials(made.folder, ["localhost"], ["c"])
    after = content(made.folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"node-c/node.key", "node-c/ca.crt", "public/c.pub"}
    assert len(more.made) == 3
    assert set(more.public_keys()) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "lost", ["public/ca.crt", "superlink/ca.crt", "superlink/server.crt", "public/a.pub"]
)
def test_what_is_lost_is_made_again_from_the_same_keys(made: Credentials, lost: str) -> None:
    before = content(made.folder)
    (made.folder / lost).unlink()
    if lost == "public/ca.crt":  # its copies would not be the new one
        for copy in made.folder.glob("*/ca.crt"):
            copy.unlink()
    make_credentials(made.folder, HOSTS, ["a", "b"])
    after = content(made.folder)
    assert set(after) == set(before)
    assert {name: after[name] for name in SECRET} == {name: before[name] for name in SECRET}


def test_a_key_that_has_gone_to_its_node_is_not_made_twice(made: Credentials) -> None:
    for path in (made.folder / "node-a").iterdir():
        path.unlink()
    (made.folder / "node-a").rmdir()
    before = content(made.folder)
    assert make_credentials(made.folder, HOSTS, ["a"]).made == []
    assert content(made.folder) == before


def test_an_authority_kept_elsewhere_is_needed_only_to_sign(made: Credentials) -> None:
    (made.folder / "authority" / "ca.key").unlink()
    make_credentials(made.folder, HOSTS, ["a", "c"])
    (made.folder / "superlink" / "server.crt").unlink()
    with pytest.raises(CredentialsError, match=r"ca\.key' is not there and is needed to sign"):
        make_credentials(made.folder, HOSTS, [])


def test_certificates_say_what_they_are_for(made: Credentials) -> None:
    authority = x509.load_pem_x509_certificate(made.authority_certificate.read_bytes())
    server = x509.load_pem_x509_certificate((made.folder / "superlink/server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca and constraints.path_length == 0
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "lab.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    left = made.valid_until - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(364) < left <= datetime.timedelta(365)
    assert authority.not_valid_after_utc > made.valid_until


def test_nodes_keys_are_those_that_flower_takes(made: Credentials) -> None:
    private = serialization.load_ssh_private_key(
        (made.folder / "node-a/node.key").read_bytes(), None
    )
    public = serialization.load_ssh_public_key(made.public_keys()["a"].read_bytes())
    assert private.public_key() == public
    assert public.curve.name == "secp384r1"
    assert made.public_keys()["a"].read_bytes() != made.public_keys()["b"].read_bytes()


def greet(made: Credentials, trust: Path, name: str) -> str:
    """Return the TLS version that a client agrees on with a server of these credentials."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = made.folder / "superlink"
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            with there, server.wrap_socket(there, server_side=True) as encrypted:
                encrypted.recv(1)
        except (ssl.SSLError, ConnectionError):
            pass  # the client has refused

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cafile=trust)
    try:
        with here, client.wrap_socket(here, server_hostname=name) as encrypted:
            encrypted.send(b"x")
            return encrypted.version() or ""
    finally:
        thread.join()


@pytest.mark.parametrize("name", HOSTS)
def test_a_client_trusts_the_server_by_each_of_its_names(made: Credentials, name: str) -> None:
    assert greet(made, made.folder / "node-a" / "ca.crt", name) == "TLSv1.3"


def test_a_client_refuses_another_name_and_another_authority(
    made: Credentials, tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        greet(made, made.authority_certificate, "other.example")
    other = make_credentials(tmp_path / "other", HOSTS, [])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        greet(made, other.authority_certificate, "localhost")


@pytest.mark.parametrize(
    ("hosts", "nodes", "words"),
    [
        ([], [], "at least one host"),
        (["lab.example:9092"], [], "host = 'lab.example:9092': must be a host name or an IP"),
        (["localhost"], ["../a"], r"node = '\.\./a': must be letters"),
        (["localhost", "new.example", "10.0.0.1"], [], r"does not name new\.example, 10\.0\.0\.1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    made: Credentials, hosts: list[str], nodes: list[str], words: str
) -> None:
    before = content(made.folder)
    with pytest.raises(CredentialsError, match=words):
        make_credentials(made.folder, hosts, nodes)
    assert content(made.folder) == before


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ("superlink/server.crt", "is not signed by"),
        ("superlink/server.key", "belongs to another key"),
        ("superlink/ca.crt", r"ca\.crt' is not the same as"),
        ("public/a.pub", "is not the public part of"),
    ],
)
def test_files_of_another_deployment_are_refused(
    made: Credentials, tmp_path: Path, taken: str, words: str
) -> None:
    other = make_credentials(tmp_path / "other", HOSTS, ["a"])
    (made.folder / taken).write_bytes((other.folder / taken).read_bytes())
    with pytest.raises(CredentialsError, match=words):
        make_credentials(made.folder, HOSTS, ["a"])


def test_a_key_that_others_could_read_is_refused(made: Credentials) -> None:
    (made.folder / "node-a" / "node.key").chmod(0o644)
    with pytest.raises(CredentialsError, match=r"can be read by others \(mode 644\)"):
        make_credentials(made.folder, HOSTS, ["a"])


def test_a_file_that_is_no_key_is_refused(made: Credentials) -> None:
    (made.folder / "authority" / "ca.key").write_text("PRIVATE KEY")
    (made.folder / "superlink" / "server.crt").unlink()
    with pytest.raises(CredentialsError, match="is no elliptic-curve private key"):
        make_credentials(made.folder, HOSTS, [])


def test_folders_that_others_may_enter_are_closed(tmp_path: Path) -> None:
    # As mounted volumes are: there before the keys, and open.
    for name in ("authority", "superlink", "node-a"):
        (tmp_path / name).mkdir(mode=0o755)
    make_credentials(tmp_path, HOSTS, ["a"])
    for name in ("authority", "superlink", "node-a"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_the_verb_says_what_was_made_and_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["keys", str(tmp_path / "c"), "--host", "localhost", "--node", "a", "--json"]
    cli.app(call, standalone_mode=False)
    first = json.loads(capsys.readouterr().out)
    cli.app([*call, "--node", "b"], standalone_mode=False)
    second = json.loads(capsys.readouterr().out)
    assert first["kept"] == [] and len(first["made"]) == 8
    assert sorted(second["kept"]) == sorted(first["made"])
    assert [Path(path).name for path in second["made"]] == ["ca.crt", "node.key", "b.pub"]
    assert second["server_certificate_until"] == first["server_certificate_until"]


def test_registering_a_node_that_has_no_key_is_refused(made: Credentials) -> None:
    with pytest.raises(ValueError, match=r"node = 'c': .* has keys of a, b"):
        cli.app(["register", str(made.folder), "--node", "c"], standalone_mode=False)


def test_no_credentials_get_into_an_image_or_a_commit() -> None:
    # What is not named here stays out of the image.
    first, *rest = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    named = {line.removeprefix("!") for line in rest if line.startswith("!")}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packaged = set(wheel["targets"]["wheel"]["only-include"])
    assert named == packaged | {"pyproject.toml", "README.md", "LICENSE"}
    assert "/credentials/" in (ROOT / ".gitignore").read_text().splitlines()
