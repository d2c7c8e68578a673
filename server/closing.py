"""When a round closes, and what becomes of the replies that come after."""

from dataclasses import dataclass

from flwr.app import Message

from server.plan import RoundPlan
from server.replies import BadReply, Reply, check_reply


@dataclass(frozen=True)
class LateTask:
    """What a client was asked in a round that has closed."""

    plan: RoundPlan
    index: int

    @property
    def client(self) -> str:
        """The client's name."""
        return list(self.plan.assignment)[self.index]

    @property
    def node(self) -> int:
        """The id of the client's node."""
        return self.plan.nodes[self.client]


class Closing:
    """Closes a round early, once enough usable replies are in.

    Parameters
    ----------
    plan
        The round's plan.
    replies
        Usable replies that are enough; 0 waits for all.
    share
        Share of the round's weight that they must have together.
    timeout
        Seconds after which the round closes whatever is in.
    """

    def __init__(self, plan: RoundPlan, replies: int, share: float, timeout: float) -> None:
        self._plan, self._replies, self._share = plan, replies, share
        self.timeout = timeout
        self._usable: set[str] = set()

    def count(self, client: str) -> None:
        """Count a usable reply."""
        self._usable.add(client)

    def enough(self) -> bool:
        """Say whether no further reply is waited for."""
        if not self._replies and not self._share:
            return False
        weights = self._plan.weights
        there = sum(weights[name] for name in self._usable)
        return len(self._usable) >= self._replies and there >= self._share * sum(weights.values())

    def missed(self) -> str:
        """Say why a reply is missing."""
        if self.enough():
            return (
                f"no reply before the round closed with {len(self._usable)} of "
                f"{len(self._plan.assignment)}"
            )
        return f"no reply within {self.timeout:g} s"


def check_late(task: LateTask, message: Message, wire_dtype: str) -> Reply | str:
    """Return a late reply that can be folded, or why it cannot."""
    try:
        return check_reply(message, task.plan.expected(task.index, wire_dtype))
    except BadReply as reason:
        return str(reason)
