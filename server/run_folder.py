"""The run folder: settings, metrics, checkpoints and the trained supernet of one run.

``run.json``             format version, settings, versions, how far the run is
``metrics.jsonl``        a line a round, an evaluation, a summary
``metrics.prom``         the newest of them for Prometheus
``log.jsonl``            what else happened: a line an event, of all starts of the run
``checkpoints/``         the last few states with the policy's counters, each with a checksum
``supernet.safetensors`` the trained weights, once the run has ended

Files are written whole and then renamed, so a kill at any moment leaves the old or the new one.
Nothing is pickled.
"""

import contextlib
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from server.newest import (
    FINISHED,
    RUNNING,
    RUNS,
    came_to_nothing,
    describe_end,
    newest_first,
)
from server.tensor_files import FORMAT, read_tensors, write_tensors
from server.tensor_files import RunFolderError as RunFolderError  # part of what this module gives
from supernet import State
from supernet.config import Scalar
from supernet.files import write_whole
from supernet.wire import source_fingerprint, source_root

LATEST = "latest"
_PACKAGES = ("superfednas", "flwr", "torch", "numpy", "ray")


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after a round.

    Parameters
    ----------
    round
        The last finished round; 0 before the first.
    state
        The supernet's tensors.
    memory
        Policy counters and the like, JSON values.
    """

    round: int
    state: State
    memory: dict[str, Any]


class RunFolder:
    """One run's folder.

    Parameters
    ----------
    path
        The folder. Use :meth:`create` or :meth:`open`.

    Attributes
    ----------
    damaged
        A sentence for each checkpoint that :meth:`latest` has passed by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[str] = []
        self.info: dict[str, Any] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @classmethod
    def create(cls, path: str, settings: Mapping[str, Scalar], space: str) -> "RunFolder":
        """Make a new run folder.

        Parameters
        ----------
        path
            Where; empty is ``~/.superfednas/runs/<time>-<space>``.
        settings
            The run's flat settings.
        space
            The space's name, for the default path.

        Raises
        ------
        RunFolderError
            Where the folder already holds something: nothing is ever overwritten.
        """
        folder = Path(path).expanduser().resolve() if path else _default_path(space)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(
                f"run-dir {str(folder)!r} is not empty: choose a new folder, or go on with the run "
                f"in it by resume={str(folder)!r}"
            )
        (folder / "checkpoints").mkdir(parents=True)
        run = cls(folder)
        run.info = {
            "format": FORMAT,
            "settings": dict(settings),
            "status": RUNNING,
            "round": 0,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": _versions(),
            "git": _git_state(),
            "source": source_fingerprint(),
        }
        run.save_info()
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run folder.

        ``latest`` is the newest in ``~/.superfednas/runs``; one that failed or was interrupted
        before it had trained anything is passed by.

        Raises
        ------
        RunFolderError
            Where it is none, or of another format version.
        """
        folder = _latest() if str(path) == LATEST else Path(path).expanduser().resolve()
        run = cls(folder)
        try:
            run.info = json.loads((folder / "run.json").read_text())
        except FileNotFoundError:
            raise RunFolderError(f"{str(folder)!r} is no run folder: it has no run.json") from None
        except (ValueError, OSError) as error:
            raise RunFolderError(f"{str(folder / 'run.json')!r} cannot be read: {error}") from None
        if not isinstance(run.info, dict) or run.info.get("format") != FORMAT:
            found = run.info.get("format") if isinstance(run.info, dict) else None
            raise RunFolderError(
                f"{str(folder)!r} has run-folder format {found!r}; this version reads {FORMAT}"
            )
        return run

    @property
    def settings(self) -> dict[str, Scalar]:
        """The run's flat settings."""
        return dict(self.info["settings"])

    def save_info(self) -> None:
        """Write ``run.json`` whole."""
        write_whole(self.path / "run.json", json.dumps(self.info, indent=1))

    @contextlib.contextmanager
    def written(self, by: str = "") -> Iterator[None]:
        """Keep other processes from writing into the folder for the length of a block.

        Parameters
        ----------
        by
            Who writes, for whoever is kept from it; by default this process.

        Raises
        ------
        RunFolderError
            Where another process does. The system frees the lock of one that was killed.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self.info["writer"] = by or f"process {os.getpid()} on {platform.node()}"
                self.save_info()
                yield
        except Timeout:
            writer = RunFolder.open(self.path).info.get("writer", "another process")
            raise RunFolderError(
                f"{str(self.path)!r} is being written by {writer}: wait for its end, or end it"
            ) from None

    # Metrics

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to ``log.jsonl``, with the time; a torn line before it stays alone."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **row}) + "\n"
        with (self.path / "log.jsonl").open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    line = "\n" + line
            file.write(line.encode())

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``; a torn last line is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        rows = []
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number + 1 < len(lines):
                    raise RunFolderError(
                        f"{str(self.path / 'metrics.jsonl')!r}: line {number + 1} is damaged"
                    ) from None
        return rows

    def forget_after(self, round: int) -> None:  # noqa: A002
        """Drop the metrics of rounds past a checkpoint, and a torn line."""
        kept = [r for r in self.rows() if r["round"] <= round and r["kind"] not in _AT_THE_END]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_whole(self.path / "metrics.jsonl", text)

    # Weights

    def checkpoint(self, point: Checkpoint, keep: int) -> None:
        """Write a checkpoint whole; the oldest beyond ``keep`` go."""
        self.begin_checkpoint(point, keep)
        self.settle()

    def begin_checkpoint(self, point: Checkpoint, keep: int) -> None:
        """Write a checkpoint while the caller goes on; :meth:`settle` waits for it.

        The tensors must stay as they are until then; what is remembered beside them is read here.
        """
        self.settle()
        about = json.dumps({"round": point.round, "memory": point.memory})
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._writer.submit(self._write, point.round, point.state, about, keep)

    def settle(self) -> None:
        """Wait until the checkpoint that was begun is on the disk; raise what stopped it."""
        writing = self._writing
        if writing is not None:
            wait([writing])  # before it is forgotten: the wait may be interrupted
            self._writing = None
            writing.result()

    def _write(self, number: int, state: State, about: str, keep: int) -> None:
        write_tensors(self.path / "checkpoints" / f"round-{number:06d}.safetensors", state, about)
        for old in self._checkpoints()[:-keep]:
            old.unlink()
        self.info["round"] = number
        self.save_info()

    def latest(self) -> Checkpoint:
        """Read the newest checkpoint that is whole.

        A damaged one is passed by; :attr:`damaged` says which, and why.

        Raises
        ------
        RunFolderError
            Where there is none, or all are damaged.
        """
        self.damaged = []
        for path in reversed(self._checkpoints()):
            try:
                state, about = read_tensors(path)
                return Checkpoint(int(about["round"]), state, about["memory"])
            except RunFolderError as error:
                self.damaged.append(str(error))
        if self.damaged:
            raise RunFolderError("no checkpoint is whole: " + "; ".join(self.damaged))
        raise RunFolderError(f"{str(self.path)!r} has no checkpoint to go on from")

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*.safetensors"))

    def finish(self, state: Mapping[str, torch.Tensor], rounds: int) -> None:
        """Write the trained supernet and mark the run as finished."""
        self.settle()
        write_tensors(self.path / "supernet.safetensors", state, {"round": rounds})
        self.info |= {"status": FINISHED, "round": rounds}
        self.save_info()

    def weights(self) -> tuple[dict[str, torch.Tensor], int]:
        """Return the trained supernet (unfinished: the newest checkpoint) and its round."""
        final = self.path / "supernet.safetensors"
        if final.exists():
            state, about = read_tensors(final)
            return state, int(about["round"])
        point = self.latest()
        return point.state, point.round


_AT_THE_END = ("test", "summary")


def _latest() -> Path:
    """Return the newest run that holds something, or may yet."""
    runs = newest_first()
    if not runs:
        raise RunFolderError(f"there is no run folder in {RUNS}: name one")
    for run in runs:
        if not came_to_nothing(run):
            return run
    raise RunFolderError(
        f"no run in {RUNS} has trained anything; the newest, {str(runs[0])!r}, "
        f"{describe_end(runs[0])}"
    )


def _default_path(space: str) -> Path:
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
    """Return commit and cleanliness of the code's checkout, or an empty text where it is none."""
    command = ["git", "-C", str(source_root()), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
