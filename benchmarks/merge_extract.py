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

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
import typer
from flwr.app import Array

from superfednas.bench.figures import seconds
from superfednas.bench.machine import describe
from superfednas.bench.merging import OPTIONS, Round, measure
from superfednas.common.malloc import keep_freed_memory
from superfednas.supernet import load_space
from superfednas.wire.npy import flat_fields, flat_view


def row_of(what: Round, rounds: int, allocating: int) -> dict[str, str]:
    """Return one row of the table."""
    found = measure(what, rounds, allocating)
    taken, both, must = found.taken, found.both, found.must

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
        "share of copy bandwidth": ratio(taken["copy"], whole),
        "one reply after another: must move, GB": f"{found.must_singly / 1e9:.2f}",
        "… merge, ms": median(taken["singly"]),
        "… both, ms": median(both("extract", "singly")),
        "… **share of copy bandwidth**": ratio(found.copied_singly(), both("extract", "singly")),
        "dense, reused buffers, ms": median(both("extract", "dense")),
        "**÷ both**": ratio(both("extract", "dense"), whole),
        "dense merge ÷ our merge": ratio(taken["dense"], taken["merge"]),
        "dense, allocating, ms": median(both("fresh extract", "fresh dense")),
        "**÷ both, allocating**": ratio(both("fresh extract", "fresh dense"), whole),
        "page faults a round": f"{found.faults:,}",
        "**peak, supernets**": f"{(found.peak or 0) / found.supernet:.2f}",
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
        rows.append(row_of(what, turns, max(1, allocating * 8 // number)))
        if number == (clients or [8])[0]:
            carried.append(messages(what, allocating))
        loads.append(f"{os.getloadavg()[0]:.1f}")
    said = {"space": f"{space}, {OPTIONS}"}
    print(describe({**said, "load average after each": ", ".join(loads)}))
    print(f"{table(rows)}\n\n{table(carried)}")


if __name__ == "__main__":
    typer.run(main)
