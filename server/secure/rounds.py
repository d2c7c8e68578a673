"""Rounds under secure aggregation: keys, shares, masked replies, unmasking.

Whoever does not answer one of these, or answers badly, is left out like a client without a usable
reply. The round goes on while enough clients are left, and is given up as a whole otherwise: the
state then stays as it is.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from superfednas.common.settings import Scalar
from superfednas.records.refusals import BLAMELESS, Refusal, Refused
from superfednas.server.journal.progress import Note
from superfednas.server.round.bound import Bounds
from superfednas.server.round.check import BadReply, Reply, check_reply, is_silence
from superfednas.server.round.exchange import Late, exchange
from superfednas.server.round.fold import Folded
from superfednas.server.round.late import Closing, LateTask, dropped
from superfednas.server.round.orders import SUPERNET, RoundPlan
from superfednas.server.secure.answers import Recovery, Shared, distrusted_in, keys_in, shares_in
from superfednas.server.secure.questions import questions
from superfednas.server.secure.suspects import Suspects
from superfednas.server.secure.total import MaskedSum
from superfednas.server.settings import Settings
from superfednas.supernet import SearchSpace, State
from superfednas.wire.flat import MASKED
from superfednas.wire.order import CONFIG
from superfednas.wire.secure.cells import FEW
from superfednas.wire.secure.parties import (
    KEYS,
    MEMBERS,
    PARTIES,
    SHARES,
    SURVIVORS,
    UNMASK,
    Parties,
    Party,
)

T = TypeVar("T")


@dataclass
class _Now:
    """The round that is going on.

    ``places`` has the position in the plan of every party by number; ``total`` is None if the round
    was given up before anybody trained.
    """

    grid: Grid
    plan: RoundPlan
    found: dict[int, Reply | Refused] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    places: list[int] = field(default_factory=list)
    parties: Parties | None = None
    members: dict[int, Shared] = field(default_factory=dict)
    total: MaskedSum | None = None


class SecureRounds:
    """Runs the exchanges around the training, and adds up masked replies.

    Parameters
    ----------
    settings
        ``secure_clip``, ``secure_few``, ``node_timeout``, ``rest_rounds``.
    space
        The run's.
    bounds
        What the numbers beside weights may be.
    late
        Where the replies to earlier rounds arrive.
    note
        Called with a sentence for every answer that is refused, and every round that is given up.

    Attributes
    ----------
    searching
        Whether the last round was spoilt by somebody whom the next ones can do without.
    """

    def __init__(
        self,
        settings: Settings,
        space: SearchSpace,
        bounds: Bounds,
        late: Late[LateTask],
        note: Note,
    ) -> None:
        self._settings, self._space, self._bounds = settings, space, bounds
        self._late, self._note = late, note
        self._session = 0
        self._left_out: dict[str, tuple[int, Refused]] = {}  # name to the last round without it
        self._suspects = Suspects()
        self.searching = False
        self._told = False

    def begin(self, grid: Grid, plan: RoundPlan, messages: Sequence[Message]) -> list[int]:
        """Exchange keys and shares; return the positions of those that are to train.

        Their messages say what they need to mask.

        Raises
        ------
        ValueError
            If the method trains states beside the supernet.
        """
        if set(plan.targets) - {SUPERNET}:
            raise ValueError(
                f"method = {self._settings.method!r}: it trains states beside the supernet, which "
                "secure-aggregation does not support"
            )
        self._now = now = _Now(grid, plan)
        # It rises over a resumed run's restarts, too: clients answer each session once.
        self._session = max(self._session + 1, time.time_ns() // 1_000_000)
        self.searching = False
        clean = self._in_turn([i for i in range(len(plan.orders)) if not self._left(i)])
        keys = dict(self._ask(clean, KEYS, lambda _: {}, lambda _, reply: keys_in(reply)))
        now.places = sorted(keys)
        if not self._enough(len(keys), FEW, now.places, "have told keys"):
            return []
        heaviest = max(plan.orders[index].weight for index in now.places) or 1.0
        secure = self._settings.secure
        now.parties = parties = Parties(
            self._session,
            secure.secure_clip,
            secure.secure_few,
            self._settings.space,
            tuple(
                Party(
                    (order := plan.orders[index]).name,
                    order.arch.to_json(),
                    order.shift,
                    order.weight / heaviest,
                    *keys[index],
                )
                for index in now.places
            ),
        )
        common: dict[str, Scalar] = {PARTIES: parties.text()}
        votes: Counter[int] = Counter()

        def read(index: int, reply: Message) -> Shared:
            distrusted = distrusted_in(reply, parties)
            votes.update(distrusted)
            if distrusted:
                names = ", ".join(parties.parties[number].name for number in sorted(distrusted))
                why = f"no key in its peer-keys has signed for {names}"
                raise BadReply(Refusal.NOT_UNMASKED, why)
            return shares_in(reply, parties)

        given = dict(self._ask(now.places, SHARES, lambda _: common, read))
        for number, count in votes.items():
            if 2 * count > len(parties.parties):
                self._leave_out(now.places[number], "most others do not believe its keys")
                given.pop(now.places[number], None)
        now.members = {n: given[i] for n, i in enumerate(now.places) if i in given}
        asked = [now.places[number] for number in now.members]
        if not self._enough(len(asked), parties.threshold, asked, "have given shares"):
            return []
        now.total = MaskedSum(self._space, parties, now.members)
        joined = {PARTIES: parties.text(), MEMBERS: json.dumps(list(now.members))}
        for index in asked:
            content = messages[index].content
            known = cast(ConfigRecord, content[CONFIG])
            content[CONFIG] = ConfigRecord({**known, **joined})
        return asked

    def enough(self, replies: int) -> int:
        """Return the number of replies after which the round may close early: its threshold too.

        0, which waits for all, stays so unless ``min-weight`` closes rounds.
        """
        parties = self._now.parties
        if parties is None or not (replies or self._settings.min_weight):
            return replies
        return max(replies, parties.threshold)

    def fold(
        self, state: State, replies: Iterable[tuple[int, Message | None]], closing: Closing
    ) -> Folded:
        """Add up the masked replies to what :meth:`begin` has prepared, unmask and merge the sum.

        Parameters
        ----------
        state
            The supernet before the round.
        replies
            (position in the plan, reply or None), each of those asked once.
        closing
            Is told of every usable reply; says why one is missing.
        """
        now = self._now
        numbers = {index: number for number, index in enumerate(now.places)}
        for index, message in replies:
            order = now.plan.orders[index]
            try:
                if is_silence(message):
                    now.silent.add(index)
                if message is None:
                    raise closing.missed()
                reply = check_reply(message, now.plan.expected(order, MASKED), weights_later=True)
                self._bounds.check_numbers(order, reply)
            except BadReply as error:
                self._refuse(index, error.refused)
                continue
            assert now.total is not None
            now.total.add(numbers[index], reply.flat, order.cut)
            now.found[index] = replace(reply, flat=np.empty(0))
            closing.count(order.name)
        there = [index for index, entry in now.found.items() if isinstance(entry, Reply)]
        after, left_out = state, None
        if now.total is not None and now.parties is not None and there:
            least = now.parties.threshold
            if self._enough(len(there), least, there, "have sent what they trained"):
                merged = self._unmasked(now.total, state, sorted(numbers[i] for i in there))
                if merged is not None:
                    after, left_out = merged
        blameless = sum(isinstance(e, Reply) or e.code in BLAMELESS for e in now.found.values())
        left = blameless - (blameless == len(now.found))
        self.searching = after is state and left >= FEW
        late = dropped(self._late, MASKED)
        return Folded({SUPERNET: after}, now.found, now.silent, {}, late, left_out)

    def _unmasked(
        self, total: MaskedSum, state: State, survivors: list[int]
    ) -> tuple[State, float] | None:
        """Return the next state, and the share of the supernet left out; None if given up."""
        now = self._now
        parties = now.parties
        assert parties is not None
        tiers = total.rule.released(total.cells, survivors)
        places = [now.places[number] for number in survivors]
        recovery = Recovery(parties, now.members, survivors, tiers)

        def question(index: int) -> dict[str, Scalar]:
            number = now.places.index(index)
            sealed = {sender: shared.sealed[number] for sender, shared in now.members.items()}
            return {
                PARTIES: parties.text(),
                SURVIVORS: json.dumps(survivors),
                SHARES: json.dumps(sealed),
            }

        def take(index: int, reply: Message) -> None:
            recovery.take(reply, now.places.index(index))

        answers = self._ask(places, UNMASK, question, take, recovery.complete, keep=True)
        answered = sum(1 for _ in answers)
        names = ", ".join(self._names(places))
        if not recovery.complete():
            spoilers = [now.places[number] for number in sorted(recovery.spoilt)]
            for index in spoilers:
                self._leave_out(index, "its shares did not give its secret")
            self._give_up(
                [index for index in places if index not in spoilers],
                Refusal.NOT_UNMASKED,
                f"the sum of {names} could not be unmasked, with answers of {answered} clients",
            )
            if not spoilers:
                self._suspect(places)
            return None
        total.unmask(survivors, tiers, recovery.secrets)
        merged = total.merged(state, survivors, tiers)
        if merged is None:
            self._give_up(
                places,
                Refusal.MERGED,
                f"the sum of the changes of {names} is longer than secure-clip allows: one of them "
                "has not clipped its change, or has masked it wrongly",
            )
            self._suspect(places)
            return None
        self._suspects.clear(self._names(places))
        left_out = total.left_out(tiers)
        if left_out and not self._told:
            self._told = True
            self._note(
                f"round {now.plan.round}: {left_out:.1%} of the supernet stays as it was, since "
                f"fewer than {FEW} clients hold it; secure-few = true would send it "
                "(metrics.jsonl: left_out)",
                "few-holders",
                round=now.plan.round,
                left_out=left_out,
            )
        return merged, left_out

    def _names(self, places: Iterable[int]) -> list[str]:
        return [self._now.plan.orders[index].name for index in places]

    def _in_turn(self, places: Sequence[int]) -> list[int]:
        """Return those that a round takes while it is not known who has spoilt the last ones."""
        names = self._suspects.without(self._names(places), self._now.plan.round)
        left = [i for i in places if self._now.plan.orders[i].name in names]
        if left:
            why = f"{', '.join(sorted(names))}: left out until it is known who spoils the sums"
            self._give_up(left, Refusal.NOT_UNMASKED, why, "goes on")
        return [index for index in places if index not in left]

    def _suspect(self, places: Sequence[int]) -> None:
        """Suspect those whose sum is spoilt; leave out who alone can have spoilt it."""
        alone = self._suspects.spoil(self._names(places))
        for index in places:
            if self._now.plan.orders[index].name == alone:
                self._leave_out(index, "it has spoilt the sum of clients that had spoilt none")

    def _leave_out(self, index: int, why: str) -> None:
        """Refuse a client that has spoilt a round, in the rounds to come, too."""
        until = self._now.plan.round + self._settings.rest_rounds
        reason = f"secure aggregation: {why}; left out until round {until}"
        spoilt = Refused(Refusal.PROTOCOL, reason)
        self._left_out[self._now.plan.orders[index].name] = until, spoilt
        self._refuse(index, spoilt)

    def _left(self, index: int) -> bool:
        """Refuse a client that is left out; return whether it is."""
        until, spoilt = self._left_out.get(self._now.plan.orders[index].name, (0, None))
        if spoilt is None or until < self._now.plan.round:
            return False
        self._refuse(index, spoilt)
        return True

    def _ask(
        self,
        places: Sequence[int],
        stage: str,
        question: Callable[[int], Mapping[str, Scalar]],
        read: Callable[[int, Message], T],
        enough: Callable[[], bool] = lambda: False,
        *,
        keep: bool = False,
    ) -> Iterator[tuple[int, T]]:
        """Ask clients by their positions, and yield what is read of each answer.

        Who does not answer, or badly, is refused; with ``keep``, its masked change still counts.
        """
        now, s = self._now, self._settings
        messages = questions(now.plan, places, self._session, stage, question)
        timeout = min(s.node_timeout, s.round_timeout)
        for position, reply in exchange(now.grid, messages, timeout, enough=enough):
            index = places[position]
            try:
                if reply is None:
                    raise BadReply(
                        Refusal.NO_REPLY,
                        f"no answer within {timeout:g} s in the exchange {stage!r} of secure "
                        "aggregation",
                    )
                found = read(index, reply)
            except BadReply as error:
                if keep and enough():
                    continue
                if is_silence(reply):
                    now.silent.add(index)
                self._refuse(index, error.refused, keep=keep)
            else:
                yield index, found

    def _refuse(self, index: int, refused: Refused, *, keep: bool = False) -> None:
        now, event = self._now, "missing" if index in self._now.silent else "refused"
        if not keep:
            now.found[index] = refused
        self._note(
            f"round {now.plan.round}: client {now.plan.orders[index].name} {event}: {refused}",
            event,
            round=now.plan.round,
            client=now.plan.orders[index].name,
            refusal=refused.code,
            reason=refused.reason,
        )

    def _enough(self, there: int, least: int, places: Sequence[int], what: str) -> bool:
        """Return whether enough clients are left; else give up the round."""
        if there < least:
            why = f"{there} clients {what}: secure aggregation needs {least}"
            self._give_up(places, Refusal.NOT_UNMASKED, why)
        return there >= least

    def _give_up(
        self, places: Sequence[int], code: Refusal, reason: str, what: str = "given up"
    ) -> None:
        """Refuse clients that have done nothing wrong, all that are left if the round is over."""
        now, refused = self._now, Refused(code, reason)
        now.found.update(dict.fromkeys(places, refused))
        self._note(
            f"round {now.plan.round}: {what}: {refused}",
            what.replace(" ", "-"),
            round=now.plan.round,
            refusal=code,
            reason=refused.reason,
        )
