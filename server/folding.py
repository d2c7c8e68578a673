"""Folding a round: each reply is checked, averaged in and dropped, in assignment order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, Metadata

from server.aggregation import Aggregation, Given
from server.averaging import Averaging
from server.closing import Closing, LateTask, check_late
from server.exchange import Late
from server.incoming import incoming
from server.plan import RoundPlan
from server.progress import Note
from server.replies import BadReply, FoldQueue, Reply, check_reply, is_silence
from server.settings import Settings
from supernet import State

Row = dict[str, Any]


@dataclass(frozen=True)
class Folded:
    """What became of a round's replies.

    Parameters
    ----------
    state
        The supernet after the round; the one before it where no reply could be folded.
    found
        For every position of the assignment the reply, without its weights, or why there is none.
    silent
        Positions at which nobody answered, which is not the same as answering badly.
    verdicts
        Client to what the averaging did to its reply, where it was not taken as it is.
    late
        One row a reply to an earlier round.
    """

    state: State
    found: dict[int, Reply | str]
    silent: set[int]
    verdicts: dict[str, str]
    late: list[Row]

    @property
    def refusals(self) -> list[str]:
        """Why replies are missing."""
        return [entry for entry in self.found.values() if isinstance(entry, str)]


class Folding:
    """Folds replies into the supernet.

    Parameters
    ----------
    settings
        ``hold_back``, ``fold_order``, ``wire_dtype``, ``late_replies`` and ``staleness``.
    averaging
        What opens each round's average.
    late
        Where the replies to earlier rounds arrive.
    note
        Called with a sentence for every reply that is refused or changed.
    folder
        Where replies ahead of their turn wait when they are too many for memory; None keeps all
        in memory.
    """

    def __init__(
        self,
        settings: Settings,
        averaging: Averaging,
        late: Late[LateTask],
        *,
        note: Note,
        folder: Path | None,
    ) -> None:
        self._settings, self._averaging = settings, averaging
        self._late, self._note, self._folder = late, note, folder

    def fold(
        self,
        state: State,
        plan: RoundPlan,
        replies: Iterable[tuple[int, Message | None]],
        closing: Closing,
    ) -> Folded:
        """Fold a round's replies as they arrive, then those to earlier rounds.

        Parameters
        ----------
        state
            The supernet before the round.
        plan
            Who was asked what.
        replies
            (position in the assignment, reply or None), each position once.
        closing
            Told of every usable reply; says why one is missing.
        """
        s, average = self._settings, self._averaging.open(state)
        queue = FoldQueue(s.hold_back, self._folder, in_order=s.fold_order == "assignment")
        names = list(plan.assignment)
        found: dict[int, Reply | str] = {}
        silent: set[int] = set()
        for index, message in replies:
            flat = None
            if is_silence(message):
                silent.add(index)
            try:
                if message is None:
                    raise BadReply(closing.missed())
                reply = check_reply(message, plan.expected(index, s.wire_dtype))
                flat = reply.flat
                found[index] = replace(reply, flat=np.empty(0))  # a slice would keep the whole
                closing.count(names[index])
            except BadReply as reason:
                found[index] = str(reason)
                event = "missing" if index in silent else "refused"
                self._note(
                    f"round {plan.round}: client {names[index]} {event}: {reason}",
                    event,
                    round=plan.round,
                    client=names[index],
                    reason=str(reason),
                )
            ready = queue.put(index, flat)
            average.add_all(self._given(state, plan, names[turn], one) for turn, one in ready)
        late = self._fold_late(plan.round, state, average)
        usable = any(isinstance(entry, Reply) for entry in found.values())
        if usable or any(row["folded"] for row in late):
            state = average.result()
        for client, verdict in average.verdicts.items():
            self._note(
                f"round {plan.round}: client {client}: {verdict}",
                "averaging",
                round=plan.round,
                client=client,
                reason=verdict,
            )
        return Folded(state, found, silent, average.verdicts, late)

    def _given(self, state: State, plan: RoundPlan, client: str, flat: np.ndarray) -> Given:
        cut = plan.cuts[plan.assignment[client]]
        update = incoming(state, cut, flat, self._settings.wire_dtype)
        return Given(update, plan.weights[client], cut, client)

    def _fold_late(self, number: int, state: State, average: Aggregation) -> list[Row]:
        """Fold, or only count, the replies to rounds that have closed; one row each.

        One of 16 bits changes the state as it is now; one of float32 brings the weights of its own.
        """
        s, rows = self._settings, []
        arrived = sorted(self._late.take(), key=lambda entry: (entry[0].plan.round, entry[0].index))
        for task, message in arrived:
            plan, reply = task.plan, check_late(task, message, s.wire_dtype)
            row = {"client": task.client, "round": plan.round, "folded": False, "reason": None}
            if isinstance(reply, str):
                row["reason"] = reply
            elif s.late_replies == "fold":
                cut = plan.cuts[plan.assignment[task.client]]
                weight = plan.weights[task.client] * s.staleness ** (number - plan.round)
                update = incoming(state, cut, reply.flat, s.wire_dtype)
                who = f"{task.client}, late from round {plan.round}"
                average.add(update, weight, cut, who)
                row |= {"folded": True, "weight": weight}
            rows.append(row)
        return rows


def placed(
    plan: RoundPlan, sent: Sequence[Metadata], replies: Iterable[Message]
) -> Iterator[tuple[int, Message | None]]:
    """Match replies to the messages they answer; what has no reply comes last, with None.

    An error made by the SuperLink names itself as its source, so the node is only a fallback for
    grids that leave no id in the messages sent.
    """
    by_node = {node: index for index, node in enumerate(plan.nodes.values())}
    by_message = {m.message_id: index for index, m in enumerate(sent) if m.message_id}
    missing = set(by_node.values())
    for reply in replies:
        fallback = by_node.get(reply.metadata.src_node_id)
        index = by_message.get(reply.metadata.reply_to_message_id, fallback)
        if index is not None and index in missing:
            missing.discard(index)
            yield index, reply
    for index in sorted(missing):
        yield index, None
