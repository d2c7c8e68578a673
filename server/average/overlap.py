"""Overlap-aware weighted averaging (MaxNet's merge; SuperFedNAS §4.3) without per-element counts.

For every scalar p, with S the clients whose subnet holds p::

    W(p) = Σ_{k∈S} a_k w_k(p) / Σ_{k∈S} a_k        S = ∅ keeps the server's value

The divisor is constant on each cell of the grid that the boxes' edges cut, so a few numbers per
tensor replace a count per element. The mean is a running mean, ``m += (a_k / A)(w_k − m)`` with A
the weight folded into the cell so far: one read-modify-write pass per reply (or per eight replies
that are present together) and one buffer whatever the number of clients. A cell's first client is
copied bit for bit, and clients that agree leave their value unchanged to the last bit. The old
state is copied only where no subnet reaches.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from superfednas.server.average.cells import CellGrid, rows
from superfednas.server.average.threads import Tile, spread, tiles
from superfednas.supernet.architecture import Shape
from superfednas.supernet.boxes import Cut, Slices, resolve, shapes_of

Update = Mapping[str, torch.Tensor | np.ndarray]
Move = tuple[torch.Tensor, Slices, Slices, float]
_ALIGNED = 64  # bytes, like torch's own tensors
_BLOCK = 1 << 18  # numbers converted at a time
TOGETHER = 8  # replies folded in one pass


class Given(NamedTuple):
    """One client's new weights (not a difference), as :meth:`Aggregation.add` takes them."""

    update: Update
    weight: float
    boxes: Mapping[str, Any] | None = None
    client: str = ""


class Aggregation(Protocol):
    """One round's merge: add replies one after another, then ask for the result once.

    Attributes
    ----------
    verdicts
        After :meth:`result`: client to what was done to its reply, if it was not used as it is.
    """

    verdicts: dict[str, str]

    def add(
        self,
        update: Update,
        weight: float,
        boxes: Mapping[str, Any] | None = None,
        client: str = "",
    ) -> None:
        """Take one client's new weights."""

    def add_all(self, replies: Iterable[Given]) -> None:
        """Take several, with the same bits as one :meth:`add` after another."""

    def result(self) -> dict[str, torch.Tensor]:
        """Return the new state; what nobody covers is kept from the old one."""


def check_update(
    within: Mapping[str, Shape],
    update: Update,
    weight: float,
    boxes: Mapping[str, Any] | None,
) -> tuple[Cut, dict[str, torch.Tensor]]:
    """Return an update's place inside a supernet of these shapes, and its tensors.

    Raises
    ------
    ValueError
        For a negative or non-finite weight, an unknown name, a shape that does not fit, or an array
        that torch cannot read.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight = {weight}: must be a finite number of at least 0")
    if boxes is None:
        boxes = {name: tuple(tensor.shape) for name, tensor in update.items()}
    cut = resolve(within, boxes)
    if cut.keys() != update.keys():
        raise ValueError("boxes and update must have the same names")
    tensors = {}
    for name, shape in cut.shapes.items():
        tensor = update[name]
        if tensor.shape != shape:
            raise ValueError(f"{name!r}: shape {tuple(tensor.shape)} in place of {shape}")
        tensors[name] = tensor if isinstance(tensor, torch.Tensor) else torch.as_tensor(tensor)
    return cut, tensors


def blank(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors like a state's, each in its own uninitialised memory.

    numpy asks the system for huge pages, torch does not: the first write is several times faster.
    """
    tensors = {}
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        memory = np.empty(size + _ALIGNED, np.uint8)
        start = -memory.ctypes.data % _ALIGNED
        flat = torch.from_numpy(memory[start : start + size]).view(tensor.dtype)
        tensors[name] = flat.view(tensor.shape)
    return tensors


class OverlapAverage:
    """Average subnets of different shapes into the supernet they were extracted from.

    Parameters
    ----------
    state
        The supernet's tensors. They are not written to; what nobody covers is copied from here, so
        they must not change until :meth:`result`.
    into
        Tensors like the state's that become the result, whatever they hold: keeping two states and
        swapping them every round avoids any allocation. By default new ones.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        self._shapes = shapes_of(state)
        self._mean = blank(self._state) if into is None else dict(into)
        self._grids = {name: CellGrid(tensor.shape) for name, tensor in self._state.items()}
        self.verdicts: dict[str, str] = {}

    def add(
        self,
        update: Update,
        weight: float,
        boxes: Mapping[str, Any] | None = None,
        client: str = "",
    ) -> None:
        """Fold one client's new weights (not a difference); nothing of ``update`` is kept.

        Parameters
        ----------
        update
            The subnet's tensors by name.
        weight
            a_k ≥ 0; a client of weight 0 counts as absent.
        boxes
            The places of the tensors; by default the leading parts of their shapes.
        client
            Ignored: the average treats all clients alike.

        Raises
        ------
        ValueError
            As :func:`check_update`; the average is unchanged then.
        """
        self.add_all([Given(update, weight, boxes, client)])

    def add_all(self, replies: Iterable[Given]) -> None:
        """Fold several replies, eight at a time in one pass over the mean.

        Parts of a large tensor that fit the processor's cache take in one reply after another, so
        mean and state are moved once, not once per reply. Every number is the same as with
        :meth:`add`, to the last bit.

        Raises
        ------
        ValueError
            As :func:`check_update`; if one of the eight is bad, none of them is folded.
        """
        waiting = iter(replies)
        while some := list(itertools.islice(waiting, TOGETHER)):
            # All of them before any is folded: torch refuses some arrays, and then nothing may
            # change.
            checked = [
                (*check_update(self._shapes, each.update, each.weight, each.boxes), each.weight)
                for each in some
            ]
            self._fold_all([entry for entry in checked if entry[2]])

    def _fold_all(self, replies: list[tuple[Cut, dict[str, torch.Tensor], float]]) -> None:
        """Fold checked replies, tensor by tensor."""
        moves: dict[str, list[Move]] = {}
        for cut, tensors, weight in replies:
            for name in cut.shapes:
                grid, tensor = self._grids[name], tensors[name]
                found = moves.setdefault(name, [])
                for outer, inner in cut.parts(name):
                    part = tensor if inner is ... else tensor[inner]
                    found += [(part, *cell) for cell in grid.add(outer, weight)]

        def fold(tile: Tile) -> None:
            name, low, high = tile
            mean, shape = self._mean[name], self._shapes[name]
            whole = not shape or high - low == shape[0]
            for part, cell, within, share in moves[name]:
                if whole:
                    _move(mean, part, cell, within, share)
                elif some := rows(cell, within, low, high):
                    _move(mean, part, *some, share)

        spread(fold, tiles({name: self._shapes[name] for name in moves}))

    def result(self) -> dict[str, torch.Tensor]:
        """Return the new state: the running means, and the server's values where no subnet reaches.

        The tensors are the average's own buffers; fold nothing more after passing them on.
        """

        def keep(name: str) -> None:
            for cell in self._grids[name].uncovered():
                self._mean[name][cell].copy_(self._state[name][cell])

        spread(keep, {name: tensor.numel() for name, tensor in self._mean.items()})
        return self._mean


def _move(
    mean: torch.Tensor, part: torch.Tensor, cell: Slices, within: Slices, share: float
) -> None:
    """Move a cell of the mean towards a reply by a share of their difference."""
    here, new = (mean[cell], part[within]) if cell else (mean, part)
    # A cell's first reply is copied, so whatever the buffer held before does no harm.
    if share == 1:
        here.copy_(new)
    elif new.dtype == here.dtype:
        here.lerp_(new, share)
    elif new.numel() <= _BLOCK or not new.dim():
        here.lerp_(new.to(here.dtype), share)
    else:
        # Converted in parts: a whole tensor's copy would be fresh memory, slow to write at first.
        step = max(1, _BLOCK * len(new) // new.numel())
        for start in range(0, len(new), step):
            some = slice(start, start + step)
            here[some].lerp_(new[some].to(here.dtype), share)
