"""The run folder: settings, metrics, checkpoints and the trained supernet of one run.

``run.json``             format version, settings, versions, how far the run is
``metrics.jsonl``        a line a round, an evaluation, a summary
``metrics.prom``         the newest of them for Prometheus
``log.jsonl``            what else happened: a line an event, of all starts of the run
``checkpoints/``         the last few states with the policy's counters, each with a checksum
``supernet.safetensors`` the trained weights, once the run has ended

Files are written completely and then renamed, so a kill at any moment leaves the old or the new
one. Nothing is pickled.
"""

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from superfednas.common.damage import DAMAGE, damage_of, loads, read_object
from superfednas.common.files import remove_parts, write_whole
from superfednas.common.settings import Scalar
from superfednas.records.checkpoint import Checkpoint, packed, read_checkpoint
from superfednas.records.index import (
    FINISHED,
    RUNS,
    came_to_nothing,
    describe_end,
    info_of,
    newest_first,
)
from superfednas.records.lines import as_json, read_row
from superfednas.records.refusals import Refusal
from superfednas.records.rows import Row, at_the_end
from superfednas.records.start import LADDER as LADDER
from superfednas.records.start import ONLY_LEVELS as ONLY_LEVELS
from superfednas.records.start import (
    Settings,
    barely_begun,
    check_info,
    default_path,
    first_info,
    not_empty,
)
from superfednas.records.tensors import FORMAT, read_tensors, write_tensors
from superfednas.records.tensors import RunFolderError as RunFolderError
from superfednas.supernet import State

LATEST = "latest"


class BeingWrittenError(RunFolderError):
    """Another process is at work in the folder.

    Parameters
    ----------
    path
        The folder.
    writer
        Who writes, for people.
    run
        Flower's id of the run that writes; empty where it is another process.
    """

    refusal = Refusal.BEING_WRITTEN

    def __init__(self, path: Path, writer: str, run: str) -> None:
        super().__init__(f"{str(path)!r} is being written by {writer}: wait for its end, or end it")
        self.run = run


class RunFolder:
    """One run's folder.

    Parameters
    ----------
    path
        The folder. Use :meth:`create` or :meth:`open`.

    Attributes
    ----------
    damaged
        A sentence for each damaged checkpoint that :meth:`latest` has skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[str] = []
        self.info: dict[str, Any] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @classmethod
    def create(
        cls, path: str, settings: Mapping[str, Scalar], space: str, *, anew: bool = False
    ) -> "RunFolder":
        """Make a new run folder.

        Parameters
        ----------
        path
            The folder; empty is ``~/.superfednas/runs/<time>-<space>``.
        settings
            The run's flat settings.
        space
            The space's name, for the default path.
        anew
            Begin again where a start has ended before its first checkpoint (:func:`barely_begun`).

        Raises
        ------
        RunFolderError
            If the folder is not empty (nothing is ever overwritten), or cannot be written.
        BeingWrittenError
            If another process is at work in a folder that is begun anew.
        """
        folder = Path(path).expanduser().resolve() if path else default_path(space)
        run = cls(folder)
        with damage_of(folder, RunFolderError, "cannot be written"):
            again = anew and barely_begun(folder)
            if not again and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RunFolderError(not_empty(folder))
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            with run._alone() if again else contextlib.nullcontext():
                run.info = first_info(settings)
                run.save_info()
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run folder.

        ``latest`` is the newest in ``~/.superfednas/runs``; runs that failed or were interrupted
        before training anything are skipped.

        Raises
        ------
        RunFolderError
            If it is not one, or has another format version.
        """
        folder = _latest() if str(path) == LATEST else Path(path).expanduser().resolve()
        run = cls(folder)
        with damage_of(folder / "run.json", RunFolderError, "cannot be read"):
            try:
                run.info = read_object(folder / "run.json")
            except FileNotFoundError:
                raise RunFolderError(
                    f"{str(folder)!r} is no run folder: it has no run.json"
                ) from None
            if (found := run.info.get("format")) != FORMAT:
                raise RunFolderError(
                    f"{str(folder)!r} has run-folder format {found!r:.60}; this version reads "
                    f"{FORMAT}"
                )
            check_info(run.info)
        return run

    @property
    def settings(self) -> dict[str, Scalar]:
        """The run's flat settings; one that is not there is a :class:`RunFolderError`."""
        return Settings(self.path / "run.json", self.info.get("settings", {}))

    def save_info(self) -> None:
        """Write ``run.json`` atomically."""
        write_whole(self.path / "run.json", json.dumps(self.info, indent=1))

    @contextlib.contextmanager
    def written(self, run: str = "") -> Iterator[None]:
        """Keep other processes from writing into the folder for the duration of a block.

        Parameters
        ----------
        run
            Flower's id of the run that writes, for whoever is kept from it; by default this
            process is named.

        Raises
        ------
        BeingWrittenError
            If another process is writing. The system frees the lock of a killed process.
        """
        with self._alone():
            for folder in (self.path, self.path / "checkpoints"):
                remove_parts(folder)
            here = f"process {os.getpid()} on {platform.node()}"
            self.info |= {"writer": f"run {run}" if run else here, "writing-run": run}
            self.save_info()
            yield

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            info = info_of(self.path)
            writer, other = info.get("writer", "another process"), info.get("writing-run", "")
            raise BeingWrittenError(self.path, str(writer), str(other)) from None
        try:
            yield
        finally:
            lock.release()

    # Metrics

    def append(self, row: Row) -> None:
        """Append one line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(as_json(row), allow_nan=False) + "\n")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to ``log.jsonl``, with the time, even after a partial line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **row}) + "\n"
        with (self.path / "log.jsonl").open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    line = "\n" + line
            file.write(line.encode())

    def rows(self) -> list[Row]:
        """Return the rows of ``metrics.jsonl``; a torn last line is left out.

        Raises
        ------
        RunFolderError
            If another line is damaged.
        """
        return [row for _, row in self._lines() if row is not None]

    def _lines(self) -> Iterator[tuple[str, Row | None]]:
        """Yield each line with its row, None where its kind is of a later version."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        for number, line in enumerate(lines):
            try:
                yield line, read_row(loads(line))
            except DAMAGE:
                if number + 1 < len(lines):
                    raise RunFolderError(
                        f"{str(self.path / 'metrics.jsonl')!r}: line {number + 1} is damaged"
                    ) from None

    def forget_after(self, round: int) -> None:  # noqa: A002
        """Drop the metrics of rounds after a checkpoint, and a partial line."""
        kept = [
            line + "\n"
            for line, row in self._lines()
            if row is not None and row.round <= round and not at_the_end(row)
        ]
        write_whole(self.path / "metrics.jsonl", "".join(kept))

    # Weights

    def checkpoint(self, point: Checkpoint, keep: int) -> None:
        """Write a checkpoint atomically; remove the oldest beyond ``keep``."""
        self.begin_checkpoint(point, keep)
        self.settle()

    def begin_checkpoint(self, point: Checkpoint, keep: int) -> None:
        """Write a checkpoint in the background; :meth:`settle` waits for it.

        The tensors must not change until then; the checkpoint's memory is read here.
        """
        self.settle()
        tensors, about = packed(point)
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._writer.submit(self._write, point.round, tensors, about, keep)

    def settle(self) -> None:
        """Wait until the pending checkpoint is on the disk; raise the error that stopped it."""
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
        """Read the newest intact checkpoint.

        Damaged ones are skipped; :attr:`damaged` says which, and why.

        Raises
        ------
        RunFolderError
            If there is none, or all are damaged.
        """
        self.damaged = []
        for path in reversed(self._checkpoints()):
            try:
                return read_checkpoint(path)
            except RunFolderError as error:
                self.damaged.append(str(error))
        if self.damaged:
            raise RunFolderError("no checkpoint is whole: " + "; ".join(self.damaged))
        raise RunFolderError(
            f"{str(self.path)!r} has no checkpoint to resume from: the run ended before it had "
            "begun; start it with keep-going, or remove the folder"
        )

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("round-*.safetensors"))

    def write_supernet(self, state: Mapping[str, torch.Tensor], rounds: int) -> None:
        """Write the trained supernet."""
        self.settle()
        write_tensors(self.path / "supernet.safetensors", state, {"round": rounds})

    def finish(self, rounds: int) -> None:
        """Mark the run as finished."""
        self.info |= {"status": FINISHED, "round": rounds}
        self.save_info()

    def weights(self) -> tuple[dict[str, torch.Tensor], int]:
        """Return the trained supernet (unfinished: the newest checkpoint) and its round."""
        final = self.path / "supernet.safetensors"
        if final.exists():
            state, about = read_tensors(final)
            with damage_of(final, RunFolderError):
                return state, int(about["round"])
        point = self.latest()
        return point.state, point.round


def _latest() -> Path:
    """Return the newest run that holds something, or still may."""
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
