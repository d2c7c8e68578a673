"""Checks of Flower's folder and of leftovers of earlier runs. They change nothing."""

import ast
import os
import shlex
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from superfednas.deploy.doctor.finding import FAULT, OK, WARNING, Finding, few
from superfednas.deploy.doctor.machine import HOME, flower_home
from superfednas.flower import local_superlink
from superfednas.records.index import status_of

_QUIET = 600.0  # seconds without a write after which a file or run counts as abandoned
_RAY_BYTES = 2**30
_RAY_ENTRIES = 50_000
_APP_PROCESSES = ("flwr-serverapp", "flwr-clientapp", "flwr-simulation")
_RAY_PROCESSES = ("raylet", "gcs_server")
_PARENTS = ("flower-superlink", "flower-supernode", "flower-superexec")
_APPS_LOOKED_AT = 5


# Flower's folder


def flower_folder() -> list[Finding]:
    """Check that Flower can write its folder and read its connections."""
    home = flower_home()
    there = next(path for path in (home, *home.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        remedy = "make it yours (chown), or name another folder: export FLWR_HOME=DIR"
        return [Finding("FLWR_HOME", FAULT, f"{home} cannot be written", remedy)]
    found = [Finding("FLWR_HOME", OK, f"{home} can be written")]
    config = home / "config.toml"
    if not config.exists():
        return [*found, Finding("connections", OK, f"no {config} yet: Flower writes it")]
    try:
        content = tomllib.loads(config.read_text())
    except (OSError, ValueError) as error:
        text, remedy = f"{config} cannot be read: {error}", "mend it, or move it away"
        return [*found, Finding("connections", FAULT, text, remedy)]
    return [*found, *_connections(config, content)]


def _connections(config: Path, content: dict[str, Any]) -> list[Finding]:
    section = content.get("superlink")
    section = section if isinstance(section, dict) else {}
    known = {name: entry for name, entry in section.items() if isinstance(entry, dict)}
    default = section.get("default")
    wrong = []
    if default not in known:
        text = f"the default {default!r} is none of {config}'s connections ({few(list(known))})"
        remedy = 'write [superlink] default = "NAME" there, as in default = "local"'
        wrong.append(Finding("connections", FAULT, text, remedy))
    for name, entry in known.items():
        problem, remedy = _connection(entry)
        if problem:
            text = f"[superlink.{name}] in {config}: {problem}"
            state = FAULT if name == default else WARNING
            wrong.append(Finding("connections", state, text, remedy))
    text = f"{few(list(known))} in {config}, default {default}"
    return wrong or [Finding("connections", OK, text)]


def _connection(entry: dict[str, Any]) -> tuple[str, str]:
    """Return what is wrong with a connection and its remedy, or two empty strings."""
    certificates = entry.get("root-certificates")
    if "address" not in entry and "options" not in entry:
        return "it has no address", 'write address = "HOST:9093"'
    if certificates is None:
        return "", ""
    if entry.get("insecure") is True:
        return "it has root-certificates and insecure = true", "leave one of them out"
    path = Path(str(certificates)).expanduser()
    if not path.is_absolute():
        text = f"root-certificates {certificates!r} is looked for in the current folder"
        return text, "write the absolute path"
    if not path.is_file():
        return f"root-certificates {certificates!r} is not there", "copy the CA's certificate there"
    return "", ""


def installed_apps() -> list[Finding]:
    """Look for partly installed apps in Flower's folder.

    Flower 1.31 fills an app's folder in place, without a lock, and accepts any existing folder: if
    the process died half-way, every later run of that app uses the incomplete folder.
    """
    folders = [path for path in (flower_home() / "apps").glob("*") if path.is_dir()]
    newest = sorted(folders, key=lambda path: path.stat().st_mtime)[-_APPS_LOOKED_AT:]
    broken = {path: lack for path in newest if (lack := incomplete(path))}
    if not broken:
        return [Finding("installed apps", OK, f"{len(newest)} of {len(folders)} looked at: whole")]
    return [
        Finding(
            "installed apps",
            FAULT,
            f"{path} is incomplete: {lack}",
            f"while no run is starting: rm -r {shlex.quote(str(path))}",
        )
        for path, lack in broken.items()
    ]


def incomplete(app: Path) -> str:
    """Return what an installed app lacks: a file that its pyproject.toml or its modules name.

    Returns
    -------
    str
        Empty if nothing is missing.
    """
    try:
        about = tomllib.loads((app / "pyproject.toml").read_text())
        components = about["tool"]["flwr"]["app"]["components"]
        modules = {str(reference).partition(":")[0] for reference in components.values()}
    except (OSError, ValueError, KeyError, AttributeError):
        return "its pyproject.toml is missing or cut off"
    build = about["tool"].get("hatch", {}).get("build", {}).get("targets", {}).get("wheel", {})
    modules |= {str(name).removesuffix(".py") for name in build.get("packages", ())}
    lies = {
        str(name).replace("/", "."): str(path) for path, name in build.get("sources", {}).items()
    }
    own = {module.partition(".")[0] for module in modules}
    for path in sorted(app.rglob("*.py")):
        if any(part.startswith(".") for part in path.relative_to(app).parts):
            continue  # a virtual environment in a checkout; Flower's apps have none
        try:
            imported = set(_imported(ast.parse(path.read_text())))
        except (OSError, ValueError, SyntaxError):
            return f"{path.relative_to(app)} is cut off"
        modules |= {name for name in imported if name.partition(".")[0] in own}
    for module in sorted(modules):
        package = next((p for p in lies if module == p or module.startswith(p + ".")), "")
        named = f"{lies[package]}{module[len(package) :]}" if package else module
        place = app.joinpath(*named.split("."))
        if not (place.is_dir() or place.with_name(place.name + ".py").exists()):
            return f"{module} is missing"
    return ""


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


# Processes and files


def processes() -> list[Finding]:
    """Look for a local SuperLink, and for processes that outlived the program that started them."""
    found = [_local_superlink()]
    apps: list[psutil.Process] = []
    rays: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        uids = process.info["uids"]
        if uids is not None and uids.real != os.getuid():
            continue
        name = _name(process)
        if name in (*_APP_PROCESSES, *_RAY_PROCESSES) and _is_orphan(process):
            (apps if name in _APP_PROCESSES else rays).append(process)
    if apps:
        text = "left over: " + few([f"{_name(p)} ({p.pid})" for p in apps])
        remedy = "kill " + " ".join(str(p.pid) for p in apps)
        found.append(Finding("processes", WARNING, text, remedy))
    if rays:
        text = "Ray without a run: " + few([f"{_name(p)} ({p.pid})" for p in rays])
        remedy = "ray stop, unless you started this Ray yourself"
        found.append(Finding("processes", WARNING, text, remedy))
    if not apps and not rays:
        found.append(Finding("processes", OK, "no server app, client app or Ray left over"))
    return found


def _local_superlink() -> Finding:
    running = local_superlink.find()
    if not running:
        return Finding("local SuperLink", OK, "not running; flwr run starts it")
    process = running[0]
    try:
        folder = process.cwd()
    except psutil.Error:
        folder = "a deleted folder"
    text = f"running (process {process.pid}), started in {folder}"
    remedy = "superfednas stop stops it; do so after running another app or version"
    return Finding("local SuperLink", OK, text, remedy)


def _name(process: psutil.Process) -> str:
    """Return the name of a Flower or Ray process, else an empty string."""
    names = (*_APP_PROCESSES, *_RAY_PROCESSES, *_PARENTS)
    try:
        parts = process.info["cmdline"] if hasattr(process, "info") else process.cmdline()
    except psutil.Error:
        return ""
    return next((n for part in (parts or [])[:3] if (n := os.path.basename(part)) in names), "")


def _is_orphan(process: psutil.Process) -> bool:
    """Return whether none of a process's ancestors is a program that starts such processes.

    Ray's processes may also belong to a running program of the user.
    """
    try:
        parents = process.parents()
    except psutil.Error:  # it has just ended
        return False
    if any(_name(parent) in (*_PARENTS, *_APP_PROCESSES) for parent in parents):
        return False
    adopted = not parents or parents[0].pid == 1 or parents[0].name() == "systemd"
    return _name(process) in _APP_PROCESSES or adopted


def ray_sessions(folder: Path | None = None) -> list[Finding]:
    """Check the disk space of Ray's sessions.

    Parameters
    ----------
    folder
        Instead of Ray's own.
    """
    root = folder or Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    sessions = [p for p in root.glob("session_*") if p.is_dir() and not p.is_symlink()]
    size, entries = 0, 0
    for session in sessions:
        for path in session.rglob("*"):
            entries += 1
            if entries > _RAY_ENTRIES:
                break
            size += path.lstat().st_size
    text = f"{len(sessions)} in {root}, {size / 2**20:,.0f} MiB"
    if size < _RAY_BYTES:
        return [Finding("Ray sessions", OK, text)]
    remedy = f"when no Ray is running: rm -r {shlex.quote(str(root))}"
    return [Finding("Ray sessions", WARNING, text, remedy)]


def torn_files() -> list[Finding]:
    """Look for partly written files of killed processes."""
    root = Path(HOME).expanduser()
    left = [
        path
        for pattern in ("*.part", "held-*.npy")
        for path in root.rglob(pattern)
        if _age(path) > _QUIET
    ]
    if not left:
        return [Finding("torn files", OK, f"none below {root}")]
    names = shlex.join(map(str, left[:5]))
    text = f"{len(left)} below {root}, most likely of a killed process"
    remedy = f"while no run is in progress: rm {names}{' …' if len(left) > 5 else ''}"
    return [Finding("torn files", WARNING, text, remedy)]


def unfinished_runs() -> list[Finding]:
    """Look for unfinished runs with a checkpoint to resume from."""
    waiting = []
    for info in (Path(HOME).expanduser() / "runs").glob("*/run.json"):
        status, done = status_of(info.parent)
        if not status:
            waiting.append((info.parent, "its run.json cannot be read", ""))
            continue
        quiet = min(_age(path) for path in (info, *info.parent.glob("metrics.jsonl")))
        if status == "finished" or (status == "running" and quiet < _QUIET):
            continue
        if any(info.parent.glob("checkpoints/round-*.safetensors")):
            silent = f"nothing written for {quiet / 60:.0f} minutes"
            said = f"{silent if status == 'running' else status}, after round {done}"
            folder = shlex.quote(str(info.parent))
            remedy = f"superfednas train --resume {folder}, or flwr run with resume='DIR'"
            waiting.append((info.parent, said, remedy))
    if not waiting:
        return [Finding("unfinished runs", OK, f"none in {HOME}/runs")]
    newest = sorted(waiting)[-5:]
    more = len(waiting) - len(newest)
    return [
        Finding(
            "unfinished runs",
            WARNING,
            f"{path}: {said}" + (f" ({more} older ones besides)" if more and not n else ""),
            remedy or f"remove the folder, or put back its run.json: {path}",
        )
        for n, (path, said, remedy) in enumerate(newest)
    ]


def _age(path: Path) -> float:
    """Return the seconds since a file was written; 0 if it has disappeared."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
