"""A method with feedback: two candidates for the supernet, of which the better is kept."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from superfednas.server.assign.client import Client
from superfednas.server.methods.base import Method, Setup, StandsFor
from superfednas.server.round.orders import SUPERNET, Order, Round, RoundPlan
from superfednas.server.round.outcome import Outcome
from superfednas.supernet import State


class KeepTheBetter(Method):
    """Blocks of two rounds in which two groups of clients train a candidate each.

    The candidates differ in their learning rates. In a block's second round the groups change
    sides, so that each candidate is scored, as it is received, by those that have not trained it.
    The one with the lower loss becomes the supernet, and the rates of the next block are around
    its own. Needs ``evaluate-on = 'clients'`` and an evaluation in every second round.
    """

    settings: ClassVar[StandsFor] = {"assignment": "random", "averaging": "overlap"}
    factors: ClassVar[Mapping[str, float]] = {"fast": 2.0, "slow": 0.5}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.rate = float(setup.options["lr"])
        self.kept: list[str] = []

    def orders(self, number: Round, clients: Sequence[Client]) -> list[Order]:
        """Let every second client train one candidate, the others the other."""
        assigned, names = self.setup.policy.assign(number.number, clients), sorted(self.factors)
        return [
            number.order(
                client,
                assigned[client.name],
                target=(name := names[(index + number.number) % 2]),
                local={"lr": self.rate * self.factors[name]},
            )
            for index, client in enumerate(sorted(clients, key=lambda client: client.name))
        ]

    def after(self, plan: RoundPlan, outcome: Outcome) -> Mapping[str, State]:
        """Keep both candidates after a block's first round, the better one after its second."""
        if plan.round % 2:
            return outcome.targets
        losses = {}
        for name in self.factors:
            tally = outcome.tallies[name][self.setup.space.smallest]  # which everyone can score
            losses[name] = tally.sums["loss"] / tally.examples
        best = min(losses, key=lambda name: losses[name])
        self.kept.append(best)
        self.rate *= self.factors[best]
        return {SUPERNET: outcome.targets[best]}

    def state(self) -> dict[str, Any]:
        """Return the rate, and which candidates were kept."""
        return {"rate": self.rate, "kept": self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`state`."""
        self.rate, self.kept = float(state["rate"]), list(state["kept"])


class StillFast(KeepTheBetter):
    """The fast candidate does not move, so the slow one is the better."""

    factors: ClassVar[Mapping[str, float]] = {"fast": 1e-9, "slow": 1.0}


class StillSlow(KeepTheBetter):
    """The slow candidate does not move, so the fast one is the better."""

    factors: ClassVar[Mapping[str, float]] = {"fast": 1.0, "slow": 1e-9}
