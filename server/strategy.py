"""The strategy: MaxNet by default (SuperFedNAS, arXiv 2301.10879, algorithm 1), on Flower.

One round: assign a subnet to each sampled node, send each its weights as one flat array, fold the
replies into the overlap-aware average in assignment order, drop them. FedAvg, sandwich sampling and
plain overlap averaging are settings of the same strategy.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from data import Dataset
from server.account import round_metrics, round_row
from server.assignment import Client, Policy, round_weights, sample_clients
from server.averaging import Averaging
from server.closing import Closing, LateTask
from server.evaluation import fuse_ladder, score_ladder
from server.exchange import Late, exchange
from server.exposition import Exposition
from server.folding import Folded, Folding, placed
from server.outgoing import Outgoing
from server.plan import RoundPlan, train_messages
from server.progress import Progress
from server.replies import Reply
from server.roster import Roster
from server.run_folder import Checkpoint, RunFolder
from server.settings import Settings
from server.telling import Telling
from server.watch import Watch
from supernet import Architecture, SearchSpace, State
from supernet.config import flatten
from supernet.files import write_whole
from supernet.memory import keep_freed_memory
from supernet.slicing import Cut
from supernet.wire import source_fingerprint

Row = dict[str, Any]
_FAILED_ROUNDS = 3


class TrainingStalled(RuntimeError):  # noqa: N818 (says what happened)
    """Several rounds in a row brought no usable reply; the message gives the last reasons."""


class SupernetStrategy(Strategy):
    """Train a supernet, one subnet a client and round.

    Parameters
    ----------
    settings
        All settings; their defaults are MaxNet. ``space`` must say classes, channels and size.
    run
        Run folder for metrics and checkpoints; None keeps metrics in memory only.
    data
        The server's own data for central evaluation; None leaves evaluation to the clients.
    progress
        Where the run reports; by default one printed line a round.
    space, policy
        In place of those that the settings name.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run: RunFolder | None = None,
        data: Dataset | None = None,
        progress: Progress | None = None,
        space: SearchSpace | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.settings = settings
        self.space = settings.space.load() if space is None else space
        self.policy = settings.policy(self.space) if policy is None else policy
        self.averaging = Averaging(settings)
        self.run_folder = run
        self.data = data if settings.evaluate_on != "clients" else None
        self.progress = Progress() if progress is None else progress
        self._telling = Telling(settings, self.space, self.progress.note)
        self.ladder = settings.rungs(self.space)
        self.state: State = {}
        self.rows: list[Row] = []
        self.roster = Roster(
            self.space,
            self.policy,
            device_shares=settings.device_shares,
            question=flatten(settings.data) | {"seed": settings.seed},
            note=self.progress.note,
            timeout=settings.node_timeout,
            max_failures=settings.max_failures,
            rest_rounds=settings.rest_rounds,
        )
        self.late: Late[LateTask] = Late()
        self._folding = Folding(
            settings,
            self.averaging,
            self.late,
            note=self.progress.note,
            folder=None if run is None else run.path / "checkpoints",
        )
        self._outgoing = Outgoing(settings.wire_dtype)
        self._exposition = Exposition("" if run is None else run.path.name)
        self._shapes = self.space.shapes(self.space.largest)
        self._beta = settings.beta()
        self._lr = settings.lr()
        self._plan: RoundPlan | None = None
        self._sent: list[Metadata] = []
        self._met = False
        self._other_code: set[str] = set()
        self._last_refusals: list[str] = []
        self._hooks: list[Callable[[Row], None]] = []

    def summary(self) -> None:
        """Say what will be trained, and how."""
        self._telling.summary()

    # The run

    def train(self, grid: Grid, state: State, *, first: int = 1) -> State:
        """Run rounds ``first`` to ``settings.rounds`` from a supernet's state and return the last.

        Raises
        ------
        RosterError
            Where there are not enough nodes.
        TrainingStalled
            Where three rounds in a row bring no usable reply.
        """
        keep_freed_memory()
        self.state = state
        rounds = self.settings.rounds
        self.progress.start(first, rounds)
        failed = 0
        try:
            if first == 1:
                self._checkpoint(0)
            for number in range(first, rounds + 1):
                row = self._round(number, grid)
                failed = 0 if any(client["accepted"] for client in row["clients"]) else failed + 1
                if failed == _FAILED_ROUNDS:
                    raise TrainingStalled(
                        f"no usable reply in {failed} rounds: " + "; ".join(self._last_refusals)
                    )
        finally:
            self.progress.stop()
            if self.run_folder is not None:
                self.run_folder.settle()
            self.averaging.let_go()
        return self.state

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run as any Flower strategy does; the result holds the trained supernet's arrays.

        Flower's own loop would keep every reply in memory until the last has come; this one folds
        them as they arrive. ``num_rounds`` and ``timeout`` replace the settings' where given; what
        clients are told is fixed by the settings, so ``train_config`` and ``evaluate_config`` must
        be empty. ``evaluate_fn`` is called at every round's end.
        """
        if train_config or evaluate_config:
            raise ValueError("SupernetStrategy takes its configuration from its settings")
        if num_rounds or timeout:
            self.settings = replace(
                self.settings,
                rounds=num_rounds or self.settings.rounds,
                round_timeout=timeout or self.settings.round_timeout,
            )
            self._beta, self._lr = self.settings.beta(), self.settings.lr()
            self._telling = Telling(self.settings, self.space, self.progress.note)
        self.summary()
        result = Result()
        if evaluate_fn is not None:
            user_fn = evaluate_fn

            def after(row: Row) -> None:
                found = user_fn(row["round"], ArrayRecord(self.state))
                if found is not None:
                    result.evaluate_metrics_serverapp[row["round"]] = found

            self._hooks.append(after)
        state = initial_arrays.to_torch_state_dict()
        self.averaging.adopt(state)
        self.train(grid, state)
        result.arrays = ArrayRecord(self.state)
        for row in self.rows:
            if row["kind"] == "round":
                result.train_metrics_clientapp[row["round"]] = round_metrics(row)
        return result

    def _round(self, number: int, grid: Grid) -> Row:
        started = time.monotonic()
        plan, messages = self._configure(number, grid)
        s = self.settings
        closing = Closing(plan, s.enough_replies, s.min_weight, s.round_timeout)
        replies = exchange(
            grid,
            messages,
            closing.timeout,
            enough=closing.enough,
            late=self.late,
            tasks=[LateTask(plan, index) for index in range(len(messages))],
            tell=lambda indices, seconds: self._telling.waiting(plan, indices, seconds),
            watch=self._watch(plan, grid),
        )
        row, rungs = self._fold(plan, replies, closing)
        row["seconds"] = time.monotonic() - started
        self._record(row)
        self.progress.round(row)
        if plan.evaluate:
            self._evaluate(number, rungs)
        self.expose()
        if self.run_folder is not None:
            # The round after the next writes where the state of the last checkpoint lies.
            self.run_folder.settle()
        if number % self.settings.checkpoint_every == 0 or number == self.settings.rounds:
            self._checkpoint(number)
        for hook in self._hooks:
            hook(row)
        return row

    def expose(self) -> None:
        """Write the run folder's ``metrics.prom``: what is known now, and the run's status."""
        if self.run_folder is not None:
            s, status = self.settings, self.run_folder.info["status"]
            text = self._exposition.text(s.rounds, status, s.clients_per_round + s.over_sample)
            write_whole(self.run_folder.path / "metrics.prom", text, lasting=False)

    def _record(self, row: Row) -> None:
        self.rows.append(row)
        self._exposition.add(row)
        if self.run_folder is not None:
            self.run_folder.append(row)

    def restore(self, rows: Sequence[Row], memory: Mapping[str, Any]) -> None:
        """Take over a run's rows so far and what its checkpoint remembers.

        What a checkpoint of an earlier version does not remember starts anew.
        """
        self.rows = []
        for row in rows:
            self.rows.append(row)
            self._exposition.restore(row)
        for name, part in self._memories().items():
            if name in memory:
                part.restore(memory[name])

    def _memories(self) -> dict[str, Policy | Roster | Averaging]:
        return {"policy": self.policy, "roster": self.roster, "averaging": self.averaging}

    def _checkpoint(self, number: int) -> None:
        if self.run_folder is not None:
            memory = {name: part.state() for name, part in self._memories().items()}
            point = Checkpoint(number, self.state, memory)
            self.run_folder.begin_checkpoint(point, self.settings.keep_checkpoints)

    # Orders

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one message a sampled node, with its subnet's weights and its order."""
        self.state = arrays.to_torch_state_dict()
        _, messages = self._configure(server_round, grid)
        self._sent = [message.metadata for message in messages]
        return messages

    def _configure(self, number: int, grid: Grid) -> tuple[RoundPlan, list[Message]]:
        clients, nodes = self._sample(number, grid)
        assignment = self.policy.assign(number, clients)
        favoured = self.policy.favoured(assignment)
        beta = None if self._beta is None else self._beta(number - 1)
        nobody = self.space.largest not in assignment.values()
        if beta is not None and nobody and self.settings.assignment != "fixed":
            self._telling.leader(number, assignment, favoured)
        examples = {client.name: client.examples or 0 for client in clients}
        weights = round_weights(
            assignment,
            favoured,
            beta,
            examples if self.settings.weighting == "examples" else None,
        )
        evaluate = self._to_evaluate(number)
        cuts = self._cuts_of(number, assignment.values())
        shift = self.policy.shift(number)
        plan = RoundPlan(
            round=number,
            beta=beta,
            lr=self._lr(number - 1),
            nodes={client.name: nodes[client.name] for client in clients},
            assignment=assignment,
            cuts=cuts,
            favoured=favoured,
            weights=weights,
            clients={client.name: client for client in clients},
            evaluate=evaluate,
            bytes_down={},
            moved=frozenset(a for a in cuts if shift and cuts[a] != self.space.boxes(a)),
        )
        self._plan = plan
        return plan, train_messages(plan, self.state, self._outgoing, self.settings)

    def _cuts_of(
        self, number: int, architectures: Iterable[Architecture]
    ) -> dict[Architecture, Cut]:
        """Return the cuts of a round's architectures: those of the round before are kept."""
        if shift := self.policy.shift(number):
            return {a: Cut(self._shapes, self.space.rolled(a, shift)) for a in set(architectures)}
        before = {} if self._plan is None or self._plan.moved else self._plan.cuts
        return {
            arch: before.get(arch) or Cut(self._shapes, self.space.boxes(arch))
            for arch in set(architectures)
        }

    def _sample(self, number: int, grid: Grid) -> tuple[list[Client], dict[str, int]]:
        s = self.settings
        wanted = s.clients_per_round
        if not self._met:
            least, why = max(wanted, s.min_nodes), f"clients-per-round = {wanted}"
            if s.min_nodes > wanted:
                why = f"min-nodes = {s.min_nodes}"
        else:
            least, why = 1, f"round {number}"
        self._met = True
        usable = self.roster.wait_for(grid, least, s.node_timeout, wanted=why)
        self.late.forget(lambda task: number - task.plan.round > s.rest_rounds)
        busy = {task.client for task in self.late.waiting.values()}
        free = list(usable)
        if busy:
            free = [name for name in usable if name not in busy] or free
        awake = self.roster.rested(free, number)
        wanted += s.over_sample
        if len(awake) < wanted:
            self._telling.few_clients(number, len(awake), wanted)
        sampled = sample_clients(awake, wanted, s.seed, number)
        clients = [usable[name][1] for name in sampled]
        return clients, {client.name: usable[client.name][0] for client in clients}

    def _watch(self, plan: RoundPlan, grid: Grid) -> Watch:
        in_turn = self.roster.in_turn
        nodes = [node if node in in_turn else None for node in plan.nodes.values()]
        return Watch(grid, nodes, tell=lambda index: self._telling.lost(plan, index))

    def _due(self, number: int) -> bool:
        every = self.settings.evaluate_every
        return every > 0 and (number % every == 0 or number == self.settings.rounds)

    def _to_evaluate(self, number: int) -> list[Architecture]:
        """Return the architectures that clients score on what they receive, beside their own."""
        if not self._due(number):
            return []
        rungs = list(self.ladder.values())
        return rungs[:1] if self.data is not None else rungs

    # Replies

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies to :meth:`configure_train`'s messages into the supernet."""
        plan = self._plan
        if plan is None or plan.round != server_round:
            raise ValueError(f"aggregate_train({server_round}) without its configure_train")
        closing = Closing(plan, 0, 0.0, self.settings.round_timeout)
        row, _ = self._fold(plan, placed(plan, self._sent, replies), closing)
        self._record(row | {"seconds": 0.0})
        return ArrayRecord(self.state), round_metrics(row)

    def _fold(
        self,
        plan: RoundPlan,
        replies: Iterable[tuple[int, Message | None]],
        closing: Closing,
    ) -> tuple[Row, list[Row]]:
        """Fold a round; return its row and the ladder as the clients scored it."""
        folded = self._folding.fold(self.state, plan, replies, closing)
        self.state = folded.state
        self._last_refusals = folded.refusals
        for index, name in enumerate(plan.assignment):
            entry = folded.found[index]
            if isinstance(entry, Reply):
                self._compare_code(name, entry)
        self._tell_roster(plan, folded, closed_early=closing.enough())
        row, reports = round_row(
            plan, folded.found, folded.verdicts, self.space, self.settings.wire_dtype
        )
        rungs = fuse_ladder(self.space, self.ladder, reports)
        return row | {"late": folded.late}, rungs

    def _tell_roster(self, plan: RoundPlan, folded: Folded, *, closed_early: bool) -> None:
        """Note who answered; who is only slower than a round that closed early has not failed."""
        awaited = {task.node for task in self.late.waiting.values()}
        for index, (name, node) in enumerate(plan.nodes.items()):
            entry = folded.found[index]
            if isinstance(entry, Reply):
                self.roster.answered(name, node)
            elif not (closed_early and node in awaited):
                silent = index in folded.silent
                self.roster.failed(name, node, plan.round, entry, silent=silent)

    def _compare_code(self, name: str, reply: Reply) -> None:
        """Say once when a client runs other code than the server."""
        if reply.source != source_fingerprint() and reply.source_root not in self._other_code:
            self._other_code.add(reply.source_root)
            self.progress.note(
                f"client {name} runs other code than the server, from {reply.source_root!r}: a "
                "local SuperLink started from another folder keeps that folder's packages; "
                "`superfednas stop` ends it",
                "other-code",
                client=name,
                source=reply.source_root,
            )

    def _evaluate(self, number: int, rungs: list[Row]) -> None:
        """Evaluate the ladder here where the server has data, else take the clients' ``rungs``."""
        if self.data is not None:
            rungs = score_ladder(
                self.space,
                self.state,
                self.ladder,
                self.data,
                self.data.validation,
                torch.device("cpu"),
            )
            trained, where = number, "server"
        else:
            # Clients score what they received: the state before this round's training.
            trained, where = number - 1, "clients"
        if rungs:
            evaluation = {
                "kind": "evaluation",
                "round": number,
                "trained_rounds": trained,
                "where": where,
                "split": "validation",
                "ladder": rungs,
            }
            self._record(evaluation)
            self.progress.evaluation(evaluation)

    # Flower's evaluation exchange is not used: it costs seconds a round in deployment.

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: clients evaluate within the training exchange."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing."""
        return None
