"""Latency on the device at hand: its table, kept between calls, and the proof by timing."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nas.latency import LatencyError, LatencyTable, space_options
from nas.plan import Plan
from nas.planner import Request, SearchProgress
from nas.profiling import measure, measure_network
from nas.timing import Progress
from nas.workbench import describe_device
from supernet import SearchSpace

TABLES = "~/.superfednas/latency"
_PROOFS = 5


def table_file(space: SearchSpace, threads: int = 1) -> Path:
    """Where this device's table of a space is kept: by space, processor, torch and threads."""
    about = describe_device(torch.device("cpu"))
    key = json.dumps([space_options(space), about["processor"], about["torch"], threads])
    name = f"{space.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json".replace(":", ".")
    return Path(TABLES).expanduser() / name


def has_table(space: SearchSpace, batch: int, *, threads: int = 1) -> bool:
    """Say whether this device's table is there for a batch size."""
    path = table_file(space, threads)
    return path.exists() and batch in LatencyTable.load(path).batches


def table(
    space: SearchSpace, batch: int, *, threads: int = 1, progress: Progress | None = None
) -> LatencyTable:
    """Return this device's table, measured now where it is not there for this batch yet."""
    path = table_file(space, threads)
    if has_table(space, batch, threads=threads):
        return LatencyTable.load(path)
    found = measure(space, batches=(batch,), threads=threads, progress=progress)
    found.save(path, overwrite=True)
    return found


def load_table(path: str | Path, space: SearchSpace, batch: int) -> LatencyTable:
    """Read a table that was brought here.

    Raises
    ------
    LatencyError
        Where it is none, of another space, or lacks this batch.
    """
    found = LatencyTable.load(path)
    found.check(space)
    found.batch(batch)
    return found


def proven(
    plan: Plan,
    space: SearchSpace,
    request: Request,
    threads: int,
    batch: int,
    planned: Callable[[Request], Plan],
    progress: SearchProgress,
) -> Plan:
    """Time the chosen subnet; where it is slower than allowed, search below a lower limit.

    Parameters
    ----------
    plan
        Of a search under a limit on latency.
    space, request, threads, batch
        What was searched, and how latency is meant.
    planned
        Searches again.
    progress
        Where a second search is reported.

    Raises
    ------
    LatencyError
        Where five searches have not found a subnet that keeps the limit when timed.
    """
    most = request.limits["latency"]
    for _ in range(_PROOFS):
        arch = space.parse(plan.chosen.text)
        found = measure_network(space, arch, batch=batch, threads=threads)
        about = {
            **plan.latency,
            "batch": batch,
            "predicted_ms": plan.chosen.costs["latency"],
            "measured_ms": found.fastest_ms,
            "median_ms": found.median_ms,
        }
        plan = replace(plan, limits=request.limits, latency=about)
        if found.fastest_ms <= most:
            return plan
        predicted = plan.chosen.costs["latency"]
        tighter = 0.99 * predicted * most / found.fastest_ms
        progress.note(
            f"timed here, the predicted {predicted:.3g} ms are {found.fastest_ms:.3g} ms: "
            f"searching below {tighter:.3g} ms"
        )
        plan = planned(replace(request, limits={**request.limits, "latency": tighter}))
    raise LatencyError(
        f"max-latency = {most:g}: this device is too unsteady to find a subnet that keeps it; "
        f"the last one took {found.fastest_ms:.3g} ms"
    )
