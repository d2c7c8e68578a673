"""The loop of rounds: MaxNet by default (SuperFedNAS, arXiv 2301.10879, algorithm 1).

One round: assign a subnet to each sampled node, send it the weights as one flat array, fold the
replies into the overlap-aware average in assignment order, and drop them. FedAvg, sandwich sampling
and plain overlap averaging are settings of the same strategy.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from superfednas.common.files import write_whole
from superfednas.common.malloc import keep_freed_memory
from superfednas.data import Dataset
from superfednas.records.checkpoint import Checkpoint
from superfednas.records.folder import RunFolder
from superfednas.records.refusals import BLAMELESS, Refusal, Refused
from superfednas.records.releases import released
from superfednas.records.rows import EvaluationRow, RoundRow, Row
from superfednas.server.assign.policies import Policy
from superfednas.server.average.choose import Averaging
from superfednas.server.journal.evaluation import Report, fuse_ladder, score_ladder
from superfednas.server.journal.notices import Telling
from superfednas.server.journal.progress import Progress
from superfednas.server.journal.prometheus import Exposition
from superfednas.server.journal.round_row import round_row
from superfednas.server.methods.base import Method
from superfednas.server.nodes import Roster, question_of
from superfednas.server.round.bound import Bounds
from superfednas.server.round.check import Reply
from superfednas.server.round.encode import Outgoing
from superfednas.server.round.exchange import Late, exchange
from superfednas.server.round.fold import Folded, Folding
from superfednas.server.round.late import Closing, LateTask
from superfednas.server.round.lost import Watch
from superfednas.server.round.messages import train_messages
from superfednas.server.round.orders import SUPERNET, Cuts, Round, RoundPlan
from superfednas.server.round.outcome import Outcome, tallies_of
from superfednas.server.round.sample import Sampling
from superfednas.server.secure import secured
from superfednas.server.settings import Settings
from superfednas.supernet import Architecture, SearchSpace, State
from superfednas.wire.errands import TRAIN

_FAILED_ROUNDS = 3


class TrainingStalled(RuntimeError):  # noqa: N818 (says what happened)
    """Several rounds in a row without a usable reply; the message gives the last reasons."""

    refusal = Refusal.STALLED

    def __init__(self, rounds: int, last: Sequence[Refused]) -> None:
        super().__init__(f"no usable reply in {rounds} rounds: " + "; ".join(map(str, last)))
        self.causes = tuple(dict.fromkeys(refused.code for refused in last))


class SupernetStrategy:
    """Train a supernet, with one subnet per client and round.

    Parameters
    ----------
    settings
        All settings; the defaults are MaxNet. ``space`` must state classes, channels and size.
    run
        Run folder for metrics and checkpoints; None keeps metrics in memory only.
    data
        The server's own data for central evaluation; None leaves evaluation to the clients.
    progress
        Where the run reports; by default one printed line a round.
    space, method
        Instead of those named by the settings.

    Attributes
    ----------
    states
        The supernet, and the states beside it that the method trains.
    hooks
        Called with every round's row at the end of the round.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run: RunFolder | None = None,
        data: Dataset | None = None,
        progress: Progress | None = None,
        space: SearchSpace | None = None,
        method: Method | None = None,
    ) -> None:
        self.settings = settings
        self.space = settings.space.load() if space is None else space
        self.method = settings.for_space(self.space) if method is None else method
        self.averaging = Averaging(settings)
        self.run_folder = run
        self.data = data if settings.evaluate_on != "clients" else None
        self.progress = Progress() if progress is None else progress
        self._telling = Telling(settings, self.space, self.progress.note)
        self.ladder = settings.rungs(self.space)
        self.states: dict[str, State] = {}
        self.rows: list[Row] = []
        self.roster = Roster(
            self.space,
            self.method.setup.policy,
            device_shares=settings.device_shares,
            question=question_of(settings, TRAIN),
            note=self.progress.note,
            timeout=settings.node_timeout,
            max_failures=settings.max_failures,
            rest_rounds=settings.rest_rounds,
            released=lambda: [] if run is None else released(run.path),
            meaning=None if data is None else data.task.meaning,
        )
        self.late: Late[LateTask] = Late()
        bounds = Bounds(settings, self.space)
        self._folding = Folding(
            settings,
            self.averaging,
            bounds,
            self.late,
            note=self.progress.note,
            folder=None if run is None else run.path / "checkpoints",
        )
        self._secure = secured(settings, self.space, bounds, self.late, self.progress.note)
        self._outgoing = Outgoing(settings.wire_dtype)
        self._exposition = Exposition("" if run is None else run.path.name)
        self._cuts = Cuts(self.space)
        self._beta, self._lr = settings.beta(), settings.lr()
        self._sampling = Sampling(settings, self.roster, self.late)
        self._last_refusals: list[Refused] = []
        self._moved = False  # since the last checkpoint
        self.hooks: list[Callable[[RoundRow], None]] = []

    @property
    def state(self) -> State:
        """The supernet."""
        return self.states[SUPERNET]

    @state.setter
    def state(self, state: State) -> None:
        self.states[SUPERNET] = state

    def summary(self) -> None:
        """Report what will be trained, and how."""
        self._telling.summary()

    # The run

    def train(self, grid: Grid, state: State, *, first: int = 1) -> State:
        """Run rounds ``first`` to ``settings.rounds`` from a supernet's state and return the last.

        Raises
        ------
        RosterError
            If there are not enough nodes.
        TrainingStalled
            If three rounds in a row bring no usable reply and nothing says that the next may, or no
            round does.
        """
        keep_freed_memory()
        self.state = state
        rounds = self.settings.rounds
        self.progress.start(first, rounds)
        failed = idle = 0
        try:
            if first == 1:
                self._checkpoint(0)
            for number in range(first, rounds + 1):
                row = self._round(number, grid)
                idle += not row.accepted
                failed = 0 if row.accepted else failed + 1
                searching = self._secure is not None and self._secure.searching
                if failed >= _FAILED_ROUNDS and not (searching or self.roster.hope(failed)):
                    raise TrainingStalled(failed, self._last_refusals)
            if idle == rounds:  # a run that has trained nothing
                raise TrainingStalled(idle, self._last_refusals)
        finally:
            self.progress.stop()
            if self.run_folder is not None:
                self.run_folder.settle()
            self.averaging.let_go()
        return self.state

    def _round(self, number: int, grid: Grid) -> RoundRow:
        started = time.monotonic()
        plan, messages = self._configure(number, grid)
        s = self.settings
        asked: Sequence[int] = range(len(messages))
        enough = s.enough_replies
        if self._secure is not None:
            asked = self._secure.begin(grid, plan, messages)
            enough = self._secure.enough(enough)
        closing = Closing(plan, enough, s.min_weight, s.round_timeout)
        replies = exchange(
            grid,
            [messages[index] for index in asked],
            closing.timeout,
            enough=closing.enough,
            late=self.late,
            tasks=[LateTask(plan, index) for index in asked],
            tell=lambda places, seconds: self._telling.waiting(
                plan, [asked[place] for place in places], seconds
            ),
            watch=self._watch(plan, grid, asked),
        )
        row, scores = self._fold(
            plan, messages, ((asked[place], reply) for place, reply in replies), closing
        )
        row = replace(row, seconds=time.monotonic() - started)
        self._record(row)
        self.progress.round(row)
        if plan.evaluate:
            self._evaluate(row, scores)
        self.expose()
        if self.run_folder is not None:
            # The round after the next overwrites the memory of the last checkpoint's state.
            self.run_folder.settle()
        self._moved |= row.folded
        due = number % self.settings.checkpoint_every == 0 or number == self.settings.rounds
        if due and self._moved:  # else it would be the one before, and push out an older one
            self._checkpoint(number)
            self._moved = False
        for hook in self.hooks:
            hook(row)
        return row

    def expose(self) -> None:
        """Write the run folder's ``metrics.prom``: the current metrics, and the run's status."""
        if self.run_folder is not None:
            s, status = self.settings, self.run_folder.info["status"]
            text = self._exposition.text(s.rounds, status, s.clients_per_round + s.over_sample)
            write_whole(self.run_folder.path / "metrics.prom", text, lasting=False)

    def _record(self, row: Row) -> None:
        self.rows.append(row)
        self._exposition.add(row)
        if self.run_folder is not None:
            self.run_folder.append(row)

    def restore(self, rows: Sequence[Row], point: Checkpoint) -> None:
        """Take over a run's rows so far, and what its checkpoint holds beside the supernet.

        Whatever an earlier version's checkpoint lacks starts afresh.
        """
        self.rows = []
        for row in rows:
            self.rows.append(row)
            self._exposition.restore(row)
        self.states = {SUPERNET: point.state, **point.beside}
        for name, part in self._memories().items():
            if name in point.memory:
                part.restore(point.memory[name])
        self.averaging.recall(point.remembered, self.states)

    def _memories(self) -> dict[str, Policy | Roster | Averaging | Method]:
        return {
            "policy": self.method.setup.policy,
            "roster": self.roster,
            "averaging": self.averaging,
            "method": self.method,
        }

    def _checkpoint(self, number: int) -> None:
        if self.run_folder is not None:
            memory = {name: part.state() for name, part in self._memories().items()}
            beside = {name: state for name, state in self.states.items() if name != SUPERNET}
            remembered = self.averaging.remembered()
            point = Checkpoint(number, self.state, memory, beside, remembered)
            self.run_folder.begin_checkpoint(point, self.settings.keep_checkpoints)

    # Orders

    def _configure(self, number: int, grid: Grid) -> tuple[RoundPlan, list[Message]]:
        clients, nodes = self._sampling.sample(number, grid, self._telling)
        self._cuts.begin()
        now = Round(
            number,
            beta=None if self._beta is None else self._beta(number - 1),
            lr=self._lr(number - 1),
            evaluate=self._to_evaluate(number),
            nodes=nodes,
            cuts=self._cuts,
            wire_dtype=self.settings.wire_dtype,
        )
        plan = now.plan(self.method.orders(now, clients))
        favoured = plan.beta is not None and any(order.favoured for order in plan.orders)
        nobody = all(order.arch != self.space.largest for order in plan.orders)
        if favoured and nobody and self.method.setup.policy.leader:
            self._telling.leader(plan)
        return plan, train_messages(plan, self.states, self._outgoing, self.settings)

    def _watch(self, plan: RoundPlan, grid: Grid, asked: Sequence[int]) -> Watch:
        ids = [plan.orders[index].node for index in asked]
        nodes = [node if node in self.roster.in_turn else None for node in ids]
        return Watch(grid, nodes, tell=lambda place: self._telling.lost(plan, asked[place]))

    def _due(self, number: int) -> bool:
        every = self.settings.evaluate_every
        return every > 0 and (number % every == 0 or number == self.settings.rounds)

    def _to_evaluate(self, number: int) -> list[Architecture]:
        """Return the architectures that clients score on what they receive, besides their own."""
        if not self._due(number):
            return []
        rungs = list(self.ladder.values())
        return rungs[:1] if self.data is not None else rungs

    # Replies

    def _fold(
        self,
        plan: RoundPlan,
        sent: Sequence[Message],
        replies: Iterable[tuple[int, Message | None]],
        closing: Closing,
    ) -> tuple[RoundRow, list[Report]]:
        """Fold a round; return its row, and what each client scored on the ladder."""
        if self._secure is None:
            folded = self._folding.fold(self.states, plan, sent, replies, closing)
        else:
            folded = self._secure.fold(self.state, replies, closing)
        accepted = {
            plan.orders[index].name: entry
            for index, entry in folded.found.items()
            if isinstance(entry, Reply)
        }
        outcome = Outcome(
            accepted, folded.states, tallies_of(plan, accepted, self.space.task.metrics)
        )
        # What was received of a state beside the supernet says nothing of the supernet.
        of_supernet = {
            order.name
            for order in plan.orders
            if self.states.get(order.target, self.state) is self.state
        }
        after = self.method.after(plan, outcome)
        if not isinstance(after, Mapping) or SUPERNET not in after:
            raise ValueError(f"method {self.settings.method!r}: after() returned no {SUPERNET!r}")
        self.states = dict(after)
        self._last_refusals = folded.refusals
        for name, reply in accepted.items():
            self._telling.code(name, reply)
        self._tell_roster(plan, folded, closed_early=closing.enough())
        row, reports = round_row(
            plan, folded.found, folded.verdicts, self.space, self.settings.wire_dtype
        )
        scores = [report for name, report in reports.items() if name in of_supernet]
        return replace(row, late=tuple(folded.late), left_out=folded.left_out), scores

    def _tell_roster(self, plan: RoundPlan, folded: Folded, *, closed_early: bool) -> None:
        """Record who answered; being slower than a round that closed early is not a failure.

        Nor is a reply that comes late and is used; one that is dropped leaves a round to wait for
        nothing.
        """
        awaited = {task.order.node for task in self.late.waiting.values()}
        for row in folded.late:
            if row.folded:
                self.roster.answered_late(row.client)
        for index, order in enumerate(plan.orders):
            entry = folded.found[index]
            if isinstance(entry, Reply) or entry.code in BLAMELESS:
                self.roster.answered(order.name, order.node, used=isinstance(entry, Reply))
            elif not (closed_early and order.node in awaited):
                silent = index in folded.silent
                self.roster.failed(order.name, order.node, plan.round, entry.reason, silent=silent)

    def _evaluate(self, row: RoundRow, scores: Sequence[Report]) -> None:
        """Evaluate the ladder here if the server has data, else add up the clients' ``scores``."""
        number, replies = row.round, len(row.accepted)
        counted: tuple[int | None, int | None] = (None, None)
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
            # Clients score the weights they received: the state before this round's training.
            trained, where = number - 1, "clients"
            rungs = fuse_ladder(self.space, self.ladder, scores)
            counted = sum(map(bool, scores)), replies
            if replies and all(client.loss is None for client in row.accepted):
                self._telling.no_scores(number, replies)
        if rungs:
            metric = self.space.task.metrics[0].described()
            evaluation = EvaluationRow(
                "evaluation", number, trained, where, "validation", tuple(rungs), metric, *counted
            )
            self._record(evaluation)
            self.progress.evaluation(evaluation)
