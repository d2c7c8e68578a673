"""The search for lost messages: those that stay unanswered although their node is online.

A node that is killed while it works on a message, and restarted with its key, has the same id as
before. If the SuperLink did not notice its absence, nothing reports that the message is lost. The
same holds for a message that a node could not fetch, and for a reply that it could not send.

A SuperNode answers messages one after another, in the order in which they were sent, and sends a
reply before it takes the next message. So if a query sent after a message is answered before it,
the message is lost. A simulation keeps no order: there nobody is asked.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from superfednas.wire.order import CONFIG, PROTOCOL, STILL_THERE


class Watch:
    """Asks nodes that have not answered for long whether they are online.

    Parameters
    ----------
    grid
        The nodes.
    nodes
        The node to which each position's message went; None if it keeps no order.
    every
        Seconds of waiting after which a node is queried, and queried again. A query unanswered by
        then is void, so that a node never finds more than one waiting.
    grace
        Seconds that a reply may take to arrive completely once its head has arrived.
    tell
        Called with each position whose message is found to be lost.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Sequence[int | None],
        *,
        every: float = 60.0,
        grace: float = 30.0,
        tell: Callable[[int], None] = lambda index: None,
    ) -> None:
        self._grid, self._nodes, self._tell = grid, nodes, tell
        self._every, self._grace = every, grace
        self._asked = dict.fromkeys(range(len(nodes)), time.monotonic())
        self._questions: dict[str, int] = {}
        self._answered: dict[int, float] = {}

    @property
    def questions(self) -> list[str]:
        """Ids of the unanswered queries."""
        return list(self._questions)

    def take(self, reply: Message) -> None:
        """Take the answer to a query; an error from the SuperLink does not count as one."""
        index = self._questions.pop(reply.metadata.reply_to_message_id, None)
        if index is not None and not reply.has_error():
            self._answered[index] = time.monotonic()

    def lost(self, waiting: Iterable[int]) -> list[int]:
        """Send the queries that are due; return the positions whose message is lost.

        Parameters
        ----------
        waiting
            Positions without a reply. Lost messages are assumed to be sent again.
        """
        now = time.monotonic()
        open_ = set(waiting)
        due = [
            index
            for index in sorted(open_)
            if self._nodes[index] is not None and now - self._asked[index] >= self._every
        ]
        if due:
            self._questions = {i: p for i, p in self._questions.items() if p not in due}
            pushed = self._grid.push_messages([self._question(index) for index in due])
            self._questions |= {i: p for i, p in zip(pushed, due, strict=False) if i}
            self._asked |= dict.fromkeys(due, now)
        gone = [i for i, at in self._answered.items() if i in open_ and now - at >= self._grace]
        for index in gone:
            del self._answered[index]
            self._asked[index] = now
            self._tell(index)
        return sorted(gone)

    def _question(self, index: int) -> Message:
        node = self._nodes[index]
        assert node is not None
        return Message(
            RecordDict({CONFIG: ConfigRecord({"protocol": PROTOCOL, STILL_THERE: True})}),
            dst_node_id=node,
            message_type=MessageType.QUERY,
            group_id="watch",
            ttl=self._every,
        )
