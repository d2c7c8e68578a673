"""Folding a round: each reply is checked, averaged in and dropped, in assignment order."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from flwr.app import Message, Metadata

from superfednas.records.refusals import Refusal, Refused
from superfednas.records.rows import LateRow
from superfednas.server.average.choose import Averaging
from superfednas.server.average.overlap import Aggregation, Given
from superfednas.server.journal.progress import Note
from superfednas.server.round.bound import Bounds, norm_of
from superfednas.server.round.check import BadReply, Reply, check_reply, is_silence
from superfednas.server.round.decode import incoming
from superfednas.server.round.encode import gather
from superfednas.server.round.exchange import Late
from superfednas.server.round.hold import FoldQueue
from superfednas.server.round.late import Closing, LateTask, check_late
from superfednas.server.round.orders import SUPERNET, Order, RoundPlan
from superfednas.server.settings import Settings
from superfednas.supernet import State
from superfednas.wire.npy import flat_numbers
from superfednas.wire.order import ARRAYS, SUBNET


@dataclass(frozen=True)
class Folded:
    """The outcome of a round's replies.

    Parameters
    ----------
    states
        The targets after the round; a target without a usable reply is unchanged.
    found
        For every position of the plan, the reply without its weights, or why there is none.
    silent
        Positions at which nobody answered, as opposed to answering badly.
    verdicts
        Client to what the averaging did to its reply, if it was not used as it is.
    late
        One row per reply to an earlier round.
    left_out
        Share of the supernet that secure aggregation left as it was; None without it.
    """

    states: dict[str, State]
    found: dict[int, Reply | Refused]
    silent: set[int]
    verdicts: dict[str, str]
    late: list[LateRow]
    left_out: float | None = None

    @property
    def refusals(self) -> list[Refused]:
        """Why replies are missing."""
        return [entry for entry in self.found.values() if isinstance(entry, Refused)]


class Folding:
    """Folds replies into the states they were extracted from.

    Parameters
    ----------
    settings
        ``hold_back``, ``fold_order``, ``wire_dtype``, ``late_replies`` and ``staleness``.
    averaging
        What opens each round's average.
    bounds
        What each order allows.
    late
        Where the replies to earlier rounds arrive.
    note
        Called with a sentence for every reply that is refused or changed.
    folder
        Where replies ahead of their turn wait if they exceed the memory limit; None keeps all in
        memory.
    """

    def __init__(
        self,
        settings: Settings,
        averaging: Averaging,
        bounds: Bounds,
        late: Late[LateTask],
        *,
        note: Note,
        folder: Path | None,
    ) -> None:
        self._settings, self._averaging, self._bounds = settings, averaging, bounds
        self._late, self._note, self._folder = late, note, folder

    def fold(
        self,
        states: Mapping[str, State],
        plan: RoundPlan,
        sent: Sequence[Message],
        replies: Iterable[tuple[int, Message | None]],
        closing: Closing,
    ) -> Folded:
        """Fold a round's replies as they arrive, then those to earlier rounds.

        Parameters
        ----------
        states
            The supernet before the round, and the states beside it. A target that is not among them
            starts as the supernet.
        plan
            Who was asked what.
        sent
            The messages with the orders, in the order of the plan.
        replies
            (position in the plan, reply or None), each position once.
        closing
            Is told of every usable reply; says why one is missing.
        """
        s = self._settings
        before = dict.fromkeys(plan.targets, states[SUPERNET]) | dict(states)
        norms = {target: norm_of(state) for target, state in before.items()}
        averages = self._averaging.open(before)
        queue = FoldQueue(s.hold_back, self._folder, in_order=s.fold_order == "assignment")
        found: dict[int, Reply | Refused] = {}
        silent: set[int] = set()
        for index, message in replies:
            flat, order = None, plan.orders[index]
            if is_silence(message):
                silent.add(index)
            try:
                if message is None:
                    raise closing.missed()
                reply = check_reply(message, plan.expected(order, s.wire_dtype), weights_later=True)
                received = flat_numbers(sent[index].content[ARRAYS][SUBNET], reply.flat.dtype)
                weights = norms[order.target]
                self._bounds.check(plan, order, reply, weights=weights, received=received)
                flat = reply.flat
                found[index] = replace(reply, flat=np.empty(0))  # a slice would keep the whole
                closing.count(order.name)
            except BadReply as error:
                refused = found[index] = error.refused
                event = "missing" if index in silent else "refused"
                self._note(
                    f"round {plan.round}: client {order.name} {event}: {refused}",
                    event,
                    round=plan.round,
                    client=order.name,
                    refusal=refused.code,
                    reason=refused.reason,
                )
            ready = ((plan.orders[turn], one) for turn, one in queue.put(index, flat))
            for target, some in groupby(ready, lambda pair: pair[0].target):
                given = (self._given(before[target], order, one) for order, one in some)
                averages[target].add_all(given)
        changed = {plan.orders[index].target for index, r in found.items() if isinstance(r, Reply)}
        late = self._fold_late(plan.round, before, norms, averages)
        after = dict(before)
        for target in sorted(changed | {into for _, into in late if into}):
            merged = averages[target].result()
            if math.isfinite(norm_of(merged)):
                after[target] = merged
            else:
                late = self._give_up(plan, target, found, late)
        verdicts = {
            client: verdict
            for average in averages.values()
            for client, verdict in average.verdicts.items()
        }
        for client, verdict in verdicts.items():
            self._note(
                f"round {plan.round}: client {client}: {verdict}",
                "averaging",
                round=plan.round,
                client=client,
                reason=verdict,
            )
        return Folded(after, found, silent, verdicts, [row for row, _ in late])

    def _given(self, state: State, order: Order, flat: np.ndarray) -> Given:
        update = incoming(state, order.cut, flat, self._settings.wire_dtype)
        return Given(update, order.weight, order.cut, order.name)

    def _give_up(
        self,
        plan: RoundPlan,
        target: str,
        found: dict[int, Reply | Refused],
        late: list[tuple[LateRow, str]],
    ) -> list[tuple[LateRow, str]]:
        """Refuse all that went into a target whose average is not finite; the target stays.

        Returns the late replies, corrected like ``found``.
        """
        orders = plan.orders
        inside = [
            index
            for index, one in found.items()
            if isinstance(one, Reply) and orders[index].target == target
        ]
        names = [orders[index].name for index in inside]
        names += [row.client for row, into in late if into == target]
        refused = Refused(
            Refusal.MERGED,
            f"the average of {target!r} is not finite, so it stays as it was; replies came from "
            + ", ".join(names),
        )
        found.update(dict.fromkeys(inside, refused))
        self._note(
            f"round {plan.round}: {refused}",
            "refused",
            round=plan.round,
            refusal=refused.code,
            reason=refused.reason,
        )

        def corrected(row: LateRow) -> LateRow:
            code, reason = refused.code, refused.reason
            return replace(row, folded=False, weight=0.0, refusal=code, reason=reason)

        return [(corrected(r), "") if into == target else (r, into) for r, into in late]

    def _fold_late(
        self,
        number: int,
        states: Mapping[str, State],
        norms: Mapping[str, float],
        averages: Mapping[str, Aggregation],
    ) -> list[tuple[LateRow, str]]:
        """Fold, or only count, the replies to closed rounds.

        One of 16 bits changes the state as it is now; one of float32 brings the weights of its own.
        Each goes to the state that has its target's name now.

        Returns
        -------
        list
            A row each, and the target that it was folded into, or an empty text.
        """
        s = self._settings
        rows: list[tuple[LateRow, str]] = []
        arrived = sorted(self._late.take(), key=lambda entry: (entry[0].plan.round, entry[0].index))
        for task, message in arrived:
            plan, order, into = task.plan, task.order, ""
            reply = check_late(task, message, s.wire_dtype)
            row = LateRow(order.name, plan.round)
            if not isinstance(reply, Refused) and s.late_replies == "fold":
                reply = self._foldable(states, norms, task, reply)
                if not isinstance(reply, Refused):
                    weight, into = order.weight * s.staleness ** (number - plan.round), order.target
                    update = incoming(states[into], order.cut, reply.flat, s.wire_dtype)
                    who = f"{order.name}, late from round {plan.round}"
                    averages[into].add(update, weight, order.cut, who)
                    row = replace(row, folded=True, weight=weight)
            if isinstance(reply, Refused):
                row = replace(row, refusal=reply.code, reason=reply.reason)
            rows.append((row, into))
        return rows

    def _foldable(
        self,
        states: Mapping[str, State],
        norms: Mapping[str, float],
        task: LateTask,
        reply: Reply,
    ) -> Reply | Refused:
        """Return a late reply whose target is still trained, and which keeps to its order."""
        order = task.order
        if order.target not in states:
            gone = f"the state {order.target!r} is no longer trained"
            return Refused(Refusal.TARGET_GONE, gone)
        received = np.empty(reply.flat.size, np.float32)
        gather(states[order.target], order.cut, received)
        weights = norms[order.target]
        try:
            self._bounds.check(
                task.plan, order, reply, weights=weights, received=received, late=True
            )
        except BadReply as error:
            return error.refused
        return reply


def placed(
    plan: RoundPlan, sent: Sequence[Metadata], replies: Iterable[Message]
) -> Iterator[tuple[int, Message | None]]:
    """Match replies to the messages they answer; messages without one come last, with None.

    An error from the SuperLink names the SuperLink as its source, so the node is only a fallback
    for grids that leave no id in the messages they send.
    """
    by_node = {order.node: index for index, order in enumerate(plan.orders)}
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
