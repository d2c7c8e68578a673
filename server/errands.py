"""Errands: subnets that nodes are to look at, each inside one whose weights are sent to them.

What scoring and personalisation by the nodes share: who is there, which message carries which
subnets, and one message a node at a time, so that few weights wait.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from nas.ladder import nested
from server.assignment import Client, Random
from server.exchange import exchange
from server.outgoing import Outgoing
from server.progress import Progress
from server.replies import BadReply
from server.roster import Roster
from server.run_folder import RunFolder
from server.settings import Settings, check_settings
from server.watch import Watch
from supernet import Architecture, SearchSpace, State
from supernet.config import flatten
from supernet.wire import ARRAYS, CONFIG, TrainOrder, encode_list

T = TypeVar("T")


@dataclass(frozen=True)
class Errand:
    """One message to a node: look at these subnets inside that one.

    ``validation`` is the number of validation images that the node declared.
    """

    client: str
    node: int
    outer: Architecture
    archs: tuple[Architecture, ...]
    validation: int


def plan_errands(
    space: SearchSpace, archs: Sequence[Architecture], node: int, client: Client
) -> list[Errand]:
    """Divide the subnets that a node can hold into messages, each with one that holds the others.

    From the largest on, each subnet that no earlier message can carry opens one of its own. For a
    node without budget that is one message with the whole supernet, as the largest is among those
    to be scored.
    """
    waiting = [
        arch
        for arch in sorted(archs, key=space.params, reverse=True)
        if client.can_hold(space, arch)
    ]
    errands = []
    while waiting:
        outer = waiting[0]
        shapes = space.shapes(outer)
        inside = [arch for arch in waiting if nested(space.shapes(arch), shapes)]
        waiting = [arch for arch in waiting if arch not in inside]
        validation = client.validation or 0
        errands.append(Errand(client.name, node, outer, tuple(inside), validation))
    return errands


class Party:
    """The nodes that errands go to.

    Parameters
    ----------
    settings
        The run's, with the time-outs and ``min_nodes`` that count now.
    space
        The run's space.
    grid, progress
        The nodes, and where it is told what they do.
    """

    def __init__(
        self, settings: Settings, space: SearchSpace, grid: Grid, progress: Progress
    ) -> None:
        self._settings, self._space = settings, space
        self._grid, self._progress = grid, progress
        self._roster = Roster(
            space,
            Random(space, settings.seed),  # whoever can hold the smallest, whatever the run trained
            device_shares=settings.device_shares,
            question=flatten(settings.data) | {"seed": settings.seed},
            note=progress.note,
            timeout=settings.node_timeout,
        )

    def meet(self) -> list[tuple[int, Client]]:
        """Wait for the nodes: as many as a round needs, and all that hold parts of one data set."""
        settings, roster = self._settings, self._roster
        least = settings.min_nodes or settings.clients_per_round
        deadline = time.monotonic() + settings.node_timeout
        usable = roster.wait_for(
            self._grid, least, settings.node_timeout, wanted=f"min-nodes = {least}"
        )
        while len(usable) < roster.parts and not roster.complete and time.monotonic() < deadline:
            time.sleep(0.5)
            usable = roster.refresh(self._grid)
        if len(usable) < roster.parts:
            self._progress.note(
                f"{len(usable)} of {roster.parts} nodes are there: the others do not count"
            )
        return list(usable.values())

    def send(
        self,
        errands: Sequence[Errand],
        state: State,
        order: TrainOrder,
        read: Callable[[Message, Errand], T | None],
    ) -> Iterator[tuple[Errand, T]]:
        """Send errands, one message a node at a time, and yield what came back of each.

        Parameters
        ----------
        errands
            What to look at.
        state
            The supernet.
        order
            What all messages ask; each says which subnets itself.
        read
            Checks a reply; a :class:`server.replies.BadReply` is told and leaves it out, None means
            that the node has nothing to give, and it is not asked again.
        """
        s = self._settings
        outgoing = Outgoing(s.wire_dtype)
        queues: dict[int, list[Errand]] = {}
        for errand in errands:
            queues.setdefault(errand.node, []).append(errand)
        while any(queues.values()):
            wave = [queue.pop(0) for queue in queues.values() if queue]
            weights: dict[Architecture, ArrayRecord] = {}  # one serialisation a distinct subnet
            for outer in dict.fromkeys(errand.outer for errand in wave):
                weights[outer] = outgoing.record(state, self._space.boxes(outer))
            messages = [_message(errand, weights[errand.outer], order, s) for errand in wave]
            in_turn = self._roster.in_turn
            watch = Watch(self._grid, [e.node if e.node in in_turn else None for e in wave])
            for index, reply in exchange(self._grid, messages, s.round_timeout, watch=watch):
                errand = wave[index]
                try:
                    if reply is None:
                        queues[errand.node].clear()  # gone, or still busy with this one
                        raise BadReply(f"no reply within {s.round_timeout:g} s")
                    found = read(reply, errand)
                except BadReply as reason:
                    self._progress.note(f"client {errand.client} refused: {reason}")
                    continue
                if found is None:
                    queues[errand.node].clear()
                else:
                    yield errand, found


def settings_now(run: RunFolder, asked: Settings, **own: Any) -> Settings:
    """Return a run's settings, with what was asked now of nodes and time, and the errand's own."""
    return replace(
        check_settings(run.settings),
        min_nodes=asked.min_nodes,
        node_timeout=asked.node_timeout,
        round_timeout=asked.round_timeout,
        **own,
    )


def order_of(settings: Settings) -> TrainOrder:
    """Return what every errand of a run asks alike."""
    return TrainOrder(
        seed=settings.seed,
        wire_dtype=settings.wire_dtype,
        torch_threads=settings.torch_threads,
        device=settings.device,
        space=settings.space,
        local=settings.local,
        tuning=settings.tuning,
    )


def _message(errand: Errand, weights: ArrayRecord, order: TrainOrder, s: Settings) -> Message:
    order = replace(
        order,
        architecture=errand.outer.to_json(),
        evaluate=encode_list([arch.to_json() for arch in errand.archs]),
    )
    config = ConfigRecord({**flatten(order), **flatten(s.data)})
    content = RecordDict({ARRAYS: weights, CONFIG: config})
    return Message(
        content, dst_node_id=errand.node, message_type=MessageType.EVALUATE, group_id="errands"
    )
