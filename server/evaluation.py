"""Evaluation of the ladder, and what a run says at its end."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from data import Dataset, Split
from nas.accuracy import score, subnet_module
from supernet import Architecture, SearchSpace

Row = dict[str, Any]
_RANGES = 10
HARDLY = 0.01


def score_ladder(
    space: SearchSpace,
    state: Mapping[str, torch.Tensor],
    rungs: Mapping[str, Architecture],
    data: Dataset,
    split: Split,
    device: torch.device,
) -> list[Row]:
    """Score every rung of a ladder centrally, one at a time."""
    rows = []
    for name, arch in rungs.items():
        module = subnet_module(space, state, arch).to(device)
        found = score(module, split, data.mean, data.std, calibration=data.train)
        rows.append(rung_row(space, name, arch, found.accuracy, found.loss, found.examples))
    return rows


def rung_row(
    space: SearchSpace, name: str, arch: Architecture, accuracy: float, loss: float, examples: int
) -> Row:
    """Return one rung of an evaluation as it stands in metrics.jsonl."""
    return {
        "name": name,
        "architecture": arch.to_json(),
        "macs": space.macs(arch),
        "params": space.params(arch),
        "accuracy": accuracy,
        "loss": loss,
        "examples": examples,
    }


def fuse_ladder(
    space: SearchSpace,
    rungs: Mapping[str, Architecture],
    reports: Sequence[tuple[int, Sequence[tuple[int, float, float]]]],
) -> list[Row]:
    """Average the clients' scores of each rung by their numbers of examples.

    Parameters
    ----------
    space, rungs
        The ladder.
    reports
        For every client its number of examples and its (rung, accuracy, loss) rows. Only rungs
        inside a client's own subnet are there.
    """
    rows = []
    for index, (name, arch) in enumerate(rungs.items()):
        found = [(n, a, loss) for n, scores in reports for i, a, loss in scores if i == index and n]
        total = sum(n for n, _, _ in found)
        if total:
            accuracy = sum(n * a for n, a, _ in found) / total
            loss = sum(n * loss for n, _, loss in found) / total
            rows.append(rung_row(space, name, arch, accuracy, loss, total))
    return rows


def coverage(space: SearchSpace, rounds: Sequence[Row]) -> list[Row]:
    """Say how often each range of MACs was assigned.

    The smallest and the largest are points of their own: a range counts only what lies strictly
    between them, since a range that only an end point touches is not trained as a range.

    Returns
    -------
    list
        Ten ranges: ``from`` and ``to`` in MACs, ``share`` of all assignments.
    """
    least, most = space.macs(space.smallest), space.macs(space.largest)
    assigned = [int(client["macs"]) for row in rounds for client in row["clients"]]
    counts = [0] * _RANGES
    for macs in assigned:
        if least < macs < most:
            counts[int((macs - least) * _RANGES / (most - least))] += 1
    step = (most - least) / _RANGES
    return [
        {
            "from": round(least + index * step),
            "to": round(least + (index + 1) * step),
            "share": count / max(1, len(assigned)),
        }
        for index, count in enumerate(counts)
    ]


def hardly_trained(summary: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Join neighbouring ranges of a summary row with fewer than 1% of the assignments.

    Where clients train other subnets than the assigned ones, the server does not know which, and
    names none.
    """
    joined: list[tuple[int, int]] = []
    if not summary.get("as_assigned", True):
        return joined
    for entry in summary["coverage"]:
        if entry["share"] >= HARDLY:
            continue
        if joined and joined[-1][1] == entry["from"]:
            joined[-1] = (joined[-1][0], entry["to"])
        else:
            joined.append((entry["from"], entry["to"]))
    return joined


def client_spread(rounds: Sequence[Row]) -> dict[str, Row]:
    """Say how accuracy spreads over clients, from each one's last report on its own images.

    Returns
    -------
    dict
        For ``smallest`` (which every client holds) and ``own`` (the subnet that it was assigned):
        number of clients, mean, standard deviation, least and most accuracy. Empty without reports.
    """
    last: dict[str, dict[str, float]] = {"smallest": {}, "own": {}}
    for row in rounds:
        for client in row["clients"]:
            for which, found in last.items():
                if client.get(f"{which}_accuracy") is not None:
                    found[client["client"]] = client[f"{which}_accuracy"]
    return {
        which: {
            "clients": len(found),
            "mean": fmean(found.values()),
            "sd": pstdev(found.values()),
            "min": min(found.values()),
            "max": max(found.values()),
            "lowest": min(found, key=lambda name: found[name]),
        }
        for which, found in last.items()
        if found
    }
