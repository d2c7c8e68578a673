"""The node: pauses that adapt, a bell, the nursery, and Flower's own node where it must be."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas.flower.retries
from superfednas import cli
from superfednas.client.worker.handover import FOLDER_VARIABLE, NODE_LOCK
from superfednas.deploy.fleet import node
from superfednas.flower import joining, programs
from superfednas.flower import superexec as our_superexec
from superfednas.flower import supernode as our_supernode
from superfednas.flower.joining import Joining
from superfednas.flower.refusal import RefusedError
from superfednas.flower.retries import FIRST_PAUSE, LONGEST_PAUSE, retry_pulls_soon
from superfednas.flower.superexec import Bell
from superfednas.flower.supernode import Pause, Taking
from tests.support.processes import ROOT, environment, wait_until

SUPERNODE = "flwr.supernode.start_client_internal"
SUPEREXEC = "flwr.supercore.superexec.run_superexec"
EXECUTOR = "flwr.supercore.superexec.executor.subprocess_executor"
PULLS = "flwr.supercore.inflatable.inflatable_utils"


# Pauses


class Clock:
    """Time that only sleeping makes pass."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.sampled_from([0.5, 3.0]), min_size=1, max_size=200),
    longest=st.floats(0.01, 5),
)
def test_a_pause_is_a_tenth_of_the_wait_within_its_bounds(
    asked: list[float], longest: float
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(our_supernode, "time", clock)
        pause = Pause(longest)
        for seconds in asked:
            waited = clock.now - 100
            pause.sleep(seconds)
            expected = min(seconds, longest, max(waited / 10, 0.01))
            assert clock.slept[-1] == pytest.approx(expected)
        pause.restart()
        pause.sleep(3.0)
    assert clock.slept[-1] == 0.01


def test_a_message_rings_and_every_wait_begins_anew() -> None:
    outcomes = [None, None, 5, 6, None, None, 7, None]
    said: list[str] = []
    pause = SimpleNamespace(restart=lambda: said.append("restart"))
    taking = Taking(lambda given: outcomes.pop(0), lambda: said.append("ring"), pause)
    expected = [
        (None, []),
        (None, []),
        (5, ["restart", "ring"]),
        (6, ["restart", "ring"]),
        (None, ["restart"]),
        (None, []),
        (7, ["restart", "ring"]),
        (None, ["restart"]),
    ]
    for run_id, events in expected:
        assert taking(given=1) == run_id
        assert said == events
        said.clear()


def test_a_bell_ends_a_sleep_and_is_then_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    bell, clock = Bell(reading), Clock()
    monkeypatch.setattr(our_superexec, "time", clock)
    os.write(writing, b"!!!")
    bell.sleep(600)  # a test that hangs has failed
    os.write(writing, b"!")
    bell.sleep(600)
    bell.sleep(0)
    assert not clock.slept
    os.close(writing)
    bell.sleep(600)  # nobody can ring: an ordinary sleep, no busy loop
    assert clock.slept == [600]
    os.close(reading)


class RefusalError(grpc.RpcError):
    """As the SuperLink, or gRPC in its place, refuses a call."""

    def __init__(self, text: str, code: str = "FAILED_PRECONDITION") -> None:
        super().__init__(text)
        self._code = grpc.StatusCode[code]

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return str(self.args[0])


class Words:
    """Explains as :class:`superfednas.deploy.fleet.admission.Entrance` does."""

    def why(self, said: str) -> str:
        return f"why: {said}"

    def meanwhile(self) -> str:
        return "still trying"


ONLINE = RefusalError("SuperNode with node ID 5 could not be activated.")
UNKNOWN = RefusalError("No SuperNode found with the given public key.")
CLOCKS = RefusalError("Invalid timestamp", "UNAUTHENTICATED")
DENIED = RefusalError("no", "PERMISSION_DENIED")
AWAY = RefusalError("failed to connect to all addresses", "UNAVAILABLE")
TLS = RefusalError("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "UNAVAILABLE")


@pytest.mark.parametrize(
    ("refusals", "limit", "outcome", "said"),
    [
        ([], None, "in", {}),
        ([ONLINE] * 4, None, "in", {"asked again until it has, 60 s at most": 1}),
        ([ONLINE] * 40, None, "another node with the same key is online", {"asked again": 1}),
        ([UNKNOWN], None, f"why: {UNKNOWN}", {}),
        ([ONLINE, UNKNOWN], None, f"why: {UNKNOWN}", {"asked again": 1}),
        ([CLOCKS], None, f"why: {CLOCKS}", {}),
        ([DENIED], None, f"why: {DENIED}", {}),
        ([TLS], None, f"why: {TLS}", {}),
        # What Flower tries again is tried again, however often; it is said once, not at once.
        ([AWAY] * 3, None, "in", {"still trying": 0}),
        ([AWAY] * 50, None, "in", {"still trying": 1}),
        ([AWAY] * 50, 2, f"why: {AWAY}", {"still trying": 0}),
    ],
)
def test_a_node_comes_in_waits_or_is_refused_with_a_sentence(
    refusals: list[RefusalError],
    limit: int | None,
    outcome: str,
    said: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock, answers = Clock(), iter([*refusals, "in"])
    monkeypatch.setattr(joining, "time", clock)
    make = importlib.import_module(SUPERNODE)._make_fleet_connection_retry_invoker
    retries = Joining(make, Words())(max_retries=limit)
    retries.wait_function = clock.sleep

    def activate() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    if outcome == "in":
        assert retries.invoke(activate) == outcome
    else:
        with pytest.raises(RefusedError) as refused:
            retries.invoke(activate)
        assert outcome in refused.value.text
        assert refused.value.code == 1
    if ONLINE in refusals:
        assert clock.now - 100 < 60 + 20  # Flower's longest pause
    error = capsys.readouterr().err
    assert {text: error.count(text) for text in said} == said
    assert bool(error) == any(said.values())


def test_a_node_that_is_in_is_left_to_flower() -> None:
    make = importlib.import_module(SUPERNODE)._make_fleet_connection_retry_invoker
    joining = Joining(make, Words())
    retries = joining()
    joining.joined = True

    def call() -> None:
        raise UNKNOWN

    with pytest.raises(RefusalError) as raised:
        retries.invoke(call)
    assert raised.value is UNKNOWN


def test_a_node_that_the_superlink_does_not_know_any_more_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Flower itself then ends by a signal, with a status of 0."""
    flower = SimpleNamespace(should_giveup=lambda error: True, on_giveup=lambda state: None)
    joining = Joining(lambda: flower, Words())
    gives_up = joining().should_giveup
    joining.joined = True
    assert gives_up(UNKNOWN) and capsys.readouterr().err == ""
    revoked = RefusalError("Invalid node ID", "UNAUTHENTICATED")
    assert gives_up(revoked) and gives_up(revoked)
    assert capsys.readouterr().err.count("does not know this node any more") == 1


# What is replaced in Flower


def test_this_flower_is_the_one_that_the_node_knows() -> None:
    assert programs.difference() is None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (SUPERNODE, "time"),
        (SUPERNODE, "subprocess"),
        (SUPERNODE, "_pull_and_store_message"),
        (SUPERNODE, "_make_fleet_connection_retry_invoker"),
        (SUPERNODE, "run_clientappio_api_grpc"),
        (SUPEREXEC, "time"),
        (EXECUTOR, "subprocess"),
        ("flwr.supernode.cli.flower_supernode", "flower_supernode"),
        ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode"),
        ("flwr.common.config", "parse_config_args"),
        ("flwr.supercore.cli.flower_superexec", "flower_superexec"),
        ("flwr.supernode.cli.flwr_clientapp", "flwr_clientapp"),
    ],
)
def test_what_is_missing_is_named(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importlib.import_module(module), name)
    assert f"{module}.{name}" in str(programs.difference())


def test_another_flower_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "version", lambda package: "1.32.0")
    assert programs.difference() == "Flower 1.32.0 is not 1.31.x"


def test_pulls_ask_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = importlib.import_module(PULLS)
    flowers = {"initial_backoff": 1, "backoff_cap": 10, "max_tries_per_object": 500}
    for name, default in flowers.items():
        monkeypatch.setitem(utils.pull_objects.__kwdefaults__, name, default)
    assert retry_pulls_soon() is None
    waits: list[float] = []

    class Event:
        def is_set(self) -> bool:
            return False

        def wait(self, seconds: float) -> None:
            waits.append(seconds)

    tries = iter([*[utils.ObjectUnavailableError("x")] * 1000, b"bytes"])

    def pull(name: str) -> bytes:
        found = next(tries)
        if isinstance(found, Exception):
            raise found
        return found

    threads = SimpleNamespace(**vars(utils.threading) | {"Event": Event})
    monkeypatch.setattr(utils, "threading", threads)
    assert utils.pull_objects(["x"], pull) == {"x": b"bytes"}
    expected = [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(1000)]
    assert waits == pytest.approx(expected, rel=0.21)  # Flower's own jitter


def test_a_flower_without_that_argument_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = importlib.import_module(PULLS).pull_objects.__kwdefaults__
    monkeypatch.setitem(defaults, "initial_backoff", 1)
    monkeypatch.setitem(superfednas.flower.retries._DEFAULTS, "patience", 5)
    assert "with patience" in str(retry_pulls_soon())
    assert defaults["initial_backoff"] == 1
    assert "patience" not in defaults


def test_flowers_programs_run_with_the_replaced_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    supernode, superexec, executor = map(importlib.import_module, (SUPERNODE, SUPEREXEC, EXECUTOR))
    for module, name in programs.REPLACED:  # put back what this test replaces
        place = importlib.import_module(module)
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.setattr(sys, "argv", ["superfednas"])
    monkeypatch.setattr(supernode, "_pull_and_store_message", lambda **named: 5)
    started: list[list[str]] = []

    def flower_supernode() -> None:
        assert sys.argv == ["flower-supernode", "--insecure"]
        supernode.subprocess.Popen(["flower-superexec", "--plugin-type", "clientapp"])
        assert supernode._pull_and_store_message(state=None) == 5
        supernode.time.sleep(0.5)

    program = importlib.import_module("flwr.supernode.cli.flower_supernode")
    monkeypatch.setattr(program, "flower_supernode", flower_supernode)
    with pytest.raises(RefusedError, match="1") as ended:  # Flower's loop never ends by itself
        our_supernode.run_supernode(
            ["--insecure"], 0.01, started.append, Words(), tmp_path / "secret"
        )
    assert ended.value.text == "why: the connection to the SuperLink has ended, as said above"
    ((listening, *options),) = started
    shared = ["--superexec-auth-secret-file", str(tmp_path / "secret")]
    assert options == ["--plugin-type", "clientapp", *shared]

    launched: list[list[str]] = []

    def flower_superexec() -> None:
        assert sys.argv == ["flower-superexec", *options]
        superexec.time.sleep(600)  # the SuperNode above has rung
        executor.SubprocessExecutor().launch(
            SimpleNamespace(
                task_type=next(iter(executor.TASK_TYPE_TO_COMMAND)),
                appio_api_address="here",
                token="t",
                insecure=True,
                parent_pid=1,
                runtime_dependency_install=False,
                suppress_output=False,
            )
        )

    program = importlib.import_module("flwr.supercore.cli.flower_superexec")
    monkeypatch.setattr(program, "flower_superexec", flower_superexec)
    our_superexec.run_superexec([listening, *options], launched.append)
    assert "--token" in launched[0] and "here" in launched[0]

    def broken(arguments: list[str]) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(our_superexec, "subprocess", SimpleNamespace(Popen=launched.append))
    monkeypatch.setattr(
        our_superexec, "Bell", lambda fd: SimpleNamespace(sleep=lambda seconds: None)
    )
    our_superexec.run_superexec([listening, *options], broken)
    assert "so flwr-" in capsys.readouterr().err
    assert launched[1][1:] == launched[0]  # Flower's own way: the whole command


@pytest.mark.parametrize("isolation", ["subprocess", "process"])
def test_every_start_has_a_secret_that_only_its_superexec_can_read(
    isolation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supernode = importlib.import_module(SUPERNODE)
    for module, name in programs.REPLACED:
        place = importlib.import_module(module)
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.setattr(sys, "argv", ["superfednas"])
    served: list[bytes | None] = []

    def serve(*, superexec_auth_secret: bytes | None, **named: object) -> None:
        assert named == {"address": "here"}
        served.append(superexec_auth_secret)

    def flower_supernode() -> None:  # as it calls it in either mode
        given = b"the user's own" if isolation == "process" else None
        supernode.run_clientappio_api_grpc(address="here", superexec_auth_secret=given)

    program = importlib.import_module("flwr.supernode.cli.flower_supernode")
    monkeypatch.setattr(program, "flower_supernode", flower_supernode)
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        monkeypatch.setattr(supernode, "run_clientappio_api_grpc", serve)
        options = ["--insecure", f"--isolation={isolation}"]
        with pytest.raises(RefusedError):
            our_supernode.run_supernode(options, 0.01, print, Words(), file)
    if isolation == "process":
        assert served == [b"the user's own"] * 2 and not any(file.exists() for file in files)
        return
    assert [file.read_bytes() for file in files] == served
    assert len(set(served)) == 2 and all(len(secret or b"") == 32 for secret in served)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


# Flower's own node in its place


OPTIONS = ["--insecure", "--node-config=partition-id=0 num-partitions=2"]
AT_HOME = "--clientappio-api-address=127.0.0.1:9094"  # what is given comes later, and counts


class BecameError(Exception):
    """The process became another."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple]:
    """Return what the process would have become."""
    found: list[tuple] = []

    def become(*what: object) -> None:
        found.append(what)
        raise BecameError

    monkeypatch.setattr(os, "execvpe", become)
    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.setattr(node.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(node, "_LONGEST_FOLDER", 1000)
    return found


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (SUPERNODE, "_pull_and_store_message"),
        (PULLS, "pull_objects"),
        ("flwr.common.config", "parse_config_args"),
    ],
)
def test_the_plain_node_runs_where_an_internal_is_missing(
    module, name, became, monkeypatch, capsys
) -> None:
    monkeypatch.delattr(importlib.import_module(module), name)
    with pytest.raises(BecameError):
        node.run([*OPTIONS, "--superlink", "a:1"], 0.5)
    ((program, line, env),) = became
    assert program == "flower-supernode"
    assert line == ["flower-supernode", AT_HOME, *OPTIONS, "--superlink", "a:1"]
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"{module}.{name}" in sentence
    assert "so Flower's own flower-supernode runs" in sentence
    folder = Path(env[FOLDER_VARIABLE])  # the worker stays
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / NODE_LOCK).exists()


@pytest.mark.parametrize(
    ("system", "options", "why"),
    [
        ("Darwin", OPTIONS, "Darwin is not Linux"),
        ("Linux", [*OPTIONS, "--allow-runtime-dependency-installation"], "for every message"),
    ],
)
def test_the_plain_node_runs_alone_where_no_worker_can(
    system, options, why, became, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(node.platform, "system", lambda: system)
    with pytest.raises(BecameError):
        node.run(options, 0.5)
    ((_, line, env),) = became
    assert line == ["flower-supernode", AT_HOME, *options]
    assert not env[FOLDER_VARIABLE]
    assert why in capsys.readouterr().err


def test_the_folder_and_the_superexec_go_with_the_node(became, monkeypatch, tmp_path) -> None:
    ended: list[str] = []
    superexec = SimpleNamespace(terminate=lambda: ended.append("superexec"))
    monkeypatch.setattr(node.subprocess, "Popen", lambda *command, **how: superexec)
    refused = RefusedError("no")

    def supernode(options: list[str], longest: float, start, explaining, secret: Path) -> None:
        (folder,) = tmp_path.iterdir()
        assert str(folder) == os.environ[FOLDER_VARIABLE]
        assert (options, longest) == ([AT_HOME, *OPTIONS], 0.25)
        assert secret.parent == folder and not secret.exists()
        assert (explaining.superlink, explaining.insecure) == ("0.0.0.0:9092", True)
        start(["5", "--insecure"])
        raise refused

    monkeypatch.setattr(our_supernode, "run_supernode", supernode)
    with pytest.raises(RefusedError) as raised:
        node.run(OPTIONS, 0.25)
    assert raised.value is refused
    assert ended == ["superexec"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_a_wrong_node_config_ends_flowers_own_node_too(system, became, monkeypatch) -> None:
    monkeypatch.setattr(node.platform, "system", lambda: system)
    with pytest.raises(RefusedError) as refused:
        node.run(["--insecure", "--node-config", 'name="a"'], 0.5)
    assert refused.value.code == 2
    assert not became


def test_the_verb_hands_on_every_option_of_flowers_node(became) -> None:
    options = ["--insecure", "--node-config", "name='a' partition-id=0", "--max-retries=3"]
    with pytest.raises(BecameError):
        cli.app(["node", "--poll", "0.2", *options], standalone_mode=False)
    ((_, line, env),) = became
    assert line[:4] == [sys.executable, "-P", "-m", "superfednas.deploy.fleet.node"]
    assert line[4:] == ["0.2", *options]
    assert env["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


# Processes


@pytest.mark.processes
def test_a_nursery_forks_a_child_for_every_order_and_ends_with_its_parent(tmp_path: Path) -> None:
    code = """
import os, pathlib, sys, json, random
import numpy.random  # as numpy before 2 does by itself
from superfednas.flower.fork_server import Nursery

folder = pathlib.Path(sys.argv[1])

def serve(arguments):
    row = {"pid": os.getpid(), "parent": os.getppid(), "said": arguments}
    row |= {"draw": random.random(), "noise": numpy.random.normal()}
    (folder / arguments[0]).write_text(json.dumps(row))
    if arguments[0] == "1":
        raise ValueError("the nursery lives on")
    if arguments[0] == "2":
        sys.exit(3)

nursery = Nursery(serve)
for number in range(5):
    nursery.launch([str(number), "two words"])
(folder / "nursery").write_text(str(nursery.pid))
sys.stdin.read()
"""
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        written = [tmp_path / name for name in ("0", "1", "2", "3", "4", "nursery")]
        wait_until(lambda: all(p.exists() and p.read_text() for p in written), 60, "the children")
        rows = [json.loads(path.read_text()) for path in written[:5]]
        nursery = int(written[5].read_text())
        assert [row["said"] for row in rows] == [[str(n), "two words"] for n in range(5)]
        assert len({row["pid"] for row in rows}) == 5
        assert {row["parent"] for row in rows} == {nursery}
        assert len({row["draw"] for row in rows}) == 5
        assert len({row["noise"] for row in rows}) == 5
        wait_until(lambda: not psutil.Process(nursery).children(), 20, "the children's end")
    finally:
        running.kill()
        running.wait()
    wait_until(lambda: not psutil.pid_exists(nursery), 20, "the nursery's end")


HANDING_OVER = {
    *("app", "client", "client.worker", "client.worker.handover", "flower", "flower.codes"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "rooms"),
    [
        ("superfednas.app", HANDING_OVER),
        ("superfednas.app, flwr.clientapp.mod", HANDING_OVER),
        (
            "superfednas.flower.superexec, flwr.supernode.cli.flwr_clientapp",
            {
                *("common", "common.words"),
                *("flower", "flower.fork_server", "flower.programs", "flower.refusal"),
                "flower.superexec",
            },
        ),
        (
            "superfednas.deploy.fleet.node",
            {
                *("client", "client.allow", "client.node_config", "client.worker"),
                *("client.worker.handover", "common", "common.damage", "common.files"),
                *(
                    "common.imports",
                    "common.keys",
                    "common.settings",
                    "common.trust",
                    "common.words",
                ),
                *("deploy", "deploy.doctor", "deploy.doctor.faults", "deploy.doctor.finding"),
                *("deploy.doctor.superlink", "deploy.fleet", "deploy.fleet.admission"),
                *("deploy.fleet.node", "flower", "flower.api", "flower.codes", "flower.joining"),
                *("flower.options", "flower.programs", "flower.refusal", "flower.retries"),
                *("flower.signatures", "flower.supernode"),
                *("nas", "nas.cost", "nas.cost.cost"),
                *("records", "records.announcements", "records.index", "records.lines"),
                *("records.refusals", "records.rows", "wire", "wire.claims", "wire.errands"),
            },
        ),
    ],
)
def test_what_starts_often_or_stays_is_light(imports: str, rooms: set[str], tmp_path: Path) -> None:
    code = f"import json, sys, {imports}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout))
    assert "flwr" in loaded
    assert not {"torch", "sklearn", "scipy"} & loaded
    ours = {name.partition(".")[2] for name in loaded if name.startswith("superfednas.")}
    assert ours == rooms
