"""Checks of this machine: versions, torch, cores, memory, disk, ports, environment.

Each returns findings, takes seconds at most and changes nothing. Nothing heavy is imported, so that
they also work on a machine where torch or Flower is broken.
"""

import importlib.metadata
import ipaddress
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from superfednas import ROOT
from superfednas.deploy.doctor.finding import FAULT, OK, WARNING, Finding, few
from superfednas.flower import local_superlink

HOME = "~/.superfednas"
_GIB = 2**30
_LITTLE_MEMORY, _LITTLE_DISK, _NO_DISK = 1.0, 2.0, 0.2  # GiB
_MANY_CORES = 16
_PORTS = {
    9091: ("ServerAppIo API", "--serverappio-api-address"),
    9092: ("Fleet API", "--fleet-api-address"),
    9093: ("Control API", "--control-api-address"),
}
_OPTIONAL = {"torchvision": "only CIFAR by name needs it"}
_TORCH = """
import json, torch
ones = torch.ones(8, 8)
found = {"torch": torch.__version__, "sum": float((ones @ ones).sum()), "gpu": ""}
if torch.cuda.is_available():
    found["gpu"] = torch.cuda.get_device_name()
    found["sum"] = float((ones.cuda() @ ones.cuda()).sum())
try:
    import torchvision
    found["torchvision"] = torchvision.__version__
except ModuleNotFoundError:
    found["torchvision"] = ""
except Exception as error:
    found["problem"] = str(error).splitlines()[0]
print(json.dumps(found))
"""
_TORCH_PATIENCE = 120.0


def flower_home() -> Path:
    """Return Flower's own folder: FLWR_HOME, else ~/.flwr."""
    return Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser()


def versions() -> list[Finding]:
    """Compare Python and the installed packages with the ranges that this project requires."""
    python, required = _requirements()
    found = [_python(python)]
    wrong = []
    for requirement in required:
        try:
            have = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            have = "not installed"
        if have != "not installed" and requirement.specifier.contains(have, prereleases=True):
            continue
        asked = f"{requirement.name}{requirement.specifier}"
        why = _OPTIONAL.get(requirement.name)
        state = WARNING if why and have == "not installed" else FAULT
        text = f"{have}, needed is {asked}" + (f" ({why})" if why else "")
        wrong.append(Finding(requirement.name, state, text, f"pip install '{asked}'"))
    if not wrong:
        found.append(Finding("packages", OK, f"{len(required)} within their ranges"))
    return found + wrong


def _python(allowed: str) -> Finding:
    have = platform.python_version()
    fits = SpecifierSet(allowed).contains(have, prereleases=True)
    remedy = "" if fits else f"make the virtual environment with a Python {allowed}"
    return Finding("python", OK if fits else FAULT, f"{have} (allowed: {allowed})", remedy)


def _requirements() -> tuple[str, list[Requirement]]:
    """Return the required ranges of Python and of each package, of the checkout or as installed."""
    project = ROOT / "pyproject.toml"
    if project.exists():
        about = tomllib.loads(project.read_text())["project"]
        return about["requires-python"], [Requirement(text) for text in about["dependencies"]]
    installed = importlib.metadata.metadata("superfednas")
    every = [Requirement(text) for text in installed.get_all("Requires-Dist") or []]
    wanted = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    return installed["Requires-Python"], wanted


def torch_computes() -> list[Finding]:
    """Import torch and torchvision in a separate process, and let torch compute.

    A build for another processor crashes its process; this one survives.
    """
    command = [sys.executable, "-P", "-c", _TORCH]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TORCH_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        text = f"does not import within {_TORCH_PATIENCE:g} s"
        remedy = "check whether the disk or the machine is overloaded, then try again"
        return [Finding("torch", FAULT, text, remedy)]
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        remedy = "install a build for this machine: pip install --force-reinstall torch torchvision"
        return [Finding("torch", FAULT, f"does not work: {said[0]:.300}", remedy)]
    return _read_torch(json.loads(done.stdout.splitlines()[-1]))


def _read_torch(about: Mapping[str, object]) -> list[Finding]:
    right = about["sum"] == 512
    found = [
        Finding(
            "torch",
            OK if right else FAULT,
            f"{about['torch']} computes{'' if right else ' wrongly'} on "
            + (f"the CPU and {about['gpu']}" if about["gpu"] else "the CPU (no CUDA device)"),
            "" if right else "install a build for this machine's processor or GPU driver",
        )
    ]
    if "problem" in about:
        text = f"does not fit torch {about['torch']}: {about['problem']:.200}"
        remedy = "pip install --force-reinstall torch torchvision, both at once"
        found.append(Finding("torchvision", WARNING, text, remedy))
    elif about["torchvision"]:
        found.append(Finding("torchvision", OK, f"{about['torchvision']} fits torch"))
    else:
        found.append(Finding("torchvision", OK, "not installed; needed only for CIFAR by name"))
    return found


def cores() -> list[Finding]:
    """Check the cores that this process may use."""
    count = usable_cores()
    if count < 4:
        remedy = "by default a simulation starts one client for every 2 cores: "
        remedy += '--federation-config "client-resources-num-cpus=1"'
    elif count >= _MANY_CORES and "OMP_NUM_THREADS" not in os.environ:
        remedy = "on a shared machine, set OMP_NUM_THREADS"
    else:
        remedy = ""
    return [Finding("cores", OK, f"{count} usable", remedy)]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> list[Finding]:
    """Check the free memory."""
    free = available_memory() / _GIB
    if free >= _LITTLE_MEMORY:
        return [Finding("memory", OK, f"{free:.1f} GiB free")]
    remedy = "stop other programs, or give this node a budget: superfednas probe"
    return [Finding("memory", WARNING, f"{free:.1f} GiB free", remedy)]


def available_memory(limits: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes available without swapping, within the limit of a container.

    Parameters
    ----------
    limits
        Where Linux keeps the container's limit (cgroup v2).
    """
    free: int = psutil.virtual_memory().available
    try:
        most, used = ((limits / f"memory.{what}").read_text() for what in ("max", "current"))
        return min(free, max(int(most) - int(used), 0))
    except (OSError, ValueError):  # no container, no limit ("max"), or another system
        return free


def disk() -> list[Finding]:
    """Check the disk space for runs, data and Flower's files."""
    found = []
    for folder in (Path(HOME).expanduser(), flower_home()):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / _GIB
        state = OK if free >= _LITTLE_DISK else WARNING if free >= _NO_DISK else FAULT
        remedy = "" if state == OK else f"free some space there, or move it: {_elsewhere(folder)}"
        found.append(Finding("disk", state, f"{free:.1f} GiB free at {folder}", remedy))
    return found


def _elsewhere(folder: Path) -> str:
    return "FLWR_HOME names another folder" if folder == flower_home() else "run-dir, data-cache"


def ports() -> list[Finding]:
    """Check for every default port whether it is free, or who listens there."""
    found = [
        _port(port, f"{api} of a superlink", f"give the superlink another one: {option}")
        for port, (api, option) in _PORTS.items()
    ]
    own = local_superlink.port()
    remedy = "FLWR_LOCAL_CONTROL_API_PORT names another port for the local SuperLink"
    found.append(_port(own, "Control API of the local SuperLink", remedy))
    return found


def _port(port: int, use: str, remedy: str) -> Finding:
    name = f"port {port}"
    if _is_free(port):
        return Finding(name, OK, f"free ({use})")
    process = _listener(port)
    who = "another user's process" if process is None else _called(process)
    if process is not None and "flower-superlink" in who:
        return Finding(name, OK, f"taken by {who} ({use})")
    return Finding(name, WARNING, f"taken by {who}; it is the {use}", remedy)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # left by a closed connection
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _listener(port: int) -> psutil.Process | None:
    try:
        for connection in psutil.net_connections("tcp"):
            where = getattr(connection.laddr, "port", None)
            listens = connection.status == psutil.CONN_LISTEN and where == port
            if listens and connection.pid is not None:
                return psutil.Process(connection.pid)
    except psutil.Error:  # some systems tell only root
        pass
    return None


def _called(process: psutil.Process) -> str:
    with process.oneshot():
        try:
            names = [os.path.basename(part) for part in process.cmdline()[:3]]
        except psutil.Error:
            names = []
        flower = next((name for name in names if name.startswith(("flower-", "flwr"))), "")
        return f"{flower or process.name()} (process {process.pid})"


def proxies(hosts: tuple[str, ...], environment: Mapping[str, str]) -> list[Finding]:
    """Check whether gRPC would send connections to these hosts through a proxy.

    gRPC reads only lower-case variables and makes no exception for the loopback interface.

    Parameters
    ----------
    hosts
        Names or addresses that must be reached directly.
    environment
        Environment variables.
    """
    proxy = next((k for k in ("grpc_proxy", "https_proxy", "http_proxy") if environment.get(k)), "")
    if not proxy:
        return [Finding("proxy", OK, "none for gRPC")]
    exception = environment.get("no_grpc_proxy") or environment.get("no_proxy", "")
    entries = [entry.strip() for entry in exception.split(",") if entry.strip()]
    through = [host for host in hosts if not any(_excepted(host, entry) for entry in entries)]
    if not through:
        return [Finding("proxy", OK, f"{proxy} is set, but not for {few(list(hosts))}")]
    return [
        Finding(
            "proxy",
            FAULT,
            f"gRPC would reach {few(through)} through the proxy of {proxy}",
            f"export no_proxy={','.join([*entries, *through])}",
        )
    ]


def _excepted(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower())
