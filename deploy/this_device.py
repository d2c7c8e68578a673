"""Latency on the device at hand: its table, kept between calls, and the proof by timing."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nas.latency import LatencyError, LatencyTable, space_options
from nas.plan import Plan
from nas.planner import Request, SearchProgress
from nas.profiling import measure, measure_network
from nas.workbench import describe_device, usable_device
from supernet import SearchSpace

TABLES = "~/.superfednas/latency"
_PROOFS = 5


def table_file(space: SearchSpace, *, threads: int = 1, device: str = "cpu") -> Path:
    """Where this machine's table of a space is kept: by space, device, torch and threads."""
    about = describe_device(usable_device(device))
    made_of = [about["processor"], about.get("accelerator"), about["device"], about["torch"]]
    key = json.dumps([space_options(space), made_of, threads])
    name = f"{space.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json".replace(":", ".")
    return Path(TABLES).expanduser() / name


def table(
    space: SearchSpace, batch: int, *, threads: int = 1, progress: SearchProgress
) -> LatencyTable:
    """Return this device's table on the CPU; what it lacks of ``batch`` is measured and kept.

    Raises
    ------
    LatencyError
        Where a table is there that is damaged, or that another version of the space wrote.
    """
    path = table_file(space, threads=threads)
    kept = load_table(path, space) if path.exists() else None
    if kept is not None and batch in kept.batches:
        return kept
    progress.note("timing the blocks of the space on this device (kept for later searches)")
    found = measure(
        space,
        batches=(batch,),
        threads=threads,
        clock="wall" if kept is None else kept.clock,
        progress=lambda done, todo: progress.measuring(done, todo, "blocks timed"),
    )
    if kept is not None:
        found = replace(found, batches={**kept.batches, **found.batches})
    found.save(path, overwrite=True)
    return found


def load_table(path: str | Path, space: SearchSpace) -> LatencyTable:
    """Read a table, of this device or brought from another.

    Raises
    ------
    LatencyError
        Where it is none, or of another space.
    """
    found = LatencyTable.load(path)
    try:
        found.check(space)
    except LatencyError as error:
        raise LatencyError(f"{str(path)!r}: {error}") from None
    return found


def proven(
    plan: Plan,
    space: SearchSpace,
    request: Request,
    table: LatencyTable,
    batch: int,
    planned: Callable[[Request], Plan],
    progress: SearchProgress,
) -> Plan:
    """Time the chosen subnet; where it is slower than allowed, search below a lower limit.

    Parameters
    ----------
    plan
        Of a search under a limit on latency.
    space, request, table, batch
        What was searched, and how latency is meant: timing uses the table's threads and clock.
    planned
        Searches again.
    progress
        Where a further search is reported.

    Raises
    ------
    LatencyError
        Where none of five subnets keeps the limit when it is timed.
    """
    most = request.limits["latency"]
    for left in reversed(range(_PROOFS)):
        arch, predicted = space.parse(plan.chosen.text), plan.chosen.costs["latency"]
        timing = measure_network(space, arch, batch=batch, threads=table.threads, clock=table.clock)
        if timing.fastest_ms <= most:
            about = {
                **plan.latency,
                "predicted_ms": predicted,
                "measured_ms": timing.fastest_ms,
                "median_ms": timing.median_ms,
            }
            return replace(plan, limits=request.limits, latency=about)
        if left:
            tighter = 0.99 * predicted * most / timing.fastest_ms
            progress.note(
                f"timed here, the predicted {predicted:.3g} ms are {timing.fastest_ms:.3g} ms: "
                f"searching below {tighter:.3g} ms"
            )
            plan = planned(replace(request, limits={**request.limits, "latency": tighter}))
    raise LatencyError(
        f"max-latency = {most:g}: this device is too unsteady to find a subnet that keeps it; "
        f"the last one took {timing.fastest_ms:.3g} ms"
    )
