"""A SuperLink with TLS and node authentication, with real processes: who comes in, who does not."""

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from superfednas.deploy.fleet import pipeline
from superfednas.deploy.fleet.credentials import make_credentials
from superfednas.deploy.fleet.superlink import SuperLink, SuperLinkError
from superfednas.records.folder import RunFolder
from tests.support.deployment import Deployment, answers, trust
from tests.support.processes import BIN, ROOT, end, environment, free_ports, process, wait_until
from tests.support.rows import lines

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("tls")
    with pytest.MonkeyPatch.context() as patch:
        made = Deployment(home, environment(home), ["known", "unknown"])
        for key, value in made.env.items():
            patch.setenv(key, value)
        with made.started(), made.superlink:
            wait_until(lambda: answers(made.superlink), 120, "an answer of the SuperLink")
            yield made


def test_a_registered_node_trains_and_nobody_else_gets_in(deployment: Deployment) -> None:
    superlink, credentials = deployment.superlink, deployment.credentials
    assert superlink.register(credentials.public_keys()["known"])
    other = make_credentials(deployment.home / "other-keys", ["127.0.0.1"], ["known"])
    foreign = trust(other, "known")
    trusted = trust(credentials, "known")[0]
    unknown = "No SuperNode found with the given public key"
    refused = {
        # a key that was made for this SuperLink, but never registered
        "unregistered": (trust(credentials, "unknown"), unknown),
        "foreign": ([trusted, foreign[1]], unknown),  # a key of another deployment
        "keyless": ([trusted], "All SuperNodes must be registered via the CLI"),
        "plain": (["--insecure"], "Connection attempt failed, retrying"),
        # a node that trusts another authority refuses this SuperLink
        "stranger": (foreign, "CERTIFICATE_VERIFY_FAILED"),
    }
    with contextlib.ExitStack() as stack:
        for name, (options, _) in refused.items():
            stack.enter_context(deployment.node(name, *options))
        for name, (_, words) in refused.items():
            wait_until(functools.partial(deployment.has_said, name, words), 120, f"{name}: {words}")
        assert superlink.online() == 0
        stack.enter_context(deployment.node("known", *trust(credentials, "known")))
        assert superlink.wait_for_nodes(1, 120) == 1
        folder = deployment.home / "runs" / "run"
        settings = {"rounds": 1, "clients-per-round": 1, "assignment": "random", "local-steps": 2}
        pipeline.train(superlink, {**settings, "evaluate-every": 0, "min-nodes": 1}, folder)
        assert superlink.online() == 1
    (row,) = [row for row in lines(RunFolder.open(folder).rows()) if row["kind"] == "round"]
    assert [(c["client"], c["accepted"]) for c in row["clients"]] == [("known", True)]
    no_secret_outside(deployment)


def test_a_refused_node_says_in_one_sentence_why_and_ends(
    deployment: Deployment, tmp_path: Path
) -> None:
    keys, address = deployment.credentials, f"127.0.0.1:{deployment.fleet}"
    other = make_credentials(tmp_path / "other", ["127.0.0.1"], ["known"])
    foreign, trusted = trust(other, "known"), trust(keys, "known")[0]
    register = "superfednas register CREDENTIALS --superlink HOST:9093, then start the node"
    refused = {
        "unregistered": (trust(keys, "unknown"), "does not know the node's key", register),
        "foreign": ([trusted, foreign[1]], "does not know the node's key", register),
        "keyless": ([trusted], "admits only registered keys", "--auth-supernode-private-key"),
        "stranger": (foreign, "the certificate was not signed by the CA of", "--ssl-ca-certfile"),
        "public": ([], "not signed by a public authority", "--root-certificates FILE"),
        "operator": (
            [*trust(keys, "known"), f"--superlink=127.0.0.1:{deployment.control}"],
            "the Control API listens there, not the Fleet API",
            "by default 9092",
        ),
    }
    with contextlib.ExitStack() as stack:
        # Plain text fails as a SuperLink that is not there does: said once, and tried again.
        plain = stack.enter_context(node(tmp_path / "plain", deployment.env, address, "--insecure"))
        for name, (options, meaning, remedy) in refused.items():
            with node(tmp_path / name, deployment.env, address, *options) as running:
                assert running.wait(60) == 1, name
            said = sentences(tmp_path / name)
            assert len(said) == 1 and meaning in said[0] and remedy in said[0], said
            text = (tmp_path / name).read_text()
            assert "Traceback" not in text and "RpcError" not in text
            assert text.endswith(said[0] + "\n")
        wait_until(lambda: sentences(tmp_path / "plain"), 60, "a word of the node in plain text")
        assert plain.poll() is None
    (sentence,) = sentences(tmp_path / "plain")
    assert "it goes on trying; the superlink does not answer in plain text" in sentence
    assert f"superfednas doctor --superlink {address}" in sentence


def test_a_node_that_came_before_its_superlink_gets_in(tmp_path: Path) -> None:
    fleet, serverappio, control = free_ports(3)
    env, log = environment(tmp_path), tmp_path / "early"
    superlink = [
        *(str(BIN / "flower-superlink"), "--insecure"),
        f"--fleet-api-address=127.0.0.1:{fleet}",
        f"--serverappio-api-address=127.0.0.1:{serverappio}",
        f"--control-api-address=127.0.0.1:{control}",
    ]
    with node(log, env, f"127.0.0.1:{fleet}", "--insecure") as early:
        wait_until(lambda: sentences(log), 60, "a word of the node")
        with process(superlink, env, tmp_path, tmp_path / "superlink.log"):
            wait_until(lambda: "SuperNode ID" in log.read_text(), 60, "the node's coming in")
            early.terminate()
            assert early.wait(30) == 0
    (sentence,) = sentences(log)
    assert "it goes on trying; nobody listens there: start flower-superlink there" in sentence


@contextlib.contextmanager
def node(
    log: Path, env: dict[str, str], address: str, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run what `superfednas node` becomes for the length of a block; later options count."""
    command = [
        sys.executable,
        "-m",
        "superfednas.deploy.fleet.node",
        "0.5",
        f"--superlink={address}",
        *options,
    ]
    command += [f"--clientappio-api-address=127.0.0.1:{free_ports(1)[0]}"]
    command += ["--node-config=partition-id=0 num-partitions=1"]
    with log.open("w") as out:
        running = subprocess.Popen(
            command, env=env | {"PYTHONPATH": str(ROOT)}, cwd=log.parent, stdout=out, stderr=out
        )
    try:
        yield running
    finally:
        end(running.pid)
        running.wait(timeout=30)


def sentences(log: Path) -> list[str]:
    """Return what a node has said itself, whole lines only."""
    lines = log.read_text().splitlines(keepends=True)
    return [x[:-1] for x in lines if x.startswith("superfednas node: ") and x.endswith("\n")]


def no_secret_outside(deployment: Deployment) -> None:
    """Look for key material in all that was written: logs, run folders, Flower's own files."""
    keys = sorted(deployment.home.glob("*keys/**/*.key"))
    assert len(keys) == 7
    secrets = [b"PRIVATE KEY" + b"-----"]  # a PEM header; docs may speak of it
    for key in keys:  # no line of base64 either, wherever a text may have been folded
        lines = [line for line in key.read_bytes().splitlines() if b"-----" not in line]
        secrets += [line for line in lines if len(line) > 40]
    written = [
        path
        for path in deployment.home.rglob("*")
        if path.is_file() and not path.relative_to(deployment.home).parts[0].endswith("keys")
    ]
    assert {"superlink.log", "known.log", "run.json", "metrics.jsonl"} <= {p.name for p in written}
    for path in written:
        text = path.read_bytes()
        assert not any(secret in text for secret in secrets), path


def test_a_node_is_registered_once_however_often_it_is_asked(deployment: Deployment) -> None:
    command = [
        sys.executable,
        "-m",
        "superfednas.cli",
        "register",
        str(deployment.credentials.folder),
    ]
    command += [f"--superlink=127.0.0.1:{deployment.control}", "--node=late", "--json"]
    make_credentials(deployment.credentials.folder, ["127.0.0.1"], ["late"])
    nodes: list[str] = []
    for expected in ({"registered": ["late"], "known": []}, {"registered": [], "known": ["late"]}):
        done = subprocess.run(
            command, env=deployment.env, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        told = json.loads(done.stdout)
        nodes.append(told.pop("nodes")["late"])
        assert told == {**expected, "revoked": []}, done.stderr
    assert nodes[0] == nodes[1] != ""


def test_operators_without_tls_or_with_another_authority_are_refused(
    deployment: Deployment, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{deployment.control}"
    other = make_credentials(tmp_path / "other", ["127.0.0.1"], [])
    for certificate in (None, other.authority_certificate):
        with SuperLink(address, certificate) as superlink, pytest.raises(SuperLinkError) as refusal:
            superlink.online()
        assert f"on {address}: Connection to the SuperLink is unavailable" in str(refusal.value)


def test_the_runner_fails_with_the_run(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    # Rounds of 0 are refused by the app. `flwr run --stream` exits with status 0 here.
    status = pipeline.main(
        [
            f"--superlink={deployment.superlink.address}",
            f"--root-certificates={deployment.credentials.authority_certificate}",
            f"--runs={deployment.home / 'runs'}",
            f"--out={deployment.home / 'out'}",
            *("--nodes=0", "--rounds=0"),
        ]
    )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    assert status == 1
    assert [event["event"] for event in events] == ["nodes", "submitted", "failed"]
    assert "has ended as finished:failed: rounds = 0: rounds must be" in events[-1]["reason"]
    assert not (deployment.home / "out").exists()
