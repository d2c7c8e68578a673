"""Measurements of this device: a latency table of a space, or one subnet."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from superfednas.nas.cost.latency import (
    BatchTable,
    LatencyError,
    LatencyTable,
    Network,
    chain_of,
    space_options,
    together,
)
from superfednas.nas.cost.timing import Call, Progress, Timing
from superfednas.nas.cost.workbench import Workbench, describe_device
from superfednas.supernet import Architecture, SearchSpace

_DRAWS = 20  # for every chosen subnet


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
    """Time every block of a space and some whole subnets, in turns, and fit one to the other.

    Parameters
    ----------
    space
        A space with a ``chain``.
    batches
        Images per batch; the table covers only these.
    threads
        Threads per operation; the caller's own setting is restored.
    networks
        Whole subnets to fit to, at least 3; see :func:`choose`.
    holdout
        Random subnets that are only predicted, to measure the error; at least 1.
    seconds
        Approximate duration, by ``clock``. Everything is timed in at least three passes, however
        long they take.
    seed
        Seed of the choice of subnets.
    device
        As torch names it: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    clock
        ``wall`` or, on a machine that cannot be made idle, ``cpu``: the time during which the
        thread had a core, for a single thread on the CPU only.
    name
        The device's name in the table. Nothing about user or host is recorded automatically.
    progress
        Called after every visit with the numbers of visits made and planned.

    Raises
    ------
    LatencyError
        For a space without blocks, a device or clock that is not available here, or a number out of
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
    """Time one subnet of any space, as :func:`measure` does.

    Parameters
    ----------
    space, arch
        The subnet; its weights are random.
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
    """Fit measured blocks to measured subnets, and predict those held out.

    Parameters
    ----------
    space
        The search space.
    blocks
        Name to timing of every block.
    fitted, held_out
        Subnets with their timings.
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

    A subnet that was disturbed while it was timed hardly moves this line. Some optimal line passes
    through two of the points, so trying all pairs finds one; the lines through the origin are tried
    as well, because their factors are always above 0.

    Parameters
    ----------
    sums, measured
        (subnets,), above 0: the sums of the blocks' own latencies, and the subnets' latencies.
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
    """Choose subnets to fit to and others to hold out; fewer if the space has no more.

    The held-out subnets are random draws. The fit gets the smallest and the largest subnet and, at
    even quantiles of MACs, other random draws, so that the line is right where most subnets are.
    """
    rng, locate = np.random.default_rng(seed), chain_of(space).locate
    draws = (space.sample(rng) for _ in range(_DRAWS * (networks + holdout)))
    # Two architectures may be the same subnet, so subnets are compared by their options.
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
