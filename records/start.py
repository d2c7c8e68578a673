"""The start of a run folder: what ``run.json`` says at first, and what a killed start has left."""

import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from superfednas.common.damage import fill
from superfednas.common.settings import Scalar
from superfednas.records.index import RUNNING, RUNS
from superfednas.records.releases import RELEASES
from superfednas.records.tensors import FORMAT, RunFolderError
from superfednas.wire.source import source_fingerprint, source_root

# What ``run.json`` says beside the settings of what is trained: the subnets that evaluations look
# at, by name, and whether clients get width levels alone.
LADDER, ONLY_LEVELS = "ladder", "only-levels"
# What there may be before a start's first checkpoint.
_OF_A_START = {"run.json", "log.jsonl", "metrics.prom", RELEASES, ".lock", "checkpoints"}
_PACKAGES = ("superfednas", "flwr", "torch", "numpy", "ray")


@dataclass(frozen=True)
class _Info:
    """What ``run.json`` holds, as far as others than people read it."""

    settings: Mapping[str, Scalar] = field(default_factory=dict)
    status: str = ""
    round: int = 0
    ladder: Mapping[str, str] = field(default_factory=dict)


_CHECKED = ("settings", "status", "round", LADDER)


class Settings(dict[str, Scalar]):
    """A run's flat settings."""

    def __init__(self, path: Path, values: Mapping[str, Scalar]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Scalar:
        """Refuse a file without a setting that is asked for."""
        raise RunFolderError(f"{str(self._path)!r} is damaged: it lacks the setting {key!r}")


def check_info(info: Mapping[str, Any]) -> None:
    """Check the values of ``run.json`` that are read; TypeError names one that cannot be."""
    fill(_Info, {key: info[key] for key in _CHECKED if key in info})


def first_info(settings: Mapping[str, Scalar]) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that has just begun."""
    return {
        "format": FORMAT,
        "settings": dict(settings),
        "status": RUNNING,
        "round": 0,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": _versions(),
        "git": _git_state(),
        "source": source_fingerprint(),
    }


def barely_begun(folder: Path) -> bool:
    """Return whether a start has left a folder before its first checkpoint: nothing is lost."""
    return (
        (folder / "checkpoints").is_dir()
        and {path.name for path in folder.iterdir() if path.suffix != ".part"} <= _OF_A_START
        and all(path.suffix == ".part" for path in (folder / "checkpoints").iterdir())
    )


def not_empty(folder: Path) -> str:
    """Return why a run cannot begin in a folder, and what to do."""
    if folder.is_dir() and barely_begun(folder):
        return (
            f"run-dir {str(folder)!r} holds a run that ended before its first checkpoint: start it "
            "with keep-going, or remove the folder"
        )
    return (
        f"run-dir {str(folder)!r} is not empty: choose a new folder, or resume the run "
        f"in it with resume={str(folder)!r}"
    )


def default_path(space: str) -> Path:
    """Return a free folder in :data:`RUNS`, named by the time and the space."""
    base = Path(RUNS).expanduser()
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{space.replace(':', '.')}"
    path, number = base / stem, 1
    while path.exists():
        number += 1
        path = base / f"{stem}-{number}"
    return path


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git_state() -> str:
    """Return commit and cleanliness of the code's checkout; empty if it is not a checkout."""
    command = ["git", "-C", str(source_root()), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
