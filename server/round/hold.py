"""Replies that wait for their turn, in memory or on the disk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


class FoldQueue:
    """Return replies in assignment order, whatever the order of their arrival.

    A reply ahead of its turn waits in memory up to ``limit`` bytes, then as a file in ``folder``.

    Parameters
    ----------
    limit
        Bytes of waiting replies kept in memory.
    folder
        Where the others wait; None keeps all in memory.
    in_order
        False passes every reply on at once (``fold-order = "arrival"``).
    """

    def __init__(self, limit: int, folder: Path | None, *, in_order: bool = True) -> None:
        self.limit = limit
        self.folder = folder
        self.in_order = in_order
        self.turn = 0
        self.held_bytes = 0
        self._waiting: dict[int, np.ndarray | Path | None] = {}

    def put(self, index: int, flat: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
        """Take reply number ``index`` (None: there is none); yield those whose turn has come."""
        if not self.in_order:
            if flat is not None:
                yield index, flat
            return
        self._waiting[index] = (
            flat if flat is None or index == self.turn else self._hold(index, flat)
        )
        while self.turn in self._waiting:
            held = self._waiting.pop(self.turn)
            if isinstance(held, Path):
                # Mapped, not read: folding several together must not need memory for all of them.
                ready = np.load(held, mmap_mode="r", allow_pickle=False)
                held.unlink()  # its pages stay until the last view is gone
            else:
                ready = held
                if ready is not None and self.turn != index:
                    self.held_bytes -= ready.nbytes
            self.turn += 1
            if ready is not None:
                yield self.turn - 1, ready

    def _hold(self, index: int, flat: np.ndarray) -> np.ndarray | Path:
        if self.folder is None or self.held_bytes + flat.nbytes <= self.limit:
            self.held_bytes += flat.nbytes
            return flat
        path = self.folder / f"held-{index}.npy"
        np.save(path, flat, allow_pickle=False)
        return path
