"""A grid whose pulls do not wait for replies that are still on their way.

Flower shows a reply as soon as its head has come. Whoever pulls it then waits for the last of its
arrays, and every other reply waits behind it: a node on a slow line would hold up a round past its
deadline, and a node that is cut off in the middle of its reply would hold up the run.
"""

import itertools
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_MOMENT = 0.1  # seconds: far longer than the answer "nothing is there" takes
_AT_ONCE = 16  # questions a call, so that waiting for many nodes costs the SuperLink no more


class PromptGrid(Grid):
    """Another grid, with every reply pulled by a thread of its own.

    Parameters
    ----------
    grid
        The other grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._pulls: dict[str, Future[list[Message]]] = {}
        self._turn = itertools.count(0, _AT_ONCE)

    def set_run(self, run: Any) -> None:
        """Hand on Flower's description of the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids, in order."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there as a whole."""
        asked = list(message_ids)
        idle = [identifier for identifier in asked if identifier not in self._pulls]
        # In turn, where they are many.
        start = next(self._turn) % max(len(idle), 1)
        begun = {i: self._pull(i) for i in [*idle[start:], *idle[:start]][:_AT_ONCE]}
        wait(begun.values(), _MOMENT)
        self._pulls |= begun
        done = {i: pull for i, pull in self._pulls.items() if pull.done()}
        self._pulls = {i: pull for i, pull in self._pulls.items() if i not in done}
        # Nobody asks any more for what the others bring.
        return [message for i in asked if i in done for message in done[i].result()]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Do as the other grid does, which waits for them all."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _pull(self, identifier: str) -> Future[list[Message]]:
        pull: Future[list[Message]] = Future()

        def run() -> None:
            try:
                pull.set_result(list(self._grid.pull_messages([identifier])))
            except BaseException as error:  # noqa: BLE001 (raised where the result is taken)
                pull.set_exception(error)

        # A daemon: the end of the run does not wait for a reply that never comes as a whole.
        threading.Thread(target=run, name=f"pull-{identifier}", daemon=True).start()
        return pull
