"""The nodes: which are online, their names and what they can hold.

Node ids are random, so a ``query`` message asks a node once for its stable name, budget and numbers
of images. Only new nodes are asked and, from time to time, those that did not answer.

A name belongs to the node that said it first, for the run and its resumptions. While that node is
not online, another may use it (a node without a key has a new id after a restart); it goes back
when the first returns. Flower tells nothing of a node but its id: that of a registered key stays.
An operator can release a name: it then belongs to the next other node that says it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from superfednas.common.settings import Scalar, flatten
from superfednas.common.words import one_line
from superfednas.flower.prompt_grid import has_all_nodes
from superfednas.records.refusals import Refusal
from superfednas.server.assign.answer import LIMIT, BadAnswer, answer_of, client_of, parts_of
from superfednas.server.assign.client import Client, client_order
from superfednas.server.assign.meanings import RunMeaning
from superfednas.server.assign.policies import Policy
from superfednas.server.journal.progress import Note
from superfednas.server.round.exchange import exchange
from superfednas.server.settings import Settings
from superfednas.supernet import SearchSpace
from superfednas.wire.errands import ERRAND
from superfednas.wire.order import CONFIG, PROTOCOL

_SAID = 3
_ASK_AGAIN = 60.0  # seconds: as long as Flower considers a node online that has gone
_HOPE = 10  # failed rounds in a row
_SELDOM = 3600.0  # seconds between two questions to a node that never answers
_REASONS = 10  # that an error repeats


def question_of(settings: Settings, errand: str) -> dict[str, Scalar]:
    """Return a query's content: what a node needs to say who it is, and whether it may take part.

    ``errand`` is what it will be asked, one of :data:`superfednas.wire.errands.ERRANDS`.
    """
    parts = (settings.data, settings.local, settings.tuning, settings.privacy, settings.secure)
    asked = {key: value for part in parts for key, value in flatten(part).items()}
    return {**asked, "seed": settings.seed, ERRAND: errand}


class RosterError(RuntimeError):
    """Too few usable nodes; the message says how many there are and why."""

    refusal = Refusal.TOO_FEW_NODES


class Roster:
    """The nodes of a run by stable name.

    Parameters
    ----------
    space, policy
        To leave out nodes that cannot hold what the policy would assign to them.
    device_shares
        Device class to share of the largest's MACs, for nodes that name only a class.
    question
        Content of a query: the run's seed and data settings (a simulated node's data depend on
        them).
    note
        Called with a sentence when a node is left out.
    timeout
        Seconds to wait for the answers to a query.
    max_failures, rest_rounds
        A node that fails ``max_failures`` rounds in a row is left out for ``rest_rounds``; 0:
        never.
    released
        Returns the names that an operator has released since the run began, in order.
    meaning
        What numbers stand for in the server's own data; None if it has none.

    Attributes
    ----------
    in_turn
        Nodes that answer their messages in the order in which they were sent.
    """

    def __init__(
        self,
        space: SearchSpace,
        policy: Policy,
        *,
        device_shares: dict[str, float],
        question: Mapping[str, Scalar],
        note: Note,
        timeout: float,
        max_failures: int = 0,
        rest_rounds: int = 1,
        released: Callable[[], Sequence[str]] = tuple,
        meaning: Mapping[str, str] | None = None,
    ) -> None:
        self.space, self.policy = space, policy
        self.device_shares, self.question = device_shares, question
        self.note, self.timeout = note, timeout
        self.max_failures, self.rest_rounds = max_failures, rest_rounds
        self._released, self._meaning = released, RunMeaning(meaning)
        self._obeyed = 0  # how many of the released names
        self._former: dict[str, int] = {}  # released name without an owner to whose it was
        self._known: dict[int, Client | None] = {}
        self._silent: dict[int, float] = {}  # node to the time when it is asked again
        self._pauses: dict[int, float] = {}  # node to the seconds before that
        self._owners: dict[str, int] = {}  # name to the node that said it first
        self._holders: dict[str, int] = {}  # name to the node that has it now, or had it last
        self._met: set[str] = set()
        self._parts: dict[int, int] = {}  # node to the number of parts that it claims there are
        self._usable: dict[str, tuple[int, Client]] = {}
        self._seen: list[int] = []
        self._failures: Counter[str] = Counter()
        self._last: dict[str, bool] = {}  # name to whether the reply to its last order was usable
        self._resting: dict[str, int] = {}  # name to the last round that it is left out of
        self._refused: dict[str, list[str]] = {}
        self.in_turn: set[int] = set()

    def refresh(self, grid: Grid) -> dict[str, tuple[int, Client]]:
        """Query new nodes and return the usable ones by name, in the order of names.

        If no node has come or gone since, and no name was released, the last result is returned: a
        round with ten thousand known nodes does not look at each of them.
        """
        changed = self._release()
        online = sorted(grid.get_node_ids())
        now = time.monotonic()
        silent = self._silent
        again = [node for node in online if silent.get(node, now) < now] if silent else []
        if not again and not changed and online == self._seen:
            return self._usable
        self._ask(grid, [*(node for node in online if node not in self._known), *again])
        usable: dict[str, tuple[int, Client]] = {}
        self._meaning.ask(filter(None, map(self._known.get, online)))
        for node in self._by_claim(online):
            client = self._known[node]
            if client is None:
                continue
            if client.name in usable:
                who = f"{node} ({client.name!r})"  # its id: the name is another's
                self._refuse(who, Refusal.NAME_TAKEN, "the name is claimed twice")
            elif problem := self._meaning.problem(client):
                self._refuse(repr(client.name), Refusal.MEANING, problem)
            elif not self.policy.eligible(client):
                self._refuse(
                    repr(client.name),
                    Refusal.TOO_SMALL,
                    "it cannot hold the smallest architecture that it could be assigned "
                    f"({_budget(client)})",
                )
            else:
                usable[client.name] = (node, client)
                self._hold(client, node)
        self._usable = dict(sorted(usable.items(), key=lambda item: client_order(item[0])))
        self._seen = online
        return self._usable

    def _release(self) -> bool:
        """Take released names from their nodes; return whether there were any."""
        names = self._released()
        new, self._obeyed = names[self._obeyed :], len(names)
        for name in new:
            holder = self._holders.pop(name, None)
            former = self._owners.pop(name, holder)
            if former is None:  # it was nobody's
                continue
            self._former.setdefault(name, former)
            self._failures.pop(name, None)
            self._resting.pop(name, None)
            self.note(
                f"client {name}: the name is released, node {former} has it no longer",
                "released",
                client=name,
                node=str(former),
            )
        return bool(new)

    def _by_claim(self, online: Sequence[int]) -> list[int]:
        """Order nodes by their claim to a name.

        First who owns it, last from whom it was released; between them who has it, and then who
        else says it.
        """

        def right(node: int) -> tuple[bool, bool, bool]:
            client = self._known[node]
            name = "" if client is None else client.name
            former = self._former.get(name) == node
            return self._owners.get(name) != node, former, self._holders.get(name) != node

        return sorted(online, key=right)

    def _hold(self, client: Client, node: int) -> None:
        before = self._holders.get(client.name)
        if client.name not in self._met:
            # Only in the log: hundreds of nodes would flood a terminal.
            said = asdict(replace(client, meaning={}))
            about = {key: value for key, value in said.items() if value not in (None, {})}
            self.note("", "joined", node=str(node), client=about.pop("name"), **about)
        elif before != node:
            gone = "" if before is None else f"; node {before} is not online"
            self.note(
                f"client {client.name} has come back as node {node}{gone}",
                "back",
                client=client.name,
                node=str(node),
            )
        self._met.add(client.name)
        self._holders[client.name] = node
        if self._former.get(client.name) != node:  # who lost it may use it until another comes
            self._owners.setdefault(client.name, node)
            self._former.pop(client.name, None)

    # Who answers

    def answered(self, name: str, node: int, *, used: bool = True) -> None:
        """Record a reply of the node that has the name: usable by itself, and perhaps used."""
        if self._holders.get(name) == node:
            del self._failures[name]
            self._last[name] = used

    def answered_late(self, name: str) -> None:
        """Record a reply to an earlier round that was used: the client is at work."""
        del self._failures[name]
        self._last[name] = True

    def failed(
        self,
        name: str,
        node: int,
        round: int,  # noqa: A002
        reason: str,
        *,
        silent: bool,
    ) -> None:
        """Record a round without a usable reply; a node that fails too often is rested and named.

        ``silent`` says whether it did not answer at all. It keeps its name while it is online.
        """
        self._failures[name] += 1
        self._last[name] = False
        if self.max_failures and self._failures[name] >= self.max_failures:
            self._resting[name] = round + self.rest_rounds
            self.note(
                f"client {name} rests until round {self._resting[name]}: no usable reply in "
                f"{self._failures.pop(name)} rounds ({reason})",
                "rests",
                round=round,
                client=name,
                node=str(node),
                silent=silent,
                reason=reason,
            )

    def rested(self, names: Iterable[str], round: int) -> list[str]:  # noqa: A002
        """Return the clients that do not rest in a round, or all of them if all do."""
        every = list(names)
        if not self._resting:
            return every
        awake = [name for name in every if self._resting.get(name, 0) < round]
        return awake or every

    def hope(self, failed: int) -> bool:
        """Return whether some node may still serve a run after rounds without a usable reply.

        One whose last reply was usable may: those that fail have only been drawn before it. One
        that was never asked may, too, for ten rounds: where all fail, that is soon enough.
        """
        last = [self._last.get(name) for name in self._usable]
        return True in last or (failed < _HOPE and None in last)

    def state(self) -> dict[str, Any]:
        """Return which nodes have failed, which rest, and whose names are, for a checkpoint."""
        return {
            "failures": dict(self._failures),
            "resting": dict(self._resting),
            "owners": dict(self._owners),
            "holders": dict(self._holders),
            "former": dict(self._former),
            "obeyed": self._obeyed,
            "meaning": self._meaning.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state` from a checkpoint; one of an earlier version knows no names."""
        self._failures, self._resting = Counter(state["failures"]), dict(state["resting"])
        self._owners = dict(state.get("owners", {}))
        self._holders = dict(state.get("holders", {}))
        self._former = dict(state.get("former", {}))
        self._obeyed = int(state.get("obeyed", 0))
        self._meaning.restore(state.get("meaning"))

    def wait_for(
        self, grid: Grid, least: int, seconds: float, *, wanted: str
    ) -> dict[str, tuple[int, Client]]:
        """Return the usable nodes once there are at least ``least``.

        Raises
        ------
        RosterError
            After ``seconds`` with fewer, or at once where all nodes are there from the start.
        """
        deadline = time.monotonic() + seconds
        while len(usable := self.refresh(grid)) < least:
            if time.monotonic() > deadline or has_all_nodes(grid):
                reasons = [
                    f"{f'node {who[0]}' if len(who) == 1 else f'{len(who)} nodes'}: {reason}"
                    for reason, who in sorted(self._refused.items())
                ]
                more = ["…"] if len(reasons) > _REASONS else []
                said = "; ".join(reasons[:_REASONS] + more) or "no further node has come"
                raise RosterError(
                    f"{wanted}: {least} nodes are needed and {len(usable)} usable "
                    f"{'is' if len(usable) == 1 else 'are'} there ({said})"
                )
            time.sleep(0.5)
        self._meaning.settled = True
        return usable

    @property
    def parts(self) -> int:
        """The number of nodes that hold parts of one data set, as most of those online say; or 0.

        So one node that says something else can only delay, and only while few are there.
        """
        said = Counter(filter(None, map(self._parts.get, self._seen)))
        return max(said, key=lambda parts: (said[parts], parts), default=0)

    @property
    def missing(self) -> int:
        """How many of these nodes have not come."""
        there = sum(self._parts.get(node) == self.parts for node in self._seen)
        return max(0, self.parts - there)

    def _ask(self, grid: Grid, nodes: Sequence[int]) -> None:
        if not nodes:
            return
        question = {
            **self.question,
            "protocol": PROTOCOL,
            "device-classes": ",".join(self.device_shares),
        }
        messages = [
            Message(
                RecordDict({CONFIG: ConfigRecord(dict(question))}),
                dst_node_id=node,
                message_type=MessageType.QUERY,
                group_id="roster",
            )
            for node in nodes
        ]
        for index, reply in exchange(grid, messages, self.timeout):
            node = nodes[index]
            self._silent.pop(node, None)
            self._known[node] = self._read(node, reply)
            if reply is None or reply.has_error():
                # Ever less often: all others wait meanwhile.
                pause = self._pauses.get(node, _ASK_AGAIN)
                self._silent[node] = time.monotonic() + pause
                self._pauses[node] = min(2 * pause, _SELDOM)

    def _read(self, node: int, reply: Message | None) -> Client | None:
        self._parts.pop(node, None)
        self.in_turn.discard(node)
        try:
            answer = answer_of(reply)
            self._parts[node] = parts_of(answer)
            client = client_of(answer, self.space, self.device_shares)
        except BadAnswer as error:
            refused = error.refused
            self._refuse(
                repr(error.name) if error.name else str(node), refused.code, refused.reason
            )
            return None
        if answer.get("in-turn") is True:
            self.in_turn.add(node)
        return client

    def _refuse(self, who: str, code: Refusal, reason: str) -> None:
        """Report once why a node is left out; of many with the same reason, only the first few."""
        who, reason = one_line(who), one_line(reason)
        named = self._refused.setdefault(reason, [])
        if who in named:
            return
        named.append(who)
        about = {"node": who, "refusal": code, "reason": reason}
        if len(named) < _SAID:
            self.note(f"node {who} is left out: {reason}", "left-out", **about)
        elif len(named) == _SAID:
            self.note(f"node {who} and perhaps more are left out: {reason}", "left-out", **about)


def _budget(client: Client) -> str:
    return ", ".join(f"{LIMIT}{n} {most}" for n, most in client.limits.items()) or "no limits"
