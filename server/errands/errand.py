"""Errands: subnets that nodes look at, each inside a subnet whose weights they are sent.

Scoring and personalisation by the nodes share this: which nodes are online, which message carries
which subnets, and one message per node at a time, so that few weights are queued.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from superfednas.common.settings import flatten
from superfednas.common.trust import give
from superfednas.flower.prompt_grid import has_all_nodes
from superfednas.records.folder import RunFolder
from superfednas.records.refusals import Refusal
from superfednas.records.trained import trusted_settings
from superfednas.server.assign.client import Client
from superfednas.server.assign.policies import Random
from superfednas.server.journal.progress import Progress
from superfednas.server.nodes import Roster, RosterError, question_of
from superfednas.server.round.check import BadReply
from superfednas.server.round.encode import Outgoing
from superfednas.server.round.exchange import exchange
from superfednas.server.round.lost import Watch
from superfednas.server.settings import Settings, check_settings
from superfednas.supernet import Architecture, SearchSpace, State
from superfednas.wire.order import ARRAYS, CONFIG, TrainOrder, encode_list

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
    """Divide the subnets a node can hold into messages, each with one that contains the others.

    From the largest downwards, each subnet that fits no earlier message opens a new one. For a node
    without a budget this gives one message with the whole supernet, because the largest is always
    among those to be scored.
    """
    waiting = [
        arch
        for arch in sorted(archs, key=space.params, reverse=True)
        if client.can_hold(space, arch)
    ]
    errands = []
    while waiting:
        outer = waiting[0]
        inside = [arch for arch in waiting if space.contains(outer, arch)]
        waiting = [arch for arch in waiting if arch not in inside]
        validation = client.validation or 0
        errands.append(Errand(client.name, node, outer, tuple(inside), validation))
    return errands


class Party:
    """The nodes that run errands.

    Parameters
    ----------
    settings
        The run's settings, with the current time-outs and ``min_nodes``.
    space
        The run's space.
    grid, progress
        The nodes, and where to report what they do.
    errand
        What they will be asked, :data:`superfednas.wire.errands.SCORE` or ``PERSONALISE``.
    """

    def __init__(
        self,
        settings: Settings,
        space: SearchSpace,
        grid: Grid,
        progress: Progress,
        errand: str,
    ) -> None:
        self._settings, self._space = settings, space
        self._grid, self._progress = grid, progress
        self._roster = Roster(
            space,
            Random(space, settings.seed),  # any that can hold the smallest, whatever was trained
            device_shares=settings.device_shares,
            question=question_of(settings, errand),
            note=progress.note,
            timeout=settings.node_timeout,
        )

    def meet(self, *, scores: bool = True) -> list[tuple[int, Client]]:
        """Wait for the nodes: as many as a round needs, and all that hold parts of one data set.

        Parameters
        ----------
        scores
            Return only those that tell their scores; where ``min-nodes`` is given, it counts these.

        Raises
        ------
        RosterError
            If there are too few.
        """
        settings, roster = self._settings, self._roster
        least = settings.min_nodes or settings.clients_per_round
        deadline = time.monotonic() + settings.node_timeout
        usable = roster.wait_for(
            self._grid, least, settings.node_timeout, wanted=f"min-nodes = {least}"
        )
        asked = _askable(usable, scores)
        more = not has_all_nodes(self._grid)
        while time.monotonic() < deadline and (
            roster.missing or (more and len(asked) < settings.min_nodes)
        ):
            time.sleep(0.5)
            usable = roster.refresh(self._grid)
            asked = _askable(usable, scores)
        if len(asked) < settings.min_nodes:
            raise RosterError(
                f"min-nodes = {settings.min_nodes}: {len(asked)} of the {len(usable)} usable nodes "
                "tell their scores (tell-scores in their node configs)"
            )
        if len(usable) < roster.parts:
            self._progress.note(
                f"{len(usable)} of {roster.parts} nodes are there: the others do not count"
            )
        if len(asked) < len(usable):
            self._progress.note(
                f"{len(usable) - len(asked)} of {len(usable)} nodes keep their scores "
                "(tell-scores in their node configs) and are not asked",
                "scores-kept",
                clients=[name for name, (_, client) in usable.items() if not client.tells_scores],
            )
        return asked

    def send(
        self,
        errands: Sequence[Errand],
        state: State,
        order: TrainOrder,
        read: Callable[[Message, Errand], T | None],
    ) -> Iterator[tuple[Errand, T]]:
        """Send errands, one message per node at a time, and yield each result.

        Parameters
        ----------
        errands
            What to look at.
        state
            The supernet.
        order
            What all messages have in common; each names its own subnets.
        read
            Checks a reply. A :class:`superfednas.server.round.check.BadReply` is reported and the
            reply left out; None means that the node has nothing to contribute, and it is not asked
            again.
        """
        s = self._settings
        outgoing = Outgoing(s.wire_dtype)
        queues: dict[int, list[Errand]] = {}
        for errand in errands:
            queues.setdefault(errand.node, []).append(errand)
        while any(queues.values()):
            wave = [queue.pop(0) for queue in queues.values() if queue]
            weights: dict[Architecture, ArrayRecord] = {}  # one serialisation per distinct subnet
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
                        raise BadReply(Refusal.NO_REPLY, f"no reply within {s.round_timeout:g} s")
                    found = read(reply, errand)
                except BadReply as error:
                    refused = error.refused
                    self._progress.note(
                        f"client {errand.client} refused: {refused}",
                        "refused",
                        client=errand.client,
                        refusal=refused.code,
                        reason=refused.reason,
                    )
                    continue
                if found is None:
                    queues[errand.node].clear()
                else:
                    yield errand, found


def _askable(usable: Mapping[str, tuple[int, Client]], scores: bool) -> list[tuple[int, Client]]:
    return [pair for pair in usable.values() if pair[1].tells_scores or not scores]


def settings_now(run: RunFolder, asked: Settings, **own: Any) -> Settings:
    """Return a run's settings, with the limits and the errand's own keys that are given now."""
    give(flatten(asked).values())
    return replace(
        check_settings(trusted_settings(run)),
        min_nodes=asked.min_nodes,
        node_timeout=asked.node_timeout,
        round_timeout=asked.round_timeout,
        **own,
    )


def order_of(settings: Settings) -> TrainOrder:
    """Return what all errands of a run have in common."""
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
