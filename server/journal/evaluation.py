"""Evaluation of the ladder, and the statistics of a run's end."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

import torch

from superfednas.data import Dataset, Split
from superfednas.nas.score.tallies import score, subnet_module
from superfednas.records.rows import Covered, RoundRow, Rung, Spread, SummaryRow
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks import Metric, Tally

Report = Sequence[tuple[int, Tally]]
_RANGES = 10
HARDLY = 0.01


def score_ladder(
    space: SearchSpace,
    state: Mapping[str, torch.Tensor],
    rungs: Mapping[str, Architecture],
    data: Dataset,
    split: Split,
    device: torch.device,
) -> list[Rung]:
    """Score every rung of a ladder centrally, one at a time."""
    rows = []
    for name, arch in rungs.items():
        module = subnet_module(space, state, arch).to(device)
        rows.append(rung_row(space, name, arch, score(module, data, split)))
    return rows


def rung_row(space: SearchSpace, name: str, arch: Architecture, found: Tally) -> Rung:
    """Return one rung of an evaluation."""
    values = found.row(space.task.metrics)
    return Rung(name, arch.to_json(), space.macs(arch), space.params(arch), values)


def fuse_ladder(
    space: SearchSpace, rungs: Mapping[str, Architecture], reports: Sequence[Report]
) -> list[Rung]:
    """Add up the clients' tallies of each rung.

    Parameters
    ----------
    space, rungs
        The ladder.
    reports
        For every client its (rung, tally) rows. Only rungs inside a client's own subnet are there.
    """
    rows = []
    for index, (name, arch) in enumerate(rungs.items()):
        found = [tally for report in reports for rung, tally in report if rung == index]
        if found:
            rows.append(rung_row(space, name, arch, Tally.total(found)))
    return rows


def coverage(space: SearchSpace, rounds: Sequence[RoundRow]) -> tuple[Covered, ...]:
    """Return how often each range of MACs was assigned.

    The smallest and the largest are counted separately: a range counts only what lies strictly
    between them, because a range touched by an end point alone is not trained as a range.

    Returns
    -------
    tuple
        Ten ranges.
    """
    least, most = space.macs(space.smallest), space.macs(space.largest)
    assigned = [client.macs for row in rounds for client in row.clients]
    counts = [0] * _RANGES
    for macs in assigned:
        if least < macs < most:
            counts[int((macs - least) * _RANGES / (most - least))] += 1
    step = (most - least) / _RANGES
    return tuple(
        Covered(
            round(least + index * step),
            round(least + (index + 1) * step),
            count / max(1, len(assigned)),
        )
        for index, count in enumerate(counts)
    )


def hardly_trained(summary: SummaryRow) -> list[tuple[int, int]]:
    """Join neighbouring ranges of a summary row with fewer than 1% of the assignments.

    If clients train subnets other than the assigned ones, the server does not know which, and names
    none.
    """
    joined: list[tuple[int, int]] = []
    if not summary.as_assigned:
        return joined
    for entry in summary.coverage:
        if entry.share >= HARDLY:
            continue
        if joined and joined[-1][1] == entry.low:
            joined[-1] = (joined[-1][0], entry.high)
        else:
            joined.append((entry.low, entry.high))
    return joined


def client_spread(rounds: Sequence[RoundRow], metric: Metric) -> dict[str, Spread]:
    """Say how a metric spreads over clients, from each one's last report on its own examples.

    Returns
    -------
    dict
        For ``smallest`` (which every client holds) and ``own`` (the subnet that it was assigned):
        number of clients, mean, standard deviation, least and most, and whose is worst
        (``lowest``). Empty without reports.
    """
    last: dict[str, dict[str, float]] = {"smallest": {}, "own": {}}
    for row in rounds:
        for client in row.clients:
            for which, scores in (("smallest", client.smallest), ("own", client.own)):
                value = scores.get(metric.name)
                if value is not None:
                    last[which][client.client] = value
    return {
        which: Spread(
            clients=len(found),
            mean=fmean(found.values()),
            sd=pstdev(found.values()),
            min=min(found.values()),
            max=max(found.values()),
            lowest=min(found, key=lambda name: metric.sign * found[name]),
        )
        for which, found in last.items()
        if found
    }
