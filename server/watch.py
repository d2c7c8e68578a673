"""Find the messages that no reply will come to, though their node is there.

A node that is killed while it works on a message, and started again with its key, has the id that
it had before. Where the SuperLink has not missed it, nobody says that the message is lost. The same
holds for a message that a node could not fetch, and for a reply that it could not send.

A SuperNode answers one message after the other, in the order in which they were sent, and sends a
reply before it takes the next message. So a question that is put after a message and is answered
before it tells that the message is lost. A simulation keeps no order: there nobody is asked.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from supernet.wire import CONFIG, PROTOCOL, STILL_THERE


class Watch:
    """Asks the nodes of a round that have not answered for long whether they are there.

    Parameters
    ----------
    grid
        The nodes.
    nodes
        The node that each position's message went to; None where it keeps no order.
    every
        Seconds of waiting after which a node is asked, and asked again. A question that was not
        answered by then is void, so that no node finds more than one of them waiting.
    grace
        Seconds that a reply whose head is there may take to arrive as a whole.
    tell
        Called with each position whose message is found lost.
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
        """Ids of the questions that are not answered."""
        return list(self._questions)

    def take(self, reply: Message) -> None:
        """Take the answer to a question; an error, as the SuperLink makes it, answers none."""
        index = self._questions.pop(reply.metadata.reply_to_message_id, None)
        if index is not None and not reply.has_error():
            self._answered[index] = time.monotonic()

    def lost(self, waiting: Iterable[int]) -> list[int]:
        """Put the questions that are due; return the positions whose message is lost.

        Parameters
        ----------
        waiting
            Positions that have no reply. What is found lost is taken for sent again.
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
