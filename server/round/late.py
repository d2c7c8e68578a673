"""The end of a round, and the replies that arrive after it."""

from dataclasses import dataclass, replace

from flwr.app import Message

from superfednas.records.refusals import Refusal, Refused
from superfednas.records.rows import LateRow
from superfednas.server.round.check import BadReply, Reply, check_reply
from superfednas.server.round.exchange import Late
from superfednas.server.round.orders import Order, RoundPlan


@dataclass(frozen=True)
class LateTask:
    """What a client was asked in a round that has closed."""

    plan: RoundPlan
    index: int

    @property
    def order(self) -> Order:
        """The order to the client."""
        return self.plan.orders[self.index]


class Closing:
    """Closes a round early, once enough usable replies have arrived.

    Parameters
    ----------
    plan
        The round's plan.
    replies
        Number of usable replies that suffices; 0 waits for all.
    share
        Share of the round's weight that they must have in total.
    timeout
        Seconds after which the round closes in any case.
    """

    def __init__(self, plan: RoundPlan, replies: int, share: float, timeout: float) -> None:
        self._plan, self._replies, self._share = plan, replies, share
        self.timeout = timeout
        self._usable: set[str] = set()

    def count(self, client: str) -> None:
        """Count a usable reply."""
        self._usable.add(client)

    def enough(self) -> bool:
        """Return whether enough replies have arrived."""
        if not self._replies and not self._share:
            return False
        orders = self._plan.orders
        there = sum(order.weight for order in orders if order.name in self._usable)
        least = self._share * sum(order.weight for order in orders)
        return len(self._usable) >= self._replies and there >= least

    def missed(self) -> BadReply:
        """Return why a reply is missing."""
        if self.enough():
            return BadReply(
                Refusal.ROUND_CLOSED,
                f"no reply before the round closed with {len(self._usable)} of "
                f"{len(self._plan.orders)}",
            )
        return BadReply(Refusal.NO_REPLY, f"no reply within {self.timeout:g} s")


def check_late(task: LateTask, message: Message, wire_dtype: str) -> Reply | Refused:
    """Return a late reply if it can be folded, else why not."""
    try:
        return check_reply(message, task.plan.expected(task.order, wire_dtype))
    except BadReply as error:
        return error.refused


def dropped(late: Late[LateTask], wire_dtype: str) -> list[LateRow]:
    """Take the replies to earlier rounds, none of which is folded; return a row for each."""
    rows = []
    for task, message in late.take():
        reply = check_late(task, message, wire_dtype)
        row = LateRow(task.order.name, task.plan.round)
        if isinstance(reply, Refused):
            row = replace(row, refusal=reply.code, reason=reply.reason)
        rows.append(row)
    return sorted(rows, key=lambda row: (row.round, row.client))
