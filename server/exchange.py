"""Send messages and hand on each reply as it arrives.

Flower's own ``send_and_receive`` returns when the last reply has come and keeps all in memory until
then; pulling in short steps lets every reply be folded and dropped at once.
"""

import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

_SHORTEST, _LONGEST, _SHARE = 0.002, 0.25, 0.1


def exchange(
    grid: Grid, messages: Sequence[Message], timeout: float
) -> Iterator[tuple[int, Message | None]]:
    """Push messages and yield (position in ``messages``, reply), in order of arrival.

    A message that could not be pushed is yielded first, one without reply after ``timeout`` seconds
    last, both with None. Replies are
    matched by the message that they answer: an error made by the SuperLink names itself, not the
    node, as its source.
    """
    if not messages:
        return
    deadline = time.monotonic() + timeout
    pushed = list(grid.push_messages(messages))
    # Flower gives no id for a message that it could not push.
    waiting = {identifier: index for index, identifier in enumerate(pushed) if identifier}
    for index in sorted(set(range(len(messages))) - set(waiting.values())):
        yield index, None
    quiet_since = time.monotonic()
    while waiting and time.monotonic() < deadline:
        arrived = list(grid.pull_messages(list(waiting)))
        for reply in arrived:
            answered = reply.metadata.reply_to_message_id
            if answered in waiting:
                yield waiting.pop(answered), reply
        now = time.monotonic()
        if arrived:
            quiet_since = now
        elif waiting:
            # In proportion to the wait so far: no wait gets longer by more than a tenth.
            time.sleep(min(max(_SHARE * (now - quiet_since), _SHORTEST), _LONGEST))
    for index in waiting.values():
        yield index, None
