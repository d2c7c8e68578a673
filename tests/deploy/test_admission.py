"""Reasons to refuse a node before anything connects, and the words for what comes after."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from superfednas import cli
from superfednas.client.allow import PINS, Pins
from superfednas.client.node_config import KEYS, NAMED_DATA
from superfednas.data.dataset import DataError
from superfednas.data.images.medmnist import CLASSES
from superfednas.data.settings import DataSettings
from superfednas.data.sources import CIFAR_FOLDERS, load_dataset
from superfednas.deploy.doctor.faults import FAULTS
from superfednas.deploy.fleet.admission import Entrance, check_config_of
from superfednas.deploy.fleet.credentials import make_credentials
from superfednas.flower.options import read_options
from superfednas.flower.refusal import RefusedError
from superfednas.server.settings import check_settings
from tests.support.processes import ROOT, environment, free_ports

# The node config


def words(config: dict) -> str:
    """Return a node config as it is written on a command line."""
    shown = {
        k: str(v).lower() if isinstance(v, bool) else f'"{v}"' if isinstance(v, str) else v
        for k, v in config.items()
    }
    return " ".join(f"{key}={value}" for key, value in shown.items())


def refusal(text: str) -> str:
    """Return why a command line with this node config is refused."""
    with pytest.raises(RefusedError) as refused:
        check_config_of(["--insecure", "--node-config", text])
    assert refused.value.code == 2
    return refused.value.text


@given(
    config=st.fixed_dictionaries(
        {
            "partition-id": st.integers(0, 7),
            "num-partitions": st.integers(8, 10**9),
        },
        optional={
            "name": st.from_regex(r"[a-z][a-z ]{0,8}", fullmatch=True) | st.integers(0, 99),
            "data-path": st.sampled_from([*NAMED_DATA, "hf:ylecun/mnist", "own.data:build", "."]),
            "max-macs": st.integers(1, 10**18),
            "max-params": st.integers(1, 10**18),
            "max-bytes": st.integers(1, 10**18),
            "max-memory": st.integers(1, 10**18),
            "device-class": st.from_regex(r"[a-z]{1,8}", fullmatch=True),
            "tell-classes": st.booleans(),
            "tell-scores": st.booleans(),
            "allow": st.sampled_from(["errands=train", "local-epochs<=5 dataset=digits,cifar10"]),
            "data-cache": st.sampled_from(["/var/lib/kitchen", "~/state"]),
            "state-dir": st.sampled_from(["/var/lib/kitchen", "~/state"]),
        },
    )
)
@settings(max_examples=60, deadline=None)
def test_a_right_node_config_is_taken_and_each_key_misspelt_is_refused(config: dict) -> None:
    check_config_of(["--superlink=a:1", f"--node-config={words(config)}"])
    for key, value in config.items():
        wrong = {k: v for k, v in config.items() if k != key} | {key[:-1]: value}
        sentence = refusal(words(wrong))
        assert f"unknown key '{key[:-1]}'" in sentence
        assert f"did you mean {key}?" in sentence


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("", 'this node has no name: start it with --node-config \'name="kitchen"'),
        ("max-macs=5", "this node has no name"),
        ('name="a"', "this node has no data: its node config needs data-path, or partition-id"),
        ('name="a" partition-id=0', "this node has no data"),
        ("partition-id=2 num-partitions=2", "partition-id = 2: must be from 0 to 1"),
        ('partition-id="x" num-partitions=2', "partition-id = 'x'"),
        ("partition-id=0 num-partitions=0", "num-partitions = 0: must be a whole number from 1"),
        (
            "partition-id=0 num-partitions=2 max-macs=0",
            "max-macs = 0: must be a whole number from 1",
        ),
        ("partition-id=0 num-partitions=1000000001", "num-partitions = 1000000001: must be"),
        (f"partition-id=0 num-partitions=2 max-macs={10**18 + 1}", "max-macs = a number of more"),
        (f'name="{"9" * 101}" data-path="digits"', "must be a text of 1 to 100 printable"),
        ('name="a\\u0007b" data-path="digits"', "must be a text of 1 to 100 printable"),
        (f'name="a" data-path="digits" device-class="{"b" * 101}"', "device-class = 'bbb"),
        (f'partition-id="{"9" * 5000}" num-partitions=2', "must be a text of 1 to 100"),
        (f'name="a" partition-id="{"9" * 5000}" num-partitions=2', "must be a whole number"),
        ("partition-id=0 num-partitions=2 max-macs=1e6", "max-macs = 1000000.0"),
        ("partition-id=0 num-partitions=2 max-params=-4", "max-params = -4: must be a whole"),
        ("partition-id=0 num-partitions=2 max-params=true", "max-params = true"),
        ("partition-id=0 num-partitions=2 tell-classes=1", "tell-classes = 1"),
        ('partition-id=0 num-partitions=2 tell-classes="yes"', "must be true or false"),
        ("partition-id=0 num-partitions=2 tell-scores=0", "tell-scores = 0"),
        ('name="a" data-path="digits" data-cache="here"', "must be an absolute path"),
        ('name="a" data-path="digits" allow="epochs<=5"', "allow: 'epochs<=5' is no pin"),
        ('name="a" data-path="digits" allow="local-epochs=5"', "begin with local-epochs<="),
        ('name="a" data-path="digits" allow="batch-size=5"', "batch-size<= or batch-size>="),
        ('name="a" data-path="digits" allow="local-steps<=0"', "a whole number from 1"),
        ('name="a" data-path="digits" allow="dp-noise>=nan"', "a number above 0"),
        ('name="a" data-path="digits" allow="errands=train,run"', "train, score, personalise"),
        ('name="a" data-path="digits" allow="dataset=digits,"', "an empty value"),
        ('name="a" data-path="digits" allow="dataset=\'a"', "No closing quotation"),
        ('name="a" data-path="digits" allow="batch-size>=2 batch-size>=3"', "is there twice"),
        ("partition-id=0 num-partitions=2 device-class=3", "device-class = 3: must be a text"),
        ("partition-id=0 num-partitions=2 state-dir=3", "state-dir = 3: must be a text"),
        ('name="a" data-path="digits" node-key=3', "node-key = 3: must be a text"),
        ('name="a" data-path="digits" node-key="a.key"', "must be the absolute path"),
        ('name="a" data-path="digits" peer-keys="/nowhere"', "must be the absolute path"),
        ('name="a" data-path="digits" state-dir="here"', "must be an absolute path"),
        ('name="a" data-path="digits" state-dir="/dev/null/x"', "it is no folder that this node"),
        ('name="" data-path="digits"', "name = '': must be a text"),
        ('name=true data-path="digits"', "name = true: must be a text"),
        ('name="a" data-path=5', "data-path = 5: must be a text"),
        ('name="a" data-path="/nowhere/a.npz"', "no such file on this machine"),
        ('name="a" data-path="/nowhere/images"', "no such folder on this machine"),
        ('name="a" data-path="/nowhere:x/images"', "no such folder on this machine"),
        ('name="a" data-path="none"', "no such folder"),
        (
            'name="a" data-path="digts"',
            "also allowed: digits, cifar10, cifar100, pathmnist, pneumoniamnist, hf:NAME",
        ),
        ('name="a" colour="red" data-path="digits"', "known keys: name, data-path,"),
        # As a shell leaves it where the outer quotes were forgotten.
        ("name=kitchen", "texts need quotes within quotes"),
        ('name="a" max-macs = 5 data-path="digits"', "'max-macs = 5' is no key=value"),
        ('name="a" data-path', "'data-path' is no key=value"),
        ('name="a" name="b" data-path="digits"', "cannot be read"),
        ("/nowhere/node.toml", "No such file or directory"),
    ],
)
def test_a_wrong_node_config_is_one_sentence(config: str, sentence: str) -> None:
    found = refusal(config)
    assert sentence in found
    assert "\n" not in found


def test_the_data_that_are_there_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.npz").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path, tmp_path / "own.npz", "~/own.npz"):
        check_config_of([f'--node-config=name="a" data-path="{path}"'])
    node = tmp_path / "node.toml"
    node.write_text('name = "a"\ndata-path = "digits"\n')
    check_config_of(["--node-config", str(node)])
    node.write_text('name = "a"\nmax-mac = 5\n')
    assert "did you mean max-macs?" in refusal(str(node))


def test_the_data_taken_by_name_are_those_that_there_are() -> None:
    with pytest.raises(DataError) as refused:
        load_dataset(DataSettings(dataset="digts"))
    assert f"allowed are {', '.join(NAMED_DATA)}, a path ending .npz" in str(refused.value)
    assert set(NAMED_DATA) == {"digits", *CIFAR_FOLDERS, *CLASSES}


# The options, and the files that they name


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of credentials, with files that are none beside them."""
    home = tmp_path_factory.mktemp("joining")
    make_credentials(home / "keys", ["127.0.0.1"], ["a"])
    (home / "keys" / "text").write_text("no key, no certificate")
    return home / "keys"


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--wrong=3"], 2, "unrecognized arguments: --wrong=3; superfednas node --help"),
        (["data-path=/x.npz"], 2, "unrecognized arguments: data-path=/x.npz"),
        (["--max-retries=x"], 2, "invalid int value: 'x'"),
        (["--superlink=foo"], 2, "address 'foo': must be HOST:PORT"),
        (["--insecure", "--root-certificates=ca.crt"], 2, "leave out one"),
        (["--insecure", "--auth-supernode-private-key=a"], 2, "a key needs TLS"),
        (["--root-certificates=nowhere.crt"], 1, "nowhere.crt is not there: copy"),
        (["--root-certificates=text"], 1, "text cannot be used"),
        (["--auth-supernode-private-key=nowhere.key"], 1, "nowhere.key cannot be read: No such"),
        (["--auth-supernode-private-key=text"], 1, "text holds no"),
    ],
)
def test_wrong_options_and_files_are_one_sentence(
    options: list[str],
    status: int,
    sentence: str,
    keys: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(keys)
    with pytest.raises(RefusedError) as refused:
        Entrance.of(options)
    assert refused.value.code == status
    assert sentence in refused.value.text
    assert "\n" not in refused.value.text


def test_right_options_are_read(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, key = keys / "node-a" / "ca.crt", keys / "node-a" / "node.key"
    options = ["--superlink", "a:1", f"--root-certificates={ca}"]
    options += ["--auth-supernode-private-key", str(key)]
    assert Entrance.of(options) == Entrance("a:1", ca, key, insecure=False)
    monkeypatch.setenv("HOME", str(keys / "node-a"))
    assert Entrance.of([*options[:-1], "~/node.key"]).key == key
    assert Entrance.of(["--insecure"]).insecure


def examples(verb: str) -> list[list[str]]:
    """Return the command lines of a verb's help, as a terminal of 80 columns shows it."""
    shown = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "80"}).output
    lines = [line.strip() for line in shown.splitlines()]
    found = []
    for number, line in enumerate(lines):
        if line.startswith(f"superfednas {verb} "):
            while line.endswith("\\"):
                number += 1
                line = line[:-1] + lines[number]
            found.append(shlex.split(line)[2:])
    return found


def test_the_examples_of_the_help_can_be_read() -> None:
    secure, insecure = examples("node")
    assert read_options(secure).auth_supernode_private_key == "node-kitchen/node.key"
    with pytest.raises(RefusedError, match="2") as refused:
        check_config_of(secure)  # all of it is right but for this machine's data
    assert "data-path = '/data/kitchen.npz': no such file" in refused.value.text
    check_config_of(insecure)
    assert Entrance.of(insecure).insecure
    shown = CliRunner().invoke(cli.app, ["node", "--help"], env={"COLUMNS": "80"}).output
    rows = [line.strip() for line in shown.splitlines()]
    assert all(f"{key:15} {text}" in rows for key, text in KEYS.items())
    assert all(f"{pin:23} {text}" in rows for pin, text in PINS.items())
    Pins.parse(" ".join(PINS))
    (run,) = examples("run")
    context = get_command(cli.app).commands["run"].make_context("run", run)  # type: ignore[attr-defined]
    assert Path(context.params["run_dir"]) == Path("/srv/runs/first")
    train = parse_config_args([context.params["run_config"]])
    assert check_settings(train).rounds == 20


# What the SuperLink says


def test_the_remedies_are_those_of_the_doctor_and_faults() -> None:
    (port,) = free_ports(1)
    entrance = Entrance(f"127.0.0.1:{port}", None, None, insecure=True)
    said = "No SuperNode found with the given public key."
    (fault,) = [f for f in FAULTS if "given public key" in f.pattern]
    assert entrance.why(said) == f"{fault.meaning} ({said.rstrip('.')}): {fault.remedy}"
    for found in (entrance.why("odd words"), entrance.why("Ssl handshake failed: x")):
        assert found.startswith(f"127.0.0.1:{port}: nobody listens there: start flower-superlink")
    assert "it goes on trying; nobody listens there" in entrance.meanwhile()
    assert f"(superfednas doctor --superlink 127.0.0.1:{port} looks again)" in entrance.meanwhile()


# The process


@pytest.mark.slow
def test_the_process_ends_with_its_sentence_and_status(tmp_path: Path) -> None:
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        cases = {
            "another program has the port": (1, [f"--clientappio-api-address={address}"]),
            "a key needs TLS": (2, ["--auth-supernode-private-key=a"]),
        }
        for words_, (status, options) in cases.items():
            line = [
                sys.executable,
                "-m",
                "superfednas.deploy.fleet.node",
                "0.5",
                "--insecure",
                *options,
            ]
            done = subprocess.run(
                [*line, "--node-config=partition-id=0 num-partitions=1"],
                env=env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == status
            assert "Traceback" not in done.stderr
            said = [row for row in done.stderr.splitlines() if row.startswith("superfednas node:")]
            assert len(said) == 1 and words_ in said[0]
            assert done.stderr.endswith(said[0] + "\n")
