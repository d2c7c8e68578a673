"""Which nodes are there, what they are called and what they can hold.

Node ids are random, so a node is asked once who it is (its stable name, budget and numbers of
images) by a ``query`` message; only nodes not seen before are asked, and from time to time those
that did not answer. A node that is started again has another id and the same name: it takes its
name over once messages to the old id fail.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.assignment import Client, Policy, client_order
from server.exchange import exchange
from server.progress import Note
from supernet import SearchSpace
from supernet.config import Scalar
from supernet.wire import CONFIG, PROTOCOL

_SAID = 3
_ASK_AGAIN = 60.0  # seconds: as long as Flower calls a node online that has gone
_OPTIONAL = ("max-macs", "max-params", "num-partitions", "validation-examples")


class RosterError(RuntimeError):
    """There are not enough usable nodes; the message says how many there are and why."""


class Roster:
    """The nodes of a run by stable name.

    Parameters
    ----------
    space, policy
        To leave out nodes that cannot hold what the policy would give them.
    device_shares
        Device class to share of the largest's MACs, for nodes that only name a class.
    question
        What a query tells: the run's seed and data settings (a simulated node's data depend on
        them).
    note
        Called with a sentence when a node is left out.
    timeout
        Seconds for the answers to a query.
    max_failures, rest_rounds
        A node that has failed so many rounds in a row is left out of so many; 0 failures is never.

    Attributes
    ----------
    parts
        Nodes that there are in all, as far as those that hold parts of one data set have said.
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
    ) -> None:
        self.space = space
        self.policy = policy
        self.device_shares = device_shares
        self.question = question
        self.note = note
        self.timeout = timeout
        self.max_failures, self.rest_rounds = max_failures, rest_rounds
        self._known: dict[int, Client | None] = {}
        self._silent: dict[int, float] = {}  # node to when it is asked again
        self._holders: dict[str, int] = {}
        self._gone: set[int] = set()
        self._usable: dict[str, tuple[int, Client]] = {}
        self._seen: tuple[list[int], set[int]] = ([], set())  # who was there and gone for that
        self._failures: Counter[str] = Counter()
        self._resting: dict[str, int] = {}  # name to the last round that it is left out of
        self._refused: dict[str, list[str]] = {}
        self.parts = 0
        self.in_turn: set[int] = set()

    def refresh(self, grid: Grid) -> dict[str, tuple[int, Client]]:
        """Ask new nodes who they are and return the usable ones by name, in the names' order.

        Where nobody has come, gone or failed since, that is what it was: a round with ten thousand
        nodes known does not look at each of them.
        """
        online = sorted(grid.get_node_ids())
        now = time.monotonic()
        again = (
            [node for node in online if self._silent.get(node, now) < now] if self._silent else []
        )
        if not again and (online, self._gone) == self._seen:
            return self._usable
        self._ask(grid, [*(node for node in online if node not in self._known), *again])
        usable: dict[str, tuple[int, Client]] = {}
        for node in self._by_claim(online):
            client = self._known[node]
            if client is None:
                continue
            if client.name in usable:
                self._refuse(repr(client.name), "the name is claimed twice")
            elif not self.policy.eligible(client):
                self._refuse(
                    repr(client.name),
                    "it cannot hold the smallest architecture that it could be given "
                    f"({_budget(client)})",
                )
            else:
                usable[client.name] = (node, client)
                self._hold(client, node)
        self._usable = dict(sorted(usable.items(), key=lambda item: client_order(item[0])))
        self._seen = online, set(self._gone)
        return self._usable

    def _by_claim(self, online: Sequence[int]) -> list[int]:
        """Order nodes by their right to a name: who answers, then who held it before."""

        def right(node: int) -> tuple[bool, bool]:
            client = self._known[node]
            holds = client is not None and self._holders.get(client.name) == node
            return node in self._gone, not holds

        return sorted(online, key=right)

    def _hold(self, client: Client, node: int) -> None:
        before = self._holders.get(client.name)
        if before is None:
            # Only in the log: hundreds of nodes are no news on a terminal.
            about = {key: value for key, value in asdict(client).items() if value is not None}
            self.note("", "joined", node=str(node), client=about.pop("name"), **about)
        elif before != node:
            self.note(
                f"client {client.name} has come back as node {node}; node {before} does not answer",
                "back",
                client=client.name,
                node=str(node),
            )
        self._holders[client.name] = node

    # Who answers

    def answered(self, name: str, node: int) -> None:
        """Note a usable reply."""
        self._gone.discard(node)
        del self._failures[name]

    def failed(
        self,
        name: str,
        node: int,
        round: int,  # noqa: A002
        reason: str,
        *,
        silent: bool,
    ) -> None:
        """Note a round without a usable reply; a node that fails too often rests, and is named.

        Only a node that was ``silent`` may lose its name to another: one that answers badly is
        there.
        """
        (self._gone.add if silent else self._gone.discard)(node)
        self._failures[name] += 1
        if self.max_failures and self._failures[name] >= self.max_failures:
            self._resting[name] = round + self.rest_rounds
            self.note(
                f"client {name} rests until round {self._resting[name]}: no usable reply in "
                f"{self._failures.pop(name)} rounds ({reason})",
                "rests",
                round=round,
                client=name,
                reason=reason,
            )

    def rested(self, names: Iterable[str], round: int) -> list[str]:  # noqa: A002
        """Return those of the clients that do not rest in a round; all where all of them do."""
        every = list(names)
        if not self._resting:
            return every
        awake = [name for name in every if self._resting.get(name, 0) < round]
        return awake or every

    def state(self) -> dict[str, Any]:
        """Return who has failed and who rests, for a checkpoint."""
        return {"failures": dict(self._failures), "resting": dict(self._resting)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says."""
        self._failures, self._resting = Counter(state["failures"]), dict(state["resting"])

    def wait_for(
        self, grid: Grid, least: int, seconds: float, *, wanted: str
    ) -> dict[str, tuple[int, Client]]:
        """Return the usable nodes once there are ``least``.

        Raises
        ------
        RosterError
            After ``seconds`` with fewer.
        """
        deadline = time.monotonic() + seconds
        while len(usable := self.refresh(grid)) < least:
            if time.monotonic() > deadline or self.complete:
                reasons = "; ".join(
                    f"{f'node {who[0]}' if len(who) == 1 else f'{len(who)} nodes'}: {reason}"
                    for reason, who in sorted(self._refused.items())
                )
                reasons = reasons or "no further node has come"
                raise RosterError(
                    f"{wanted}: {least} nodes are needed and {len(usable)} usable "
                    f"{'is' if len(usable) == 1 else 'are'} there ({reasons})"
                )
            time.sleep(0.5)
        return usable

    @property
    def complete(self) -> bool:
        """Whether waiting is pointless: nodes that hold parts of one data set know how many."""
        return 0 < self.parts <= len(self._known)

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
                self._silent[node] = time.monotonic() + _ASK_AGAIN

    def _read(self, node: int, reply: Message | None) -> Client | None:
        if reply is None or reply.has_error():
            why = "no answer in time" if reply is None else reply.error.reason
            self._refuse(str(node), f"it did not say who it is ({why})")
            return None
        record = reply.content.get(CONFIG)
        answer: dict[str, Any] = dict(record) if isinstance(record, ConfigRecord) else {}
        wrong = [
            key
            for key, kind in (("name", str), ("examples", int), *((k, int) for k in _OPTIONAL))
            if not isinstance(answer.get(key), kind) and (key in answer or key not in _OPTIONAL)
        ]
        if wrong:
            self._refuse(str(node), f"it did not say who it is (no {wrong[0]})")
            return None
        self.parts = max(self.parts, answer.get("num-partitions", 0))
        if answer.get("in-turn") is True:
            self.in_turn.add(node)
        if answer.get("problem"):
            self._refuse(repr(answer["name"]), str(answer["problem"]))
            return None
        limits = {key: answer.get(key) for key in ("max-macs", "max-params")}
        kind = str(answer.get("device-class", ""))
        if kind and kind in self.device_shares and limits["max-macs"] is None:
            most = self.space.macs(self.space.largest)
            limits["max-macs"] = int(self.device_shares[kind] * most)
        elif kind and kind not in self.device_shares:
            self._refuse(
                repr(answer["name"]),
                f"its device-class {kind!r} is not one of {sorted(self.device_shares)}",
            )
            return None
        classes = answer.get("class-counts")
        if classes is not None and not _counts(classes, answer["examples"]):
            self._refuse(repr(answer["name"]), "its class-counts do not add up to its examples")
            return None
        return Client(
            answer["name"],
            limits["max-macs"],
            limits["max-params"],
            answer["examples"],
            answer.get("validation-examples", 0),
            None if classes is None else tuple(classes),
        )

    def _refuse(self, who: str, reason: str) -> None:
        """Say once why a node is left out; of many with one reason only the first few are said."""
        named = self._refused.setdefault(reason, [])
        if who in named:
            return
        named.append(who)
        about = {"node": who, "reason": reason}
        if len(named) < _SAID:
            self.note(f"node {who} is left out: {reason}", "left-out", **about)
        elif len(named) == _SAID:
            self.note(f"node {who} and perhaps more are left out: {reason}", "left-out", **about)


def _counts(found: object, total: int) -> bool:
    return (
        isinstance(found, list)
        and all(isinstance(count, int) and count >= 0 for count in found)
        and sum(found) == total
    )


def _budget(client: Client) -> str:
    return f"max-macs {client.max_macs}, max-params {client.max_params}"
