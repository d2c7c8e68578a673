"""Measure this device: a latency table of a space, or one network."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from nas.latency import (
    BatchTable,
    LatencyError,
    LatencyTable,
    Network,
    chain_of,
    space_options,
    together,
)
from nas.timing import Call, Progress, Timing
from nas.workbench import Workbench, describe_device
from supernet import Architecture, SearchSpace

_DRAWS = 20  # for every network that is chosen


def measure(
    space: SearchSpace,
    *,
    batches: Sequence[int] = (1, 16),
    threads: int = 1,
    networks: int = 12,
    holdout: int = 10,
    seconds: float = 60.0,
    seed: int = 0,
    device: str = "cpu",
    clock: str = "wall",
    name: str = "",
    progress: Progress | None = None,
) -> LatencyTable:
    """Time every block of a space and some whole networks, in turns, and fit the two together.

    Parameters
    ----------
    space
        A space with a ``chain``.
    batches
        Images a batch; the table answers for these and no others.
    threads
        Threads an operation; the caller's own setting is put back.
    networks
        Whole networks to fit to, at least 3; see :func:`choose`.
    holdout
        Random networks that are only predicted, to say how far predictions are off; at least 1.
    seconds
        About how long to take, by ``clock``. Everything is timed in at least three passes, whatever
        that takes.
    seed
        Of the choice of networks.
    device
        As torch names it: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    clock
        ``wall``, or on a machine that cannot be made idle ``cpu``: the time in which the thread had
        a core, for one thread on the CPU only.
    name
        What to call the device in the table. Nothing about user or host is noted by itself.
    progress
        Called after every visit with the visits made and those planned.

    Raises
    ------
    LatencyError
        For a space without blocks, a device or clock that cannot be used here, or a number out of
        range.
    """
    blocks = chain_of(space).inventory.blocks
    sizes = tuple(dict.fromkeys(batches))
    if not sizes:
        raise LatencyError("batches: at least one batch size is needed")
    for size in sizes:
        _at_least(1, batch=size)
    _at_least(1, threads=threads, holdout=holdout)
    _at_least(3, networks=networks)
    fitted, held_out = choose(space, networks, holdout, seed)

    bench = Workbench(space, device)
    makers: list[Callable[[], Call]] = []
    for size in sizes:
        makers += [functools.partial(bench.load, b.module, b.inputs, size) for b in blocks]
        makers += [functools.partial(bench.network, arch, size) for arch in [*fitted, *held_out]]
    started = time.perf_counter()
    timings = bench.timed(makers, seconds=seconds, threads=threads, clock=clock, progress=progress)
    taken, found = time.perf_counter() - started, iter(timings)
    return LatencyTable(
        space=space_options(space),
        device=describe_device(bench.device, name),
        threads=threads,
        clock=clock,
        batches={
            size: tabulate(
                space,
                {block.name: next(found) for block in blocks},
                [(arch, next(found)) for arch in fitted],
                [(arch, next(found)) for arch in held_out],
            )
            for size in sizes
        },
        seconds=taken,
    )


def measure_network(
    space: SearchSpace,
    arch: Architecture,
    *,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 5.0,
    device: str = "cpu",
    clock: str = "wall",
) -> Timing:
    """Time one network of any space, as :func:`measure` does.

    Parameters
    ----------
    space, arch
        The network; its weights are random.
    batch, threads, seconds, device, clock
        As in :func:`measure`.
    """
    _at_least(1, batch=batch, threads=threads)
    bench = Workbench(space, device)
    make = functools.partial(bench.network, arch, batch)
    return bench.timed([make], seconds=seconds, threads=threads, clock=clock)[0]


def tabulate(
    space: SearchSpace,
    blocks: dict[str, Timing],
    fitted: Sequence[tuple[Architecture, Timing]],
    held_out: Sequence[tuple[Architecture, Timing]],
) -> BatchTable:
    """Fit measured blocks to measured networks, and predict those held out.

    Parameters
    ----------
    space
        The search space.
    blocks
        Name to timing of every block.
    fitted, held_out
        Networks with their timings.
    """
    sums = np.array([together(blocks, space.blocks(arch)) for arch, _ in fitted])
    constant, factor = fit_line(sums, np.array([timing.fastest_ms for _, timing in fitted]))
    table = BatchTable(blocks, constant, factor, (), ())

    def networks(measured: Sequence[tuple[Architecture, Timing]]) -> tuple[Network, ...]:
        return tuple(
            Network(arch.to_json(), timing, table.predict(space.blocks(arch)))
            for arch, timing in measured
        )

    return dataclasses.replace(table, fitted=networks(fitted), held_out=networks(held_out))


def fit_line(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return the constant and the factor above 0 with the least mean absolute relative error.

    A network that was disturbed while it was timed hardly moves this line. One of the best passes
    through two of the points, so it is found by trying all pairs; the lines through the origin are
    tried as well, since their factors are always above 0.

    Parameters
    ----------
    sums, measured
        (networks,), above 0: what the blocks take alone, and what the networks take.
    """
    lines = [(0.0, float(y / x)) for x, y in zip(sums, measured, strict=True)]
    for i, j in itertools.combinations(range(len(sums)), 2):
        if sums[i] != sums[j]:
            factor = float((measured[i] - measured[j]) / (sums[i] - sums[j]))
            if factor > 0:
                lines.append((float(measured[i] - factor * sums[i]), factor))

    def error(line: tuple[float, float]) -> float:
        return float(np.abs((line[0] + line[1] * sums) / measured - 1).mean())

    return min(lines, key=error)


def choose(
    space: SearchSpace, networks: int, holdout: int, seed: int
) -> tuple[list[Architecture], list[Architecture]]:
    """Choose networks to fit to and others to hold out; fewer where the space has no more.

    Held out are random draws. The fit gets the smallest and the largest network and, at even
    quantiles of MACs, others that were drawn: the line is to be right where most networks are.
    """
    rng, locate = np.random.default_rng(seed), chain_of(space).locate
    draws = (space.sample(rng) for _ in range(_DRAWS * (networks + holdout)))
    # Two architectures may be one network, so networks are told apart by their options.
    distinct = {locate(arch): arch for arch in (space.smallest, space.largest, *draws)}
    ends = {locate(arch): arch for arch in (space.smallest, space.largest)}
    others = [arch for options, arch in distinct.items() if options not in ends]
    if not others:
        raise LatencyError(
            f"the space {space.name!r} has only its smallest and largest network: none is left to "
            f"hold out"
        )
    held_out, rest = others[:holdout], sorted(others[holdout:], key=space.macs)
    middle = min(networks - 2, len(rest))
    between = [rest[(2 * k + 1) * len(rest) // (2 * middle)] for k in range(middle)]
    return [space.smallest, *between, space.largest], held_out


def _at_least(least: int, **values: int) -> None:
    for key, value in values.items():
        if value < least:
            raise LatencyError(f"{key} = {value}: must be at least {least}")
