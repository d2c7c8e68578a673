"""Assignment policies: which client trains which subnet this round (SuperFedNAS §4.2, Table 5).

A policy sees a round's clients in the order in which they were sampled and gives each an
architecture that it can hold. Random draws come from a stream of the run's seed, the round and the
client's name, so they do not depend on who else takes part.
"""

import functools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from superfednas.common.streams import Purpose, stream
from superfednas.server.assign.client import Client, client_index, client_order
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.ladder import ladder
from superfednas.wire.order import LocalSubnets


class Policy(ABC):
    """Base of the policies.

    Parameters
    ----------
    space
        The search space.
    seed
        The run's seed.

    Attributes
    ----------
    ends_only
        Whether, of two clients, one trains the smallest and the other the largest.
    levels
        Whether it gives out width levels alone.
    leader
        Whether it is the largest of the assigned subnets that takes β.
    """

    ends_only: ClassVar[bool] = False
    levels: ClassVar[bool] = False
    leader: ClassVar[bool] = True

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        self.seed = seed
        # Called several times a round, for the same few.
        self._size = functools.lru_cache(maxsize=1024)(lambda a: (space.macs(a), space.params(a)))

    @classmethod
    def configured(
        cls, space: SearchSpace, seed: int, architecture: str, subnets: LocalSubnets
    ) -> "Policy":
        """Return the policy of a run.

        Parameters
        ----------
        space, seed
            The run's.
        architecture, subnets
            What the settings of these names say, for policies that look at them.

        Raises
        ------
        ValueError
            If they are not for this space, or the space is not one for this policy.
        """
        return cls(space, seed)

    def assign(
        self,
        round: int,  # noqa: A002
        clients: Sequence[Client | str],
    ) -> dict[str, Architecture]:
        """Give every client an architecture.

        Parameters
        ----------
        round
            The round, counted from 1.
        clients
            This round's clients in sampled order, each able to hold the smallest subnet; plain
            names have no budget.

        Returns
        -------
        dict
            Client name to architecture, in the order of ``clients``.

        Raises
        ------
        ValueError
            If a name occurs twice, or a client cannot hold what every client must.
        """
        known = [Client(c) if isinstance(c, str) else c for c in clients]
        if len({c.name for c in known}) < len(known):
            raise ValueError(f"client names must differ: {[c.name for c in known]}")
        for client in known:
            if not self.eligible(client):
                raise ValueError(f"client {client.name!r} cannot hold the smallest architecture")
        chosen = self._choose(round, known)
        for client in known:
            if not isinstance(chosen, Mapping) or client.name not in chosen:
                raise ValueError(
                    f"policy {type(self).__name__} gave client {client.name!r} no architecture"
                )
        return {client.name: chosen[client.name] for client in known}

    @abstractmethod
    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        """Give every client an architecture that it can hold."""

    def eligible(self, client: Client) -> bool:
        """Return whether the policy has anything that a client can hold."""
        return client.can_hold(self.space, self.space.smallest)

    def favoured(self, assignment: Mapping[str, Architecture]) -> list[str]:
        """Return the clients that share β: those with the largest of the assigned subnets."""
        most = max(self._size(arch) for arch in assignment.values())
        return [name for name, arch in assignment.items() if self._size(arch) == most]

    def shift(self, round: int) -> int:  # noqa: A002
        """Channels by which the windows of a round's subnets are shifted in the supernet."""
        return 0

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most policies keep nothing)
        """Restore :meth:`state` from a checkpoint."""

    # Draws within a budget

    def random(self, round: int, client: Client) -> Architecture:  # noqa: A002
        """Draw uniformly over genes; if too large, lower random genes one by one."""
        rng = stream(self.seed, Purpose.ASSIGN, round=round, name=client.name)
        return self._lower(self.space.draw(rng), client, lambda genes: int(rng.choice(genes)))

    def largest_for(self, client: Client) -> Architecture:
        """Return the largest subnet, lowered where it costs least until the client can hold it."""
        choices = [count - 1 for count in self.space.genes]

        def cheapest(genes: list[int]) -> int:
            return max(genes, key=lambda gene: self._size(self._lowered(choices, gene)))

        return self._lower(choices, client, cheapest)

    def _lowered(self, choices: list[int], gene: int) -> Architecture:
        return self.space.decode([c - (g == gene) for g, c in enumerate(choices)])

    def _lower(
        self, choices: list[int], client: Client, pick: Callable[[list[int]], int]
    ) -> Architecture:
        while not client.can_hold(self.space, arch := self.space.decode(choices)):
            choices[pick([gene for gene, choice in enumerate(choices) if choice])] -= 1
        return arch


class Random(Policy):
    """Every client draws at random."""

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        return {client.name: self.random(round, client) for client in clients}


class Static(Policy):
    """Client n always trains rung ``n mod rungs`` of the space's ladder."""

    moving = False

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__(space, seed)
        self.rungs = [arch for name, arch in ladder(space).items() if name != "random:0"]

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        rungs, chosen = self.rungs, {}
        for client in clients:
            rung = (client_index(client.name) + self.moving * (round - 1)) % len(rungs)
            # The smallest, rung 0, fits everyone, so the step down ends.
            while not client.can_hold(self.space, rungs[rung]):
                rung -= 1
            chosen[client.name] = rungs[rung]
        return chosen


class Dynamic(Static):
    """As :class:`Static`, but one rung further every round."""

    moving = True


class Sandwich(Policy):
    """Slot t mod K gets the smallest, slot t+1 mod K the largest, the others draw at random.

    A slot whose client cannot hold the largest passes it on to the next one; if that reaches the
    slot of the smallest, the largest takes precedence. With one client a round, it gets the
    largest.
    """

    ends_only = True

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        chosen = {client.name: self.random(round, client) for client in clients}
        t, count = round - 1, len(clients)
        chosen[clients[t % count].name] = self.space.smallest
        top = most_capable(self, [clients[(t + 1 + step) % count] for step in range(count)])
        chosen[top[0].name] = self.largest_for(top[0])
        return chosen


class TrackingSandwich(Policy):
    """The paper's policy: the largest goes to who held it least often; likewise the smallest.

    Counters rise with every assignment, even if a random draw happens to be the largest or the
    smallest. Ties go to the lowest client name. Only clients that can hold the largest compete for
    it; if none can, those that can hold the most compete for the largest that they can hold. With
    one client a round, it gets the largest.
    """

    ends_only = True

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__(space, seed)
        self.largest: Counter[str] = Counter()
        self.smallest: Counter[str] = Counter()

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        top = self.next_largest(most_capable(self, clients))
        rest = [client for client in clients if client is not top]
        chosen = {client.name: self.random(round, client) for client in rest}
        chosen[top.name] = self.largest_for(top)
        if rest:
            bottom = min(rest, key=lambda c: (self.smallest[c.name], client_order(c.name)))
            chosen[bottom.name] = self.space.smallest
        self.count(chosen, self.favoured(chosen))
        return chosen

    def next_largest(self, clients: Sequence[Client]) -> Client:
        """Return the client whose turn it is to hold the largest, among those that can."""
        return min(clients, key=lambda c: (self.largest[c.name], client_order(c.name)))

    def count(self, chosen: Mapping[str, Architecture], largest: Sequence[str]) -> None:
        """Count this round's holders of the largest and of the smallest."""
        self.largest.update(largest)
        self.smallest.update(name for name, arch in chosen.items() if arch == self.space.smallest)

    def state(self) -> dict[str, Any]:
        """Return the counters."""
        return {"largest": dict(self.largest), "smallest": dict(self.smallest)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the counters from a checkpoint."""
        self.largest, self.smallest = Counter(state["largest"]), Counter(state["smallest"])


class MostData(Policy):
    """Most training images get the largest, second most the smallest, the others draw at random."""

    ends_only = True

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        chosen = {client.name: self.random(round, client) for client in clients}

        def by_data(client: Client) -> tuple[Any, ...]:
            return (-(client.examples or 0), client_order(client.name))

        top = min(most_capable(self, clients), key=by_data)
        chosen[top.name] = self.largest_for(top)
        rest = [client for client in clients if client is not top]
        if rest:
            chosen[min(rest, key=by_data).name] = self.space.smallest
        return chosen


class SharedPerRound(Policy):
    """One random architecture a round for everyone; full width until round ``full_width_until``.

    A client that cannot hold it gets it lowered to its budget.
    """

    full_width_until = 750  # the paper's

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        rng = stream(self.seed, Purpose.ASSIGN, round=round)
        choices = self.space.draw(rng)
        if round <= self.full_width_until:
            choices = self.space.full_width(choices)

        def lowered(client: Client) -> Architecture:
            own = stream(self.seed, Purpose.ASSIGN, round=round, name=client.name)
            return self._lower(list(choices), client, lambda genes: int(own.choice(genes)))

        return {client.name: lowered(client) for client in clients}


class Fixed(Policy):
    """Everyone trains one architecture: FedAvg. β goes round as in tracking-sandwich."""

    leader = False

    def __init__(self, space: SearchSpace, seed: int = 0, arch: Architecture | None = None) -> None:
        super().__init__(space, seed)
        self.arch = space.largest if arch is None else arch
        space.validate(self.arch)
        self._turns = TrackingSandwich(space, seed)

    @classmethod
    def configured(
        cls, space: SearchSpace, seed: int, architecture: str, subnets: LocalSubnets
    ) -> "Fixed":
        """Return the policy of the run's ``architecture``."""
        return cls(space, seed, space.parse(architecture))

    def eligible(self, client: Client) -> bool:
        """Return whether a client can hold the architecture."""
        return client.can_hold(self.space, self.arch)

    def _choose(self, round: int, clients: list[Client]) -> dict[str, Architecture]:  # noqa: A002
        self._favoured = self._turns.next_largest(clients).name
        chosen = {client.name: self.arch for client in clients}
        self._turns.count({}, [self._favoured])
        return chosen

    def favoured(self, assignment: Mapping[str, Architecture]) -> list[str]:
        """Return the client whose turn it is."""
        return [self._favoured]

    def state(self) -> dict[str, Any]:
        """Return the turns' counters."""
        return self._turns.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the turns' counters."""
        self._turns.restore(state)


def most_capable(policy: Policy, clients: Sequence[Client]) -> list[Client]:
    """Return the clients that can hold the largest or, if none, those that can hold the most."""
    space = policy.space
    able = [client for client in clients if client.can_hold(space, space.largest)]
    if able:
        return able
    held = [policy._size(policy.largest_for(client)) for client in clients]
    return [client for client, size in zip(clients, held, strict=True) if size == max(held)]


POLICIES: dict[str, type[Policy]] = {
    "tracking-sandwich": TrackingSandwich,
    "sandwich": Sandwich,
    "random": Random,
    "static": Static,
    "dynamic": Dynamic,
    "most-data": MostData,
    "shared-per-round": SharedPerRound,
    "fixed": Fixed,
}
