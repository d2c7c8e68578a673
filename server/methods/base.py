"""Methods: who trains what in a round, and what happens to the results."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from superfednas.common.settings import Scalar
from superfednas.server.assign.client import Client
from superfednas.server.assign.policies import Policy
from superfednas.server.assign.weights import round_weights
from superfednas.server.round.orders import Order, Round, RoundPlan
from superfednas.server.round.outcome import Outcome
from superfednas.supernet import SearchSpace, State

StandsFor = Mapping[str, Scalar]


@dataclass(frozen=True)
class Setup:
    """The run as a method sees it.

    Parameters
    ----------
    space
        The search space.
    policy
        The run's ``assignment``; its state is kept with the run's checkpoints.
    by_examples
        Whether weights are multiplied by each client's share of the examples.
    options
        All settings of the run, under the keys of the run-config.
    """

    space: SearchSpace
    policy: Policy
    by_examples: bool
    options: Mapping[str, Scalar]


class Method(ABC):
    """Base of the methods.

    Attributes
    ----------
    name, source
        Its name in the run-config, and where it is from.
    sends, trains, averages
        What a client gets, what it trains of it, and how the server merges, in a few words.
    settings
        The values of ``auto`` (and of 0, for ``subnets-per-step``), by key of the run-config.
        Missing keys have MaxNet's values.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    sends: ClassVar[str] = ""
    trains: ClassVar[str] = ""
    averages: ClassVar[str] = ""
    settings: ClassVar[StandsFor] = {}

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @abstractmethod
    def orders(self, round: Round, clients: Sequence[Client]) -> Sequence[Order]:  # noqa: A002
        """Return this round's orders, at most one per client, made by :meth:`Round.order`.

        A target beside the supernet exists once an order names it, and starts as a copy of the
        supernet.
        """

    def after(self, plan: RoundPlan, outcome: Outcome) -> Mapping[str, State]:
        """Return the states that the next round starts from, the supernet among them.

        Targets that are not returned are dropped; by default all stay as their replies made them.
        """
        return outcome.targets

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the states, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most methods keep nothing)
        """Restore :meth:`state` from a checkpoint."""


class Configured(Method):
    """A method that is a policy and an averaging, defined entirely by its settings."""

    def orders(self, round: Round, clients: Sequence[Client]) -> list[Order]:  # noqa: A002
        """Order what the policy assigns, with the weights that the averaging requires."""
        policy = self.setup.policy
        assignment = policy.assign(round.number, clients)
        favoured, shift = policy.favoured(assignment), policy.shift(round.number)
        examples = {client.name: client.examples or 0 for client in clients}
        counted = examples if self.setup.by_examples else None
        most = float(self.setup.options.get("max-share", 0.0))
        weights = round_weights(assignment, favoured, round.beta, counted, most)
        return [
            round.order(
                client,
                assignment[client.name],
                weight=weights[client.name],
                favoured=client.name in favoured,
                shift=shift,
            )
            for client in clients
        ]


def about(method: type[Method]) -> dict[str, Any]:
    """Return a method's description as JSON values."""
    names = ("name", "source", "sends", "trains", "averages")
    return {name: getattr(method, name) for name in names} | {"settings": dict(method.settings)}
