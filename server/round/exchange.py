"""The exchange of messages: each reply is passed on as it arrives.

Flower's own ``send_and_receive`` returns after the last reply and keeps all in memory until then.
Pulling in short steps lets every reply be folded and dropped at once, and lets a round end when
enough have arrived.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Error, Message
from flwr.serverapp import Grid

from superfednas.flower.codes import ErrorCode
from superfednas.server.round.lost import Watch

_SHORTEST, _LONGEST, _SHARE = 0.002, 0.25, 0.1
_TELL = 60.0  # seconds between two reports of who is waited for
LOST_TWICE = "the node has lost this message twice: killed at work on it, or unable to fetch it"
Task = TypeVar("Task")


@dataclass
class Late(Generic[Task]):
    """Messages that were not answered before their exchange ended.

    Parameters
    ----------
    waiting
        Message id to what was asked.
    arrived
        What was asked, and the reply that has arrived since.
    """

    waiting: dict[str, Task] = field(default_factory=dict)
    arrived: list[tuple[Task, Message]] = field(default_factory=list)

    def forget(self, overdue: Callable[[Task], bool]) -> None:
        """Stop waiting for what is overdue."""
        self.waiting = {key: task for key, task in self.waiting.items() if not overdue(task)}

    def take(self) -> list[tuple[Task, Message]]:
        """Return what has arrived, once."""
        taken, self.arrived = self.arrived, []
        return taken


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    timeout: float,
    *,
    enough: Callable[[], bool] = lambda: False,
    late: Late[Task] | None = None,
    tasks: Sequence[Task] = (),
    tell: Callable[[list[int], float], None] | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[int, Message | None]]:
    """Push messages and yield (position in ``messages``, reply), in order of arrival.

    A message that could not be pushed is yielded first, one without reply last, both with None.
    Replies are matched by the message they answer: an error from the SuperLink names the SuperLink,
    not the node, as its source.

    Parameters
    ----------
    grid, messages
        The grid, and the messages to push.
    timeout
        Seconds to wait for replies.
    enough
        Called after every reply; once it returns true, no further reply is waited for.
    late
        Takes the messages no longer waited for, and replies to earlier exchanges that arrive during
        this one.
    tasks
        What ``late`` keeps of each message.
    tell
        Called every minute with the positions waited for, and for how many seconds.
    watch
        Finds lost messages. Each is sent again once; if it is lost again, its reply is an error.
    """
    if not messages:
        return
    began = told = time.monotonic()
    deadline = began + timeout
    pushed = list(grid.push_messages(messages))
    # Flower gives no id for a message that it could not push.
    waiting = {identifier: index for index, identifier in enumerate(pushed) if identifier}
    for index in sorted(set(range(len(messages))) - set(waiting.values())):
        yield index, None
    quiet_since = time.monotonic()
    sent_again: set[int] = set()
    while waiting and time.monotonic() < deadline and not enough():
        overdue = [] if late is None else list(late.waiting)
        questions = [] if watch is None else watch.questions
        arrived = list(grid.pull_messages([*waiting, *overdue, *questions]))
        for reply in arrived:
            answered = reply.metadata.reply_to_message_id
            if answered in waiting:
                yield waiting.pop(answered), reply
            elif late is not None and answered in late.waiting:
                late.arrived.append((late.waiting.pop(answered), reply))
            elif watch is not None:
                watch.take(reply)
        for index in [] if watch is None else watch.lost(waiting.values()):
            waiting = {key: position for key, position in waiting.items() if position != index}
            anew = [] if index in sent_again else list(grid.push_messages([_anew(messages[index])]))
            if any(anew):
                waiting[anew[0]] = index
                sent_again.add(index)
            else:
                error = Error(ErrorCode.REPLY_UNAVAILABLE, LOST_TWICE)
                yield index, Message(error, reply_to=messages[index])
        now = time.monotonic()
        if tell is not None and waiting and now - told >= _TELL:
            told = now
            tell(sorted(waiting.values()), now - began)
        if arrived:
            quiet_since = now
        elif waiting:
            # In proportion to the wait so far: no wait grows by more than a tenth.
            time.sleep(min(max(_SHARE * (now - quiet_since), _SHORTEST), _LONGEST))
    for identifier, index in waiting.items():
        if late is not None:
            late.waiting[identifier] = tasks[index]
        yield index, None


def _anew(message: Message) -> Message:
    """Return the same message, with a new creation time."""
    return Message(
        message.content,
        dst_node_id=message.metadata.dst_node_id,
        message_type=message.metadata.message_type,
        group_id=message.metadata.group_id,
    )
