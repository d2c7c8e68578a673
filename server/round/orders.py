"""Orders of a round, one record per client, all fixed before anyone replies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from superfednas.common.settings import Scalar, flatten, parse
from superfednas.server.assign.client import Client
from superfednas.server.round.check import Expected
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.boxes import Cut
from superfednas.wire.flat import numel, numpy_dtype
from superfednas.wire.npy import flat_size
from superfednas.wire.order import LocalSubnets, LocalTraining

SUPERNET = "supernet"


@dataclass(frozen=True)
class _Local:
    """What an order may override."""

    local: LocalTraining = field(default_factory=LocalTraining)
    subnets: LocalSubnets = field(default_factory=LocalSubnets)


@dataclass(frozen=True)
class Order:
    """What one client is asked in a round; made by :meth:`Round.order`.

    Parameters
    ----------
    client, node
        Who trains, and the id of the node that is this client now.
    arch, cut
        What is trained, and its place in the target.
    bytes
        Bytes of the array that carries it.
    weight
        The reply's weight in the average.
    favoured
        Whether the client is one of those that share β.
    shift
        Channels by which the subnet's windows are shifted; 0 for the usual place.
    target
        The state from which the subnet is extracted and into which it is averaged: the supernet, or
        a state beside it.
    local
        Settings of local training, in kebab-case, that differ from the run's.
    """

    client: Client
    node: int
    arch: Architecture
    cut: Cut
    bytes: int
    weight: float = 1.0
    favoured: bool = False
    shift: int = 0
    target: str = SUPERNET
    local: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The client's name."""
        return self.client.name


@dataclass(frozen=True)
class RoundPlan:
    """A round's orders, and what they have in common.

    Parameters
    ----------
    round, beta, lr
        The round from 1, and its values of the two schedules; β is None for averages without it.
    evaluate
        What clients score of the weights they receive, besides their own subnet.
    orders
        In the order in which replies are folded.
    """

    round: int
    beta: float | None
    lr: float
    evaluate: tuple[Architecture, ...]
    orders: tuple[Order, ...]

    @property
    def clients(self) -> list[str]:
        """The clients' names."""
        return [order.name for order in self.orders]

    @property
    def targets(self) -> list[str]:
        """The states that are trained, each once."""
        return list(dict.fromkeys(order.target for order in self.orders))

    def expected(self, order: Order, wire_dtype: str) -> Expected:
        """Return the expected form of the reply to an order."""
        return Expected(
            order.name,
            self.round,
            order.arch,
            order.cut.shapes,
            wire_dtype,
            1 + len(self.evaluate),
            order.client.examples or 0,
            order.client.validation or 0,
        )


def _checked(local: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return settings of local training by their types; ``SettingsError`` for any others."""
    if not local:
        return {}
    values = flatten(parse(_Local, local))
    return {key: values[key] for key in local}


class Cuts:
    """Places of subnets in a supernet; those of the previous round are cached.

    Parameters
    ----------
    space
        The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._shapes = space.shapes(space.largest)
        self._before: dict[tuple[Architecture, int], tuple[Cut, int]] = {}
        self._now: dict[tuple[Architecture, int], tuple[Cut, int]] = {}

    def begin(self) -> None:
        """Begin a round."""
        self._before, self._now = self._now, {}

    def of(self, arch: Architecture, shift: int = 0) -> tuple[Cut, int]:
        """Return the place of a subnet whose windows are shifted, and by how many channels.

        Windows as wide as their axes stay in place, whatever is asked for.
        """
        key = arch, shift
        if key not in self._now:
            self._now[key] = self._before.get(key) or self._cut(arch, shift)
        return self._now[key]

    def _cut(self, arch: Architecture, shift: int) -> tuple[Cut, int]:
        usual = self.space.boxes(arch)
        boxes = self.space.rolled(arch, shift) if shift else usual
        cut = Cut(self._shapes, boxes)
        return cut, shift if cut != usual else 0


class Round:
    """A round for which orders are given.

    Parameters
    ----------
    number
        The round, from 1.
    beta, lr
        Its values of the two schedules; β is None for averages without it.
    evaluate
        What clients score of the weights they receive, besides their own subnet; empty if no
        evaluation is due.
    nodes
        The node of every client by name.
    cuts
        Where subnets lie.
    wire_dtype
        Number format of the arrays.
    """

    def __init__(
        self,
        number: int,
        *,
        beta: float | None,
        lr: float,
        evaluate: Sequence[Architecture],
        nodes: Mapping[str, int],
        cuts: Cuts,
        wire_dtype: str,
    ) -> None:
        self.number, self.beta, self.lr = number, beta, lr
        self.evaluate = tuple(evaluate)
        self._nodes, self._cuts = nodes, cuts
        self._dtype = numpy_dtype(wire_dtype)

    def order(
        self,
        client: Client,
        arch: Architecture,
        *,
        weight: float = 1.0,
        favoured: bool = False,
        shift: int = 0,
        target: str = SUPERNET,
        local: Mapping[str, Scalar] | None = None,
    ) -> Order:
        """Return the order to a client; see :class:`Order` for what it says.

        Raises
        ------
        SettingsError
            If ``local`` names something that is not a setting of local training, or a value that is
            not allowed.
        ValueError
            If the client cannot hold the subnet.
        """
        if not client.can_hold(self._cuts.space, arch):
            raise ValueError(f"client {client.name!r} cannot hold {arch.to_json()}")
        cut, shift = self._cuts.of(arch, shift)
        return Order(
            client=client,
            node=self._nodes[client.name],
            arch=arch,
            cut=cut,
            bytes=flat_size(self._dtype, numel(cut.shapes)),
            weight=weight,
            favoured=favoured,
            shift=shift,
            target=target,
            local=_checked(local or {}),
        )

    def plan(self, orders: Iterable[Order]) -> RoundPlan:
        """Return the round's plan.

        Raises
        ------
        SettingsError
            As :meth:`order`, for what orders have of their own.
        ValueError
            If a client has two orders, or something is no order.
        """
        given = tuple(orders) if isinstance(orders, Iterable) else (orders,)
        for one in given:
            if not isinstance(one, Order):
                raise ValueError(f"orders() returned a {type(one).__name__} in place of orders")
        # Not all come from `order` as they are: methods replace fields of others' orders.
        checked = [replace(one, local=_checked(one.local)) if one.local else one for one in given]
        plan = RoundPlan(self.number, self.beta, self.lr, self.evaluate, tuple(checked))
        if len(set(plan.clients)) < len(plan.orders):
            raise ValueError(f"round {self.number}: a client has two orders: {plan.clients}")
        return plan
