"""Outcome of a round: what a method learns from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from superfednas.server.round.check import Reply, usable
from superfednas.server.round.orders import RoundPlan
from superfednas.supernet import Architecture, State
from superfednas.tasks import Metric, Tally


@dataclass(frozen=True)
class Outcome:
    """The outcome of a round's orders.

    Parameters
    ----------
    replies
        Client to its accepted reply, without weights.
    targets
        The supernet and the states beside it, with the replies averaged in. Their tensors are
        overwritten unless they are among the states of the next round.
    tallies
        For each target, what its clients counted by subnet on the weights they received (the state
        before this round). Empty if no evaluation was due.
    """

    replies: Mapping[str, Reply]
    targets: Mapping[str, State]
    tallies: Mapping[str, Mapping[Architecture, Tally]]


def tallies_of(
    plan: RoundPlan, replies: Mapping[str, Reply], metrics: Sequence[Metric]
) -> dict[str, dict[Architecture, Tally]]:
    """Add up what the clients of each target counted; the order does not affect the bits."""
    counted: dict[str, dict[Architecture, list[Tally]]] = {}
    for order in plan.orders:
        if order.name not in replies:
            continue
        archs, of = (order.arch, *plan.evaluate), counted.setdefault(order.target, {})
        for index, tally in usable(replies[order.name].evaluation, metrics):
            of.setdefault(archs[index], []).append(tally)
    return {
        target: {arch: Tally.total(tallies) for arch, tallies in of.items()}
        for target, of in counted.items()
    }
