"""Latency on this device: its table, kept between calls, and the proof by timing."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from superfednas.nas.cost.latency import LatencyError, LatencyTable, space_options
from superfednas.nas.cost.profiling import measure, measure_network
from superfednas.nas.cost.workbench import describe_device, usable_device
from superfednas.nas.pipeline import Request, SearchProgress
from superfednas.nas.plan import Plan
from superfednas.supernet import SearchSpace

TABLES = "~/.superfednas/latency"
_PROOFS = 5


def table_file(space: SearchSpace, *, threads: int = 1, device: str = "cpu") -> Path:
    """Return the path of this machine's table of a space: by space, device, torch and threads."""
    about = describe_device(usable_device(device))
    made_of = [about["processor"], about.get("accelerator"), about["device"], about["torch"]]
    key = json.dumps([space_options(space), made_of, threads])
    name = f"{space.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json".replace(":", ".")
    return Path(TABLES).expanduser() / name


def table(
    space: SearchSpace, batch: int, *, threads: int = 1, progress: SearchProgress
) -> LatencyTable:
    """Return this device's table on the CPU; if it lacks ``batch``, measure and keep that.

    Raises
    ------
    LatencyError
        If an existing table is damaged, or was written for another version of the space.
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
    """Read a table of this or another device.

    Raises
    ------
    LatencyError
        If it is not a table, or is for another space.
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
    """Time the chosen subnet; if it is slower than allowed, search again below a lower limit.

    Parameters
    ----------
    plan
        The plan of a search under a limit on latency.
    space, request, table, batch
        What was searched, and what latency refers to: timing uses the table's threads and clock.
    planned
        Searches again.
    progress
        Where further searches are reported.

    Raises
    ------
    LatencyError
        If none of five subnets keeps the limit when timed.
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
