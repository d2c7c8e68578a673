"""The doctor: each check tells right from wrong, names the remedy and changes nothing."""

import json
import os
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message

from superfednas import cli
from superfednas.common.settings import Scalar
from superfednas.deploy.doctor import faults, leftovers, machine, main
from superfednas.deploy.doctor.finding import FAULT, OK, WARNING, Finding
from superfednas.deploy.doctor.superlink import superlink
from superfednas.flower.api import CONTROL, FLEET, Address
from superfednas.records.announcements import Announcement, Event
from superfednas.records.refusals import Refusal, code_of
from superfednas.server.nodes import RosterError
from superfednas.server.round.check import BadReply, check_reply
from superfednas.server.strategy import TrainingStalled
from tests.support.bad_clients import bad_client, not_a_number, raising
from tests.support.processes import BIN, ROOT, environment, free_ports, listens, process, wait_until
from tests.support.processes import superlink as plain_superlink
from tests.support.replies import EXPECTED, WRONG
from tests.support.training import as_flower, full_run, order_of


def states(found: list[Finding]) -> list[str]:
    return [finding.state for finding in found]


# All checks together


def test_a_check_that_breaks_is_a_finding_and_the_others_are_made() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("first line\nsecond")

    found = main.examine({"odd": broken, "cores": machine.cores})
    assert found[0] == Finding("odd", WARNING, "could not be looked at: first line")
    assert found[1].name == "cores"
    assert main.status(found) == 0
    assert main.status([*found, Finding("x", FAULT, "")]) == 1
    shown = main.describe([Finding("a", OK, "fine"), Finding("b", FAULT, "bad", "mend it")])
    assert shown == "ok      a: fine\nfault   b: bad\n        → mend it"


def test_where_torch_is_broken_the_machine_is_looked_at_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: wrong ELF class')\n")
    env = environment(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    done = subprocess.run(
        [sys.executable, "-m", "superfednas.deploy.doctor.main"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "fault   torch: does not work: ImportError: libtorch.so: wrong ELF class" in done.stdout
    assert "ok      FLWR_HOME" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


def test_the_verb_answers_as_json_and_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    arguments = ["doctor", "--superlink", f"127.0.0.1:{port}", "--json"]
    assert cli.app(arguments, standalone_mode=False) == 1
    found = json.loads(capsys.readouterr().out)
    assert found[-1]["state"] == FAULT
    assert found[-1]["found"] == "nobody listens there"
    log = tmp_path / "superlink.log"
    log.write_text("Timed out waiting for file /tmp/ray/x\n")
    assert cli.app(["doctor", "--log", str(log)], standalone_mode=False) == 0
    assert "run it again" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--superlink or --control"):
        cli.app(["doctor", "--key", "node0"], standalone_mode=False)


# The machine


def test_versions_are_held_against_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.importlib.metadata.version
    assert states(machine.versions()) == [OK, OK]

    def other(name: str) -> str:
        if name == "torchvision":
            raise machine.importlib.metadata.PackageNotFoundError
        return {"flwr": "1.32.0", "torch": "2.10.1"}.get(name) or real(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", other)
    found = {finding.name: finding for finding in machine.versions()}
    assert found["flwr"].state == found["torch"].state == FAULT
    assert found["torch"].remedy == "pip install 'torch>=2.11'"
    assert found["torchvision"].state == WARNING
    assert "packages" not in found


def test_a_torch_that_computes_wrongly_or_does_not_fit_torchvision_is_named() -> None:
    right = {"torch": "2.15", "sum": 512.0, "gpu": "", "torchvision": "0.29"}
    assert states(machine._read_torch(right)) == [OK, OK]
    assert states(machine._read_torch(right | {"sum": 511.0})) == [FAULT, OK]
    assert states(machine._read_torch(right | {"torchvision": ""})) == [OK, OK]
    assert states(machine._read_torch({**right, "problem": "nms"})) == [OK, WARNING]


@pytest.mark.processes
def test_the_installed_torch_computes() -> None:
    assert machine.torch_computes()[0].state == OK


def test_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path) > 2**20
    for most, left in (("1000", 300), ("max", None), ("500", 0)):
        (tmp_path / "memory.max").write_text(most + "\n")
        (tmp_path / "memory.current").write_text("700\n")
        found = machine.available_memory(tmp_path)
        assert found == left if left is not None else found > 2**20


def test_a_taken_port_is_told_with_its_program() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = machine._port(port, "Fleet API", "another one")
        assert (found.state, found.remedy) == (WARNING, "another one")
        assert f"(process {os.getpid()})" in found.found
    assert machine._port(port, "Fleet API", "another one").state == OK


@pytest.mark.parametrize(
    ("variables", "through"),
    [
        ({}, ()),
        ({"http_proxy": ""}, ()),
        ({"HTTP_PROXY": "http://p"}, ()),  # gRPC does not read it
        ({"http_proxy": "http://p"}, ("127.0.0.1", "lab.example")),
        ({"grpc_proxy": "http://p", "no_proxy": "lab.example"}, ("127.0.0.1",)),
        ({"https_proxy": "http://p", "no_proxy": "127.0.0.0/8, .example"}, ()),
        ({"https_proxy": "h", "no_grpc_proxy": "x", "no_proxy": "127.0.0.1"}, ("127.0.0.1",)),
    ],
)
def test_proxies_that_grpc_would_use_are_named(
    variables: dict[str, str], through: tuple[str, ...]
) -> None:
    (found,) = machine.proxies(("127.0.0.1", "lab.example"), variables)
    assert found.state == (FAULT if through else OK)
    for host in through:
        assert host in found.found
        assert host in found.remedy


# Flower's folder and leftovers


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    (tmp_path / "flwr").mkdir()
    return tmp_path


LAB = '[superlink]\ndefault = "lab"\n[superlink.lab]\n'


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        (LAB + 'address = "lab:9093"\ninsecure = true', OK, "default lab"),
        ("[superlink\n", FAULT, "cannot be read"),
        ('[superlink.lab]\naddress = "lab:9093"', FAULT, "default None"),
        ('[superlink]\ndefault = "x"\n[superlink.lab]\naddress = "a:1"', FAULT, "'x'"),
        (LAB, FAULT, "no address"),
        (LAB + 'address = "a:1"\nroot-certificates = "ca.crt"', FAULT, "current folder"),
        (LAB + 'address = "a:1"\nroot-certificates = "/no/ca.crt"', FAULT, "not there"),
        (LAB + 'address = "a:1"\ninsecure = true\nroot-certificates = "/c"', FAULT, "insecure"),
        (LAB + 'address = "a:1"\n[superlink.old]\n', WARNING, "superlink.old"),
    ],
)
def test_the_connections_are_read(home: Path, text: str, state: str, said: str) -> None:
    assert states(leftovers.flower_folder()) == [OK, OK]  # Flower writes the file itself
    (home / "flwr" / "config.toml").write_text(text)
    found = leftovers.flower_folder()[-1]
    assert found.state == state and said in found.found
    assert bool(found.remedy) == (state != OK)


def test_a_home_that_is_a_file_is_a_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("FLWR_HOME", str(home / "file"))
    assert states(leftovers.flower_folder()) == [FAULT]


def an_app(home: Path) -> Path:
    """Install an app of two packages, one of which imports from the other."""
    app = home / "flwr" / "apps" / "me.app.1.0.abcdef01"
    files = {
        "pyproject.toml": '[tool.flwr.app.components]\nserverapp = "server.app:app"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["server", "nets", "docs"]\n',
        "server/app.py": "import numpy\nfrom nets.small import Net\nfrom . import other\n"
        "from .docs.more import here\n",
        "server/docs/more.py": "here = 1\n",
        "nets/__init__.py": "",
        "nets/small.py": "Net = 1\n",
        "docs/a.md": "",
    }
    for name, text in files.items():
        path = app / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return app


def test_an_app_that_was_installed_in_part_is_to_be_removed(home: Path) -> None:
    assert states(leftovers.installed_apps()) == [OK]
    app = an_app(home)
    assert states(leftovers.installed_apps()) == [OK]
    (app / "nets" / "small.py").unlink()
    (found,) = leftovers.installed_apps()
    assert found.state == FAULT
    assert "nets.small is missing" in found.found
    assert found.remedy.endswith(f"rm -r {shlex.quote(str(app))}")


@pytest.mark.parametrize("name", ["pyproject.toml", "server/app.py", "docs/a.md"])
def test_whatever_an_app_lacks_is_seen(home: Path, name: str) -> None:
    app = an_app(home)
    path = app / name
    path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    assert leftovers.incomplete(app)


def test_a_package_that_lies_elsewhere_in_the_app_is_found_there(home: Path) -> None:
    app = an_app(home)
    project = app / "pyproject.toml"
    project.write_text(
        project.read_text().replace("server.app", "me.server.app").replace('"server", ', "")
        + '[tool.hatch.build.targets.wheel.sources]\n"server" = "me/server"\n'
    )
    assert leftovers.incomplete(app) == ""
    (app / "server" / "app.py").unlink()
    assert leftovers.incomplete(app) == "me.server.app is missing"


def test_an_app_whose_file_was_cut_off_is_seen(home: Path) -> None:
    app = an_app(home)
    (app / "server" / "app.py").write_text("import numpy\nfrom nets.small import (\n")
    assert leftovers.incomplete(app) == "server/app.py is cut off"


def test_a_virtual_environment_in_a_checkout_is_none_of_the_apps_business(home: Path) -> None:
    app = an_app(home)
    (app / ".venv" / "lib").mkdir(parents=True)
    (app / ".venv" / "lib" / "odd.py").write_text("import (\n")
    assert leftovers.incomplete(app) == ""


@pytest.mark.slow
def test_this_project_itself_is_whole() -> None:
    assert leftovers.incomplete(ROOT) == ""


def old(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_torn_files_and_unfinished_runs_are_found_when_nobody_writes_them(home: Path) -> None:
    assert states(leftovers.torn_files() + leftovers.unfinished_runs()) == [OK, OK]
    run = home / ".superfednas" / "runs" / "a"
    (run / "checkpoints").mkdir(parents=True)
    info = run / "run.json"
    info.write_text(json.dumps({"status": "running", "round": 4}))
    torn = run / "checkpoints" / "round-000005.safetensors.part"
    torn.touch()
    assert states(leftovers.torn_files() + leftovers.unfinished_runs()) == [OK, OK]
    old(torn)
    old(info)
    assert states(leftovers.unfinished_runs()) == [OK]  # no checkpoint: nothing to resume
    (run / "checkpoints" / "round-000004.safetensors").touch()
    (found,) = leftovers.unfinished_runs()
    assert "after round 4" in found.found and f"--resume {run}," in found.remedy
    (found,) = leftovers.torn_files()
    assert str(torn) in found.remedy
    strange = torn.with_name("it's; $(reboot).part")
    strange.touch()
    old(strange)
    (found,) = leftovers.torn_files()
    assert set(shlex.split(found.remedy)) >= {str(torn), str(strange)}
    strange.unlink()
    info.write_text(json.dumps({"status": "interrupted", "round": 4}))
    assert states(leftovers.unfinished_runs()) == [WARNING]
    info.write_text(json.dumps({"status": "finished", "round": 4}))
    assert states(leftovers.unfinished_runs()) == [OK]
    info.write_text("{")
    assert "cannot be read" in leftovers.unfinished_runs()[0].found
    assert torn.exists()


def test_rays_sessions_count_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "session_1").mkdir()
    (tmp_path / "session_1" / "log").write_bytes(bytes(1000))
    assert states(leftovers.ray_sessions(tmp_path)) == [OK]
    monkeypatch.setattr(leftovers, "_RAY_BYTES", 999)
    assert states(leftovers.ray_sessions(tmp_path)) == [WARNING]


@pytest.mark.processes
def test_a_process_that_outlived_its_superlink_is_found(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    for name in ("flwr-serverapp", "flower-superlink"):
        (tmp_path / name).write_text(f"import subprocess, sys\n{sleep}\n")
    (tmp_path / "flower-superlink").write_text(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {str(tmp_path / 'flwr-serverapp')!r}, '--own'])\n"
        f"{sleep}\n"
    )

    def said() -> str:
        return " ".join(f"{f.found} {f.remedy}" for f in leftovers.processes())

    log = tmp_path / "log"
    here = [sys.executable, str(tmp_path / "flwr-serverapp")]
    parent = [sys.executable, str(tmp_path / "flower-superlink")]
    with (
        process(here, dict(os.environ), tmp_path, log) as left,
        process(parent, dict(os.environ), tmp_path, log) as owner,
    ):
        children = leftovers.psutil.Process(owner).children
        wait_until(lambda: children() and f"({left})" in said(), 30, "finding it")
        wait_until(lambda: "--own" in children()[0].cmdline(), 30, "the child's start")
        assert f"({children()[0].pid})" not in said()


# Known faults


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("ClientApp stopped responding.", "superfednas probe"),
        ("ActorDiedError: The actor died", "client-resources-num-cpus"),
        ("ValueError: No SuperNode found with the given public key.", "superfednas register"),
        ("SuperNode registration is disabled through Fleet API.", "superfednas keys"),
        ("SuperNode with node ID 12 could not be activated.", "60 s later"),
        ("Connection to the SuperLink is unavailable", "--database"),
        ("No heartbeat received from the task", "resume"),
        ("Timed out waiting for file /tmp/ray", "run it again"),
        ("Ssl handshake failed: SSL_ERROR_SSL", "--root-certificates"),
        ("Port in server address 127.0.0.1:9094 is already in use.", "choose another port"),
        ("OSError: [Errno 28] No space left on device: 'x'", "free some space"),
    ],
)
def test_what_others_say_is_known_by_their_words(words: str, remedy: str) -> None:
    fault = faults.known_fault(words)
    assert fault is not None and remedy in fault.remedy


REMEDIES = {
    Refusal.LOAD_FAILED: "same version",
    Refusal.RAISED: "node config",
    Refusal.MESSAGE_UNAVAILABLE: "asked anew",
    Refusal.MESSAGE_LOST: "node's log",
    Refusal.NODE_GONE: "60 s later",
    Refusal.CRASHED: "superfednas probe",
    Refusal.NAMES: "same version",
    Refusal.ROUND: "not used",
    Refusal.ARCHITECTURE: "same version",
    Refusal.SIZE: "take its key away",
    Refusal.SHAPE: "same version",
    Refusal.DTYPE: "same version",
    Refusal.NOT_FINITE: "lower lr",
    Refusal.METRIC: "same version",
    Refusal.MORE_THAN_DECLARED: "superfednas revoke",
}


@pytest.mark.parametrize("code", REMEDIES)
def test_a_reply_that_is_really_refused_has_its_remedy(code: Refusal) -> None:
    with pytest.raises(BadReply) as caught:
        check_reply(WRONG[code], EXPECTED)
    fault = faults.known_fault("", caught.value.refused.code)
    assert fault is not None and REMEDIES[code] in fault.remedy


def test_a_code_names_one_fault_and_an_error_without_one_is_known_by_its_words() -> None:
    named = [code for fault in faults.FAULTS for code in fault.codes]
    assert len(named) == len(set(named))
    assert faults.known_fault("ActorDiedError: x", Refusal.FLOWER_ERROR) == faults.known_fault(
        "ActorDiedError"
    )
    assert faults.known_fault("odd", Refusal.FLOWER_ERROR) is None


def test_this_projects_own_sentences_are_not_read() -> None:
    """Whatever they say: two nodes could not be told apart by what a person reads."""
    for message in WRONG.values():
        with pytest.raises(BadReply) as caught:
            check_reply(message, EXPECTED)
        fault = faults.known_fault(caught.value.refused.reason)
        assert fault is None or fault.pattern in message.error.reason


def spoilt(folder: Path, **values: Scalar) -> Path:
    """Train where client 1 answers the first round with NaN, and then raises, as client 2 does."""

    def spoil(reply: Message, order: Message) -> Message:
        return (not_a_number if order_of(order) == 1 else raising)(reply, order)

    app = bad_client(spoil, {1, 2}, "1")
    app = bad_client(raising, {2}, "2", app)
    return full_run(folder, {"rounds": 2, **values}, app, clients=3).path


def test_the_refusals_of_a_run_are_counted_by_fault(tmp_path: Path) -> None:
    run = spoilt(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "rou')  # the run may be writing it
    first, second = faults.refusals(run)
    assert first.found.startswith("2 × the client raised") and "(1, 2)" in first.found
    assert second.found.startswith("1 × the client's training diverged") and "(1)" in second.found
    (run / "metrics.jsonl").write_text('{"kind": "summary"}')
    assert states(faults.refusals(run)) == [OK]


def test_a_log_of_the_run_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints under Flower, and its ``log.jsonl``: each refusal counts once."""
    run = spoilt(tmp_path / "run")
    found = [each.found.partition(", in ")[0] for each in faults.refusals(run)]
    logged = faults.log_faults(run / "log.jsonl")
    assert [each.found.partition(", in ")[0] for each in logged] == found
    capsys.readouterr()
    as_flower({"run-dir": str(tmp_path / "again")}, bad_client(raising, {1}, "1"), clients=3)
    printed = tmp_path / "printed.log"
    printed.write_text(capsys.readouterr().out + "INFO: Timed out waiting for file /tmp/ray\n")
    known = faults.log_faults(printed)
    assert [each.found[:3] for each in known] == ["1 ×", "1 ×"]
    assert "(1)" in known[0].found and "Ray" in known[1].found


def test_what_flower_says_in_a_reply_counts_once(tmp_path: Path) -> None:
    """Its words stand in the line for people and in the announcement behind it."""
    log = tmp_path / "log"
    lines = ["round 1: client 1 missing: error 8: ClientApp stopped responding."]
    lines += [Announcement(Event.MISSING, 1, refusal=Refusal.CRASHED, client="1").line()]
    log.write_text("\n".join(["ClientApp stopped responding.", *lines]))
    (found,) = faults.log_faults(log)
    assert found.found.startswith("2 × ") and "(1)" in found.found


def newest(home: Path, name: str, status: str, done: int, text: str = "", code: str = "") -> Path:
    run = home / ".superfednas/runs" / name
    run.mkdir(parents=True)
    info = {"format": 1, "status": status, "round": done, "started": name}
    (run / "run.json").write_text(json.dumps(info))
    if text:
        event = {"event": status, "text": text, "refusal": code or None}
        (run / "log.jsonl").write_text(json.dumps(event) + "\n")
    return run


def newest_found() -> list[tuple[str, str, str]]:
    check = main.machine_checks()["newest run"]
    return [(each.state, each.found, each.remedy) for each in main.examine({"newest run": check})]


def test_why_the_newest_run_failed_is_told_with_the_remedy(home: Path) -> None:
    assert newest_found() == []
    newest(home, "0", "finished", 9)
    assert newest_found() == []
    few = "RosterError: min-nodes = 5: 5 nodes are needed and 1 usable is there (asked)"
    run = newest(home, "1", "failed", 0, few, Refusal.TOO_FEW_NODES)
    ((state, found, remedy),) = newest_found()  # though `latest` is the finished one
    assert (state, found) == (
        WARNING,
        f"{run} failed before a trained round was kept ({few})",
    )
    assert "lower clients-per-round and min-nodes" in remedy
    run = newest(home, "2", "failed", 0, "ValueError: no such thing")
    assert newest_found() == [
        (
            WARNING,
            f"{run} failed before a trained round was kept (ValueError: no such thing)",
            "mend that; then start it again",
        )
    ]
    newest(home, "3", "failed", 4, "RuntimeError: odd")
    (_, found, remedy) = newest_found()[0]
    assert "failed after round 4 (RuntimeError: odd)" in found
    assert "go on with the run folder" in remedy
    newest(home, "4", "failed", 4)
    assert "flwr log" in newest_found()[0][2]
    newest(home, "5", "interrupted", 0)
    assert newest_found() == []


def test_a_run_folder_that_is_named_is_looked_at(home: Path, tmp_path: Path) -> None:
    run = newest(home, "1", "failed", 0, "ValueError: no such thing")
    elsewhere = tmp_path / "elsewhere"
    run.rename(elsewhere)
    (found, *_) = main.examine(main.run_checks([elsewhere]))
    assert f"{elsewhere} failed before a trained round was kept (ValueError" in found.found
    with pytest.raises(ValueError, match="is no run folder"):
        main.run_checks([tmp_path / "nowhere"])


def test_a_run_that_stalls_is_told_by_what_stalled_it(home: Path) -> None:
    with pytest.raises(TrainingStalled):
        full_run(home / ".superfednas/runs/a", {"rounds": 9}, bad_client(raising, range(9), "0123"))
    (_, why, mend), (_, refused, _) = newest_found()
    assert "no usable reply in 3 rounds" in why and "node config" in mend
    assert refused.startswith("9 × ") and "(0, 1, 2, 3)" in refused


def test_a_run_that_really_fails_at_its_start_is_explained(home: Path) -> None:
    for name, values, error, said in (
        ("a", {"min-nodes": 9, "node-timeout": 0.01}, RosterError, "raise node-timeout"),
        ("b", {"dataset": "none"}, ValueError, "num-classes=10"),
    ):
        with pytest.raises(error) as caught:
            full_run(home / ".superfednas/runs" / name, values)
        fault = faults.known_fault(str(caught.value), code_of(caught.value))
        assert fault is not None and said in fault.remedy
    ((_, found, remedy),) = newest_found()  # the other has begun nothing
    assert "failed before a trained round was kept (RosterError: min-nodes = 9: 9 nodes" in found
    assert "raise node-timeout" in remedy


# A superlink


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a CA, a certificate for localhost, an expired one, and another CA."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name.from_rfc4514_string("CN=ca")

    def make(name: str, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> None:
        is_ca = subject == issuer
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        extension = (
            x509.BasicConstraints(ca=True, path_length=None)
            if is_ca
            else x509.SubjectAlternativeName(names)
        )
        certificate = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=100))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(extension, critical=is_ca)
            .sign(key if name == "other" else ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
        (folder / f"{name}.key").write_bytes(private)

    make("ca", issuer, ca_key, 100)
    make("other", issuer, ec.generate_private_key(ec.SECP256R1()), 100)
    for name, days in (("good", 100), ("soon", 3), ("expired", -1)):
        subject = x509.Name.from_rfc4514_string("CN=superlink")
        make(name, subject, ec.generate_private_key(ec.SECP256R1()), days)
    return folder


@pytest.fixture
def serving(certificates: Path) -> Iterator[Callable[[str], int]]:
    """Serve TLS with a certificate; nothing is said after the handshake."""
    stack: list[socket.socket] = []

    def serve(name: str) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
        listening = socket.create_server(("127.0.0.1", 0))
        stack.append(listening)

        def answer() -> None:
            while True:
                try:
                    raw, _ = listening.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(raw, server_side=True) as wrapped:
                        wrapped.recv(1)
                except OSError:
                    raw.close()

        threading.Thread(target=answer, daemon=True).start()
        return int(listening.getsockname()[1])

    yield serve
    for each in stack:
        each.close()


@pytest.mark.parametrize(
    ("served", "host", "trusted", "state", "said"),
    [
        ("good", "127.0.0.1", "ca.crt", OK, "verified"),
        ("good", "localhost", "ca.crt", OK, "verified"),
        ("soon", "127.0.0.1", "ca.crt", WARNING, "ends on"),
        ("expired", "127.0.0.1", "ca.crt", FAULT, "has expired"),
        ("good", "127.0.0.1", "other.crt", FAULT, "not signed by the CA"),
        ("good", "127.0.0.1", "good.key", FAULT, "cannot be used"),
        ("good", "127.0.0.1", "none.crt", FAULT, "is not there"),
        ("good", "127.0.0.1", "", FAULT, "not answer in plain text"),
    ],
)
def test_tls_is_verified_and_what_does_not_fit_is_named(
    served: str,
    host: str,
    trusted: str,
    state: str,
    said: str,
    serving: Callable[[str], int],
    certificates: Path,
) -> None:
    from superfednas.deploy.doctor.superlink import _tls

    file = certificates / trusted if trusted else None
    found = _tls(Address(FLEET, host, serving(served), file))
    assert found.state == state, found
    assert said in found.found
    assert bool(found.remedy) == (state != OK)


def test_another_host_is_told_the_names_of_the_certificate(
    serving: Callable[[str], int], certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superfednas.deploy.doctor import superlink as module

    port = serving("good")
    there = module._connect(Address(FLEET, "127.0.0.1", port))
    there.close()
    monkeypatch.setattr(
        module, "_connect", lambda _: socket.create_connection(("127.0.0.1", port), 5)
    )
    found = module._tls(Address(FLEET, "lab.example", port, certificates / "ca.crt"))
    assert found.state == FAULT
    assert found.found == "the certificate is for localhost, 127.0.0.1, not for lab.example"
    assert "subjectAltName=DNS:lab.example" in found.remedy
    assert "superfednas keys CREDENTIALS --host lab.example" in found.remedy


@pytest.mark.parametrize("host", ["no-such-host.invalid", "lab..example"])
def test_a_name_that_is_not_known_and_a_port_that_nobody_has_are_told_apart(host: str) -> None:
    (unknown,) = superlink(Address(FLEET, host, 9092))
    assert unknown.state == FAULT
    assert unknown.found.startswith("the host's name is not known: ")
    assert f"the spelling of '{host}'" in unknown.remedy
    (port,) = free_ports(1)
    (refused,) = superlink(Address(FLEET, "127.0.0.1", port))
    assert (refused.state, refused.found) == (FAULT, "nobody listens there")
    assert f"--fleet-api-address 0.0.0.0:{port}" in refused.remedy


@pytest.mark.processes
def test_a_superlink_in_plain_text_tells_its_ports_apart_too(tmp_path: Path) -> None:
    with plain_superlink(tmp_path, environment(tmp_path)) as fleet:
        (inner,) = (w for w in fleet.superlink_command if w.startswith("--serverappio"))
        ports = [int(w.rpartition(":")[2]) for w in (fleet.address, fleet.control, inner)]
        wait_until(lambda: all(map(listens, ports)), 60, "the start of all APIs")
        there = {
            (api, port): superlink(Address(api, "127.0.0.1", port))[-1]
            for api in (FLEET, CONTROL)
            for port in ports
        }
    assert [found.found.partition(" listens")[0] for found in there.values()] == [
        "answers; no key was named",
        "the Control API",
        "an API for Flower's own programs (by default ports 9091 and 9094)",
        "the Fleet API",
        "none yet",
        "an API for Flower's own programs (by default ports 9091 and 9094)",
    ]


@pytest.mark.parametrize("text", ["lab", "lab:", ":9092", "lab:x", "lab:0", "lab:70000"])
def test_a_wrong_address_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        Address.parse(FLEET, text)
    assert Address.parse(FLEET, "[::1]:9092").target == "[::1]:9092"


@pytest.mark.processes
def test_a_real_superlink_says_whether_a_key_is_known(certificates: Path, tmp_path: Path) -> None:
    own, fleet, control = free_ports(3)
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "dep"\n[superlink.dep]\naddress = "127.0.0.1:{control}"\n'
        f'root-certificates = "{certificates / "ca.crt"}"\n'
    )
    env = environment(tmp_path)
    command = [
        str(BIN / "flower-superlink"),
        f"--ssl-ca-certfile={certificates / 'ca.crt'}",
        f"--ssl-certfile={certificates / 'good.crt'}",
        f"--ssl-keyfile={certificates / 'good.key'}",
        "--enable-supernode-auth",
        f"--serverappio-api-address=127.0.0.1:{own}",
        f"--fleet-api-address=127.0.0.1:{fleet}",
        f"--control-api-address=127.0.0.1:{control}",
    ]
    key = tmp_path / "node0"
    _ssh_key(key)
    at = Address(FLEET, "127.0.0.1", fleet, certificates / "ca.crt")
    administered = Address(CONTROL, "127.0.0.1", control, certificates / "ca.crt")
    assert superlink(at)[-1].found == "nobody listens there"
    with process(command, env, tmp_path, tmp_path / "superlink.log"):
        wait_until(lambda: superlink(administered)[-1].found == "none yet", 60, "the start")
        wait_until(lambda: states(superlink(at)) == [OK, OK, OK], 60, "the start")
        assert superlink(at, key)[-1].found == "not known to the superlink"
        assert superlink(administered, key)[-1].found == "not registered"
        registered = subprocess.run(
            [str(BIN / "flwr"), "supernode", "register", f"{key}.pub", "dep"],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert registered.returncode == 0, registered.stdout + registered.stderr
        for _ in range(2):  # asking activates nothing
            assert superlink(at, key)[-1] == Finding("key", OK, "known to the superlink")
            assert superlink(administered, key)[-1].found == "registered"
        for api, port, there in (
            (FLEET, control, "the Control API"),
            (CONTROL, fleet, "the Fleet API"),
            (FLEET, own, "an API for Flower's own programs (by default ports 9091 and 9094)"),
            (CONTROL, own, "an API for Flower's own programs (by default ports 9091 and 9094)"),
        ):
            for private in (None, key):
                where = Address(api, "127.0.0.1", port, certificates / "ca.crt")
                found = superlink(where, private)[-1]
                assert (found.state, found.found) == (
                    FAULT,
                    f"{there} listens there, not the {api}",
                )
                wanted = "by default 9092: nodes" if api == FLEET else "by default 9093: flwr"
                assert wanted in found.remedy
        plain = Address(FLEET, "127.0.0.1", fleet)
        assert "not answer in plain text" in superlink(plain)[-1].found


def _ssh_key(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path.with_name(path.name + ".pub").write_bytes(public)


def test_a_key_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    from superfednas.deploy.doctor.superlink import load_key

    key = tmp_path / "node0"
    assert load_key(key)[0].state == FAULT
    key.write_text("no key")
    assert load_key(key)[0].state == FAULT
    _ssh_key(key)
    assert load_key(key)[0].state == OK
    key.chmod(0o644)
    problem, private = load_key(key)
    assert problem.state == WARNING and problem.remedy == f"chmod 600 {key}"
    assert private is not None
