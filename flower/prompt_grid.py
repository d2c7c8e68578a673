"""A grid whose pulls do not wait for replies that are still in transit.

Flower announces a reply as soon as its head has arrived. Pulling it then waits for the last of its
arrays, and every other reply waits behind it: a node on a slow line would hold up a round past its
deadline, and a node that is cut off in the middle of its reply would hold up the run. And one reply
that cannot be decoded would end it, so here it is an error in place of that reply.
"""

import itertools
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from superfednas.flower.local_grid import LocalGrid
from superfednas.flower.unreadable import (
    arrays_of_at_most,
    bound_arrays,
    concerns_one_reply,
    readable,
    unreadable,
)

_MOMENT = 0.1  # seconds: far longer than the answer "no reply yet" takes
_AT_ONCE = 16  # pulls per call, so that waiting for many nodes costs the SuperLink no more
_ROOM = 1 << 16  # bytes of a reply's array beside the numbers


class PromptGrid(Grid):
    """A wrapper around a grid in which each reply is pulled by its own thread.

    Parameters
    ----------
    grid
        The grid to wrap.

    Attributes
    ----------
    unbounded
        Why a small reply could fill the memory, with a Flower that is not as expected; else None.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.unbounded = bound_arrays()
        self._pulls: dict[str, Future[list[Message]]] = {}
        self._turn = itertools.count(0, _AT_ONCE)
        self._largest = 0  # bytes of the largest array sent: no reply needs more

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
        """Return the online nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids, in order."""
        sent = list(messages)
        self._largest = max([self._largest, *map(_largest, sent)])
        return self._grid.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived completely.

        One that cannot be decoded is an error, whose code is
        :attr:`superfednas.flower.codes.OwnCode.UNREADABLE`; it is not pulled again.
        """
        asked = list(message_ids)
        idle = [identifier for identifier in asked if identifier not in self._pulls]
        # In turn, if there are many.
        start = next(self._turn) % max(len(idle), 1)
        begun = {i: self._pull(i) for i in [*idle[start:], *idle[:start]][:_AT_ONCE]}
        wait(begun.values(), _MOMENT)
        self._pulls |= begun
        done = {i: pull for i, pull in self._pulls.items() if pull.done()}
        self._pulls = {i: pull for i, pull in self._pulls.items() if i not in done}
        # Nobody waits any more for what the others bring.
        return [message for i in asked if i in done for message in done[i].result()]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Use the wrapped grid, which waits for all replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _pull(self, identifier: str) -> Future[list[Message]]:
        pull: Future[list[Message]] = Future()

        def run() -> None:
            try:
                with arrays_of_at_most(self._largest + _ROOM):
                    found = list(self._grid.pull_messages([identifier]))
                pull.set_result([readable(reply, identifier) for reply in found])
            except BaseException as error:  # noqa: BLE001 (raised where the result is taken)
                if isinstance(error, Exception) and concerns_one_reply(error):
                    why = f"{type(error).__name__}: {error}"
                    pull.set_result([unreadable(identifier, why)])
                else:
                    pull.set_exception(error)

        # A daemon: the end of the run does not wait for a reply that never arrives completely.
        threading.Thread(target=run, name=f"pull-{identifier}", daemon=True).start()
        return pull


def prompt(grid: Grid) -> PromptGrid:
    """Return a grid wrapped, once."""
    return grid if isinstance(grid, PromptGrid) else PromptGrid(grid)


def has_all_nodes(grid: Grid) -> bool:
    """Return whether all nodes are there from the start, as in a simulation or this process."""
    inner = grid._grid if isinstance(grid, PromptGrid) else grid
    return isinstance(inner, InMemoryGrid | LocalGrid)


def _largest(message: Message) -> int:
    """Return the bytes of a message's largest array."""
    records = message.content.values() if message.has_content() else ()
    arrays = [a for r in records if isinstance(r, ArrayRecord) for a in r.values()]
    return max((len(array.data) for array in arrays), default=0)
