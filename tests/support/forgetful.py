"""``superfednas node`` that takes its third training message and does nothing about it.

So does a node that was killed at work and has its key back before the SuperLink has missed it.
"""

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

from flwr.app import MessageType
from flwr.supernode import start_client_internal

from superfednas.deploy.fleet import node

FORGETFUL = "1"
FORGOTTEN = 3
_take = start_client_internal._pull_and_store_message
_trained = itertools.count(1)


def take(*, receive: Callable[[], Any], **named: Any) -> int | None:
    def forgetting() -> Any:
        found = receive()
        if found is None or found[0].metadata.message_type != MessageType.TRAIN:
            return found
        return None if next(_trained) == FORGOTTEN else found

    return _take(receive=forgetting, **named)


if os.environ["NODE"] == FORGETFUL:
    start_client_internal._pull_and_store_message = take
sys.argv.insert(1, "0.5")  # the longest poll
node.main()
