"""Measure a round's extract and merge against the machine's copy and against the dense method.

    python benchmarks/merge_extract.py --clients 8 --clients 64

The clients hold the largest, the smallest and random subnets. A client's reply is what it was sent,
changed, in the same memory: 64 replies of ``resnet10-26`` are 9 GB. All ways to do a round take
turns. Of every figure the median over the turns is printed and, behind a semicolon, that of the
fastest: other work that shares the machine only ever adds time. Ratios are taken within a turn.

- **copy**: ``torch``'s or ``numpy``'s copy, whichever is faster in that turn, between two arrays as
  large as the supernet, until as many bytes have been read and written as ours must.
- **dense**: for every client zero-padded tensors of its weights and of its a_k, as large as the
  supernet, added to a sum and a count; at the end sum ÷ count. Extraction is the same gather copy.
- **page faults**: how often a round touched memory that the process did not have yet.
- **peak**: how far the process's resident memory (VmHWM, set back before) rose above where it was
  with the supernet, the replies and the outgoing buffers, over three rounds from the first on.
"""

import ctypes
import os
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from flwr.app import Array
from hardware import describe
from merge_rivals import Copy, Dense, Round, seconds

from server.averaging import Averaging
from server.settings import check_settings
from supernet import State, load_space
from supernet.memory import keep_freed_memory
from supernet.npy import flat_fields, flat_view

OPTIONS = {"num_classes": 10, "in_channels": 3, "image_size": 32}


class Ours:
    """The average that a run uses, with the buffers that it keeps."""

    def __init__(self, what: Round) -> None:
        self._what = what
        self._averaging = Averaging(check_settings({}))
        self._averaging.adopt(what.state)

    def merge(self) -> State:
        """Fold the replies one after another; the result is the next round's state."""
        average = self._averaging.open(self._what.state)
        for update, weight, boxes in self._what.replies():
            average.add(update, weight, boxes)
        self._what.state = average.result()
        return self._what.state


def peak_beyond(action: Callable[[], object]) -> int:
    """Return by how many bytes resident memory rose above where it is now, at its highest."""
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before could be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    action()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def page_faults(action: Callable[[], object]) -> int:
    """Return how often something touches memory that the process does not have yet."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def agree(what: Round, dense: State, merged: State) -> None:
    """Check that both ways give the same round, but for rounding."""
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, dense[name], rtol=1e-5, atol=1e-5)


def measure(what: Round, rounds: int, allocating: int) -> dict[str, str]:
    """Return one row of the table."""
    supernet = 4 * what.size
    ours = Ours(what)
    peak = peak_beyond(lambda: [(what.extract(), ours.merge()) for _ in range(3)])
    faults = page_faults(lambda: (what.extract(), ours.merge()))
    dense, must = Dense(what, reuse=True), what.must_move()
    copy = Copy(what.size, must)
    what.train()
    agree(what, dense.merge(), ours.merge())
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "extract": (what.extract, rounds),
        "merge": (ours.merge, rounds),
        "dense": (dense.merge, rounds),
        "fresh extract": (what.extract_fresh, allocating),
        "fresh dense": (Dense(what, reuse=False).merge, allocating),
    }
    taken: dict[str, list[float]] = {name: [] for name in [*ways, "copy"]}
    for turn in range(rounds):
        taken["copy"].append(min(copy.by_torch(), copy.by_numpy()))
        for name, (action, times) in ways.items():
            if turn < times:
                taken[name].append(seconds(action))

    def both(extract: str, merge: str) -> list[float]:
        return [sum(pair) for pair in zip(taken[extract], taken[merge], strict=True)]

    def ratio(ones: Sequence[float], others: Sequence[float]) -> str:
        found = [one / other for one, other in zip(ones, others, strict=False)]
        return f"{statistics.median(found):.2f}; {min(ones) / min(others):.2f}"

    def median(values: Sequence[float]) -> str:
        return f"{1e3 * statistics.median(values):,.0f}; {1e3 * min(values):,.0f}"

    whole = both("extract", "merge")
    return {
        "clients": str(len(what.archs)),
        "turns (of what allocates)": f"{rounds} ({allocating})",
        "must move, GB": f"{must / 1e9:.2f}",
        "copy of as much, ms": median(taken["copy"]),
        "extract, ms": median(taken["extract"]),
        "merge, ms": median(taken["merge"]),
        "both, ms": median(whole),
        "**share of copy bandwidth**": ratio(taken["copy"], whole),
        "dense, reused buffers, ms": median(both("extract", "dense")),
        "**÷ both**": ratio(both("extract", "dense"), whole),
        "dense merge ÷ our merge": ratio(taken["dense"], taken["merge"]),
        "dense, allocating, ms": median(both("fresh extract", "fresh dense")),
        "**÷ both, allocating**": ratio(both("fresh extract", "fresh dense"), whole),
        "page faults a round": f"{faults:,}",
        "**peak, supernets**": f"{peak / supernet:.2f}",
        "copy, GB/s": f"{must / statistics.median(taken['copy']) / 1e9:.1f}; "
        f"{must / min(taken['copy']) / 1e9:.1f}",
    }


def messages(what: Round, rounds: int) -> dict[str, str]:
    """Return the milliseconds in which eight arrays become a message's bytes, and are read back."""
    flats = what.flats[:8]
    arrays = [Array(*flat_fields(flat)) for flat in flats]
    ways: dict[str, Callable[[], object]] = {
        "write, Flower's `Array(flat)`": lambda: [Array(flat) for flat in flats],
        "write, now": lambda: [Array(*flat_fields(flat)) for flat in flats],
        "read, Flower's `.numpy()`": lambda: [array.numpy() for array in arrays],
        "read, now": lambda: [
            flat_view(array.data, flat.dtype) for array, flat in zip(arrays, flats, strict=True)
        ],
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, action in ways.items():
            taken[name].append(seconds(action))
    keep_freed_memory()  # last of all: the dense ways above have the memory that they would have
    kept = "write, now, freed memory kept"
    taken[kept] = [seconds(ways["write, now"]) for _ in range(rounds + 1)][1:]
    row = {name: f"{1e3 * statistics.median(found):,.2f}" for name, found in taken.items()}
    return {"messages": str(len(flats)), **row}


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Lay rows out as Markdown, one a line of the first column's names."""
    lines = ["| " + " | ".join([name, *(row[name] for row in rows)]) + " |" for name in rows[0]]
    return "\n".join([lines[0], "|" + "---|" * (1 + len(rows)), *lines[1:]])


def main(
    space: Annotated[str, typer.Option(help="search space")] = "resnet10-26",
    clients: Annotated[list[int] | None, typer.Option(help="clients a round; 8 and 64")] = None,
    rounds: Annotated[int, typer.Option(help="turns with 8 clients; fewer with more")] = 24,
    allocating: Annotated[int, typer.Option(help="so many of them also allocate")] = 5,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 2,
) -> None:
    """Print two Markdown tables and where they were measured."""
    torch.set_num_threads(threads)
    family, loads, rows, carried = load_space(space, **OPTIONS), [], [], []
    for number in clients or [8, 64]:
        what = Round.of(family, number)
        turns = max(3, rounds * 8 // number)
        rows.append(measure(what, turns, max(1, allocating * 8 // number)))
        if number == (clients or [8])[0]:
            carried.append(messages(what, allocating))
        loads.append(f"{os.getloadavg()[0]:.1f}")
    said = {"space": f"{space}, {OPTIONS}"}
    print(describe({**said, "load average after each": ", ".join(loads)}))
    print(f"{table(rows)}\n\n{table(carried)}")


if __name__ == "__main__":
    typer.run(main)
