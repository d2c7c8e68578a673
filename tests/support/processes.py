"""Real Flower processes for tests: own FLWR_HOME, free ports, everything ended by its id."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return an environment in which Flower touches nothing outside ``home``."""
    return os.environ | {
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def listens(port: int) -> bool:
    """Say whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def process(command: Sequence[str], env: dict[str, str], cwd: Path, log: Path) -> Iterator[int]:
    """Run a process for the length of a block, then end it and all that it has started."""
    with log.open("w") as out:
        running = subprocess.Popen(command, env=env, cwd=cwd, stdout=out, stderr=out)
    try:
        yield running.pid
    finally:
        end(running.pid)
        running.wait(timeout=30)


def end(pid: int) -> None:
    """End a process and its children: politely, then not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes that run with this home (see :func:`environment`)."""
    found = []
    for each in psutil.process_iter(["environ"]):
        if (each.info["environ"] or {}).get("HOME") == str(home):
            found.append(each)
    return found


def run_config(values: dict[str, object]) -> str:
    """Return settings as ``flwr run --run-config`` wants them."""
    texts = {
        key: repr(value) if isinstance(value, str) else str(value).lower()
        for key, value in values.items()
    }
    return " ".join(f"{key}={text}" for key, text in texts.items())


def wait_until(condition, seconds: float, what: str) -> None:
    """Wait for a condition, or fail saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds} s")
        time.sleep(0.02)


@dataclass
class Fleet:
    """A SuperLink and its nodes: where it is, their process ids, and how each was started."""

    control: str
    address: str
    superlink: int
    superlink_command: list[str]
    nodes: list[int] = field(default_factory=list)
    node_commands: list[list[str]] = field(default_factory=list)


@contextlib.contextmanager
def superlink(
    home: Path, env: dict[str, str], options: Sequence[str] = (), host: str = "127.0.0.1"
) -> Iterator[Fleet]:
    """Run a SuperLink without nodes, which ``flwr`` knows as ``dep``; ``host`` is for the nodes."""
    serverappio, fleet_port, control = free_ports(3)
    (home / "flwr").mkdir()
    (home / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "dep"\n\n[superlink.dep]\naddress = "127.0.0.1:{control}"\n'
        "insecure = true\n"
    )
    command = [
        str(BIN / "flower-superlink"),
        "--insecure",
        f"--serverappio-api-address=127.0.0.1:{serverappio}",
        f"--fleet-api-address={host}:{fleet_port}",
        f"--control-api-address=127.0.0.1:{control}",
        *options,
    ]
    with process(command, env, home, home / "superlink.log") as pid:
        wait_until(lambda: listens(control), 60, "the SuperLink's start")
        yield Fleet(f"127.0.0.1:{control}", f"{host}:{fleet_port}", pid, command)


@contextlib.contextmanager
def fleet(
    home: Path,
    env: dict[str, str],
    nodes: int,
    supernode: Sequence[str] = (str(BIN / "flower-supernode"),),
    superlink_options: Sequence[str] = (),
    node_config: str = "",
    parts: int = 0,
) -> Iterator[Fleet]:
    """Run a SuperLink (see :func:`superlink`) and supernodes that share a data set.

    They have its first ``parts``, by default all there are.

    Every node's environment names its own number in ``NODE``; ``node_config`` is more of what each
    is told, with its number in place of ``{node}``.
    """
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(superlink(home, env, superlink_options))
        for number, port in enumerate(free_ports(nodes)):
            node = [
                *supernode,
                "--insecure",
                f"--superlink={found.address}",
                f"--clientappio-api-address=127.0.0.1:{port}",
                f"--node-config=partition-id={number} num-partitions={parts or nodes} "
                + node_config.format(node=number),
            ]
            found.node_commands.append(node)
            found.nodes.append(
                stack.enter_context(
                    process(node, env | {"NODE": str(number)}, home, home / f"node{number}.log")
                )
            )
        yield found


def flwr_run(
    home: Path,
    env: dict[str, str],
    config: dict[str, object],
    seconds: float,
    app: Path = ROOT,
) -> str:
    """Run the app on a :func:`fleet` and return what it said."""
    command = [str(BIN / "flwr"), "run", str(app), "dep", "--stream"]
    done = subprocess.run(
        [*command, "--run-config", run_config(config)],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return done.stdout + done.stderr


# Ray gives its own server 30 s to start, which a busy machine with cold files can exceed.
_RAY_ATTEMPTS = 3
_RAY_DID_NOT_START = ("Timed out waiting for file", "timed out during startup")


def simulate(home: Path, values: dict[str, object], clients: int, cwd: Path) -> tuple[Path, str]:
    """Run the app in Flower's simulation, again where Ray does not start.

    The local SuperLink starts from ``cwd``, and is stopped. Returned are the run folder and what
    was said.
    """
    (port,) = free_ports(1)
    env = environment(home, FLWR_LOCAL_CONTROL_API_PORT=str(port))
    federation = f"num-supernodes={clients} client-resources-num-cpus=1"
    command = [str(BIN / "flwr"), "run", str(ROOT), "--stream"]
    command += ["--federation-config", federation, "--run-config"]
    try:
        for attempt in range(_RAY_ATTEMPTS):
            run_dir = home / f"run{attempt}"
            done = subprocess.run(
                [*command, run_config({**values, "run-dir": str(run_dir)})],
                env=env,
                cwd=cwd,
                capture_output=True,
                text=True,
                timeout=200,
            )
            said = done.stdout + done.stderr
            if not any(text in said for text in _RAY_DID_NOT_START):
                break
        assert (run_dir / "supernet.safetensors").exists(), said
    finally:
        stopped = subprocess.run(
            [sys.executable, "-m", "superfednas.cli", "stop", "--force", "--json"],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert len(json.loads(stopped.stdout)["stopped"]) == 1
    return run_dir, said


# A run that is the same whichever way it is run

CLIENTS = 4
SETTINGS: dict[str, object] = {
    "rounds": 3,
    "clients-per-round": 3,
    "min-nodes": CLIENTS,
    "local-steps": 3,
    "seed": 7,
    "evaluate-every": 2,
    "device": "cpu",
}


def same_supernet(a: Path, b: Path) -> bool:
    """Say whether two runs ended with the same bits."""
    left, right = (load_file(path / "supernet.safetensors") for path in (a, b))
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.int32), right[name].view(torch.int32)) for name in left
    )


def train_command(run_dir: Path, **settings: object) -> list[str]:
    """Return ``superfednas train`` with these settings."""
    values = {**SETTINGS, "clients": CLIENTS, "run-dir": str(run_dir), **settings}
    options = [f"--{key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", "superfednas.cli", "train", *options]
