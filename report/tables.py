"""Rows of a run as the texts and tables of its report. Nothing is escaped here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superfednas.common.settings import parse
from superfednas.common.trust import check_code
from superfednas.common.words import Prefix, amount, duration, prefix_of
from superfednas.records.folder import RunFolder
from superfednas.records.rows import (
    ClientRow,
    EvaluationRow,
    RoundRow,
    SummaryRow,
    evaluations,
    last_test,
    of_kind,
)
from superfednas.server.settings import Settings
from superfednas.tasks import Metric
from superfednas.tasks.registry import examples_of, metric_of

NONE = "–"
_REASONS = 50  # lines of the table of refused replies


@dataclass(frozen=True)
class Story:
    """A run in its report.

    Parameters
    ----------
    info
        The content of ``run.json``.
    settings
        The run's settings.
    rounds, evaluations
        Rows of these kinds, by round.
    test, summary
        The rows of the run's end; None if it has not ended, or has no test data.
    """

    info: Mapping[str, Any]
    settings: Settings
    rounds: list[RoundRow]
    evaluations: list[EvaluationRow]
    test: EvaluationRow | None
    summary: SummaryRow | None

    @classmethod
    def of(cls, run: RunFolder) -> "Story":
        """Read a run folder."""
        rows = run.rows()
        # Settings that are parsed have their method and its parts at hand; no space is loaded.
        read = {key: run.settings.get(key) for key in ("method", "assignment", "averaging")}
        check_code(read, run.path)
        return cls(
            info=run.info,
            settings=parse(Settings, run.settings, ignore_unknown=True),
            rounds=of_kind(rows, RoundRow),
            evaluations=evaluations(rows),
            test=last_test(rows),
            summary=next(reversed(of_kind(rows, SummaryRow)), None),
        )

    @property
    def title(self) -> str:
        """Space and data set."""
        data = self.settings.data.dataset
        return f"{self.settings.space.space} on {'the clients’ data' if data == 'none' else data}"

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return bool(self.info["status"] == "finished")

    @property
    def last(self) -> EvaluationRow | None:
        """The test of the ladder, else its last evaluation, else None."""
        return self.test or (self.evaluations[-1] if self.evaluations else None)

    @property
    def metric(self) -> Metric:
        """What subnets are judged by, as the rows say; of a run without such rows, its name."""
        row = self.last or self.summary
        if row is not None or self.examples == "images":
            return metric_of(None if row is None else row.metric)
        reported = (name for row in self.rounds for client in row.clients for name in client.own)
        return Metric(next(reported, "metric"), "more")

    @property
    def examples(self) -> str:
        """What the task's examples are called."""
        return examples_of(self.settings.space.task)

    @property
    def prefix(self) -> Prefix:
        """The unit of MACs in which the smallest subnet can be read."""
        rungs = (rung.macs for row in (*self.evaluations, self.last) if row for rung in row.ladder)
        orders = (client.macs for row in self.rounds for client in row.clients)
        return prefix_of([*rungs, *orders])

    @property
    def macs_title(self) -> str:
        """The title of an axis of MACs."""
        return macs_title(self.prefix, self.examples)

    @property
    def end_shares(self) -> tuple[float, float]:
        """Shares of the smallest and of the largest subnet among the assignments.

        The summary's ranges exclude the two; without a summary both are 0.
        """
        macs = [client.macs for row in self.rounds for client in row.clients]
        if self.summary is None or not macs:
            return 0.0, 0.0
        least, most = self.summary.coverage[0].low, self.summary.coverage[-1].high
        return (
            sum(m <= least for m in macs) / len(macs),
            sum(m >= most for m in macs) / len(macs),
        )


def status(story: Story) -> str:
    """Return in one sentence how far the run is."""
    done, wanted = len(story.rounds), story.settings.rounds
    if story.finished:
        return f"Finished after round {wanted}."
    if not done:
        return f"Not finished: no round has ended yet, {wanted} are to come."
    return (
        f"Not finished: {done} of {wanted} rounds are done, so there is no summary and no test of "
        "the final weights yet."
    )


def facts(story: Story) -> list[tuple[str, str]]:
    """Return the key facts, name and value."""
    s, info = story.settings, story.info
    seen = {client.client for row in story.rounds for client in row.clients}
    spent = sum(row.seconds for row in story.rounds)
    local = s.local
    by_size = s.weighting == "examples"
    work = f"{local.local_steps} steps" if local.local_steps else f"{local.local_epochs} epochs"
    versions = ", ".join(f"{name} {number}" for name, number in info["versions"].items())
    return [
        ("rounds", f"{len(story.rounds)} of {s.rounds}"),
        ("clients", f"{s.clients_per_round} a round; {len(seen)} took part"),
        ("method", s.method),
        ("assignment", s.assignment),
        ("averaging", s.averaging + (f", by {story.examples}" if by_size else "")),
        ("β", _beta(s)),
        (
            "local training",
            f"SGD, {work} of batches of {local.batch_size}, lr {local.lr:g} ({s.lr_schedule}), "
            f"momentum {local.momentum:g}, weight decay {local.weight_decay:g}, "
            f"clip {local.clip_norm:g}",
        ),
        ("division of the data", _partition(s)),
        ("normalisation", s.space.norm),
        ("seed", str(s.seed)),
        ("started", str(info["started"])),
        ("time in rounds", duration(spent)),
        ("sent and received", amount(sum(row.bytes for row in story.rounds))),
        ("versions", versions),
        ("git state", info["git"] or "none: the code was in no git checkout"),
        ("code fingerprint", str(info["source"])),
    ]


def _beta(s: Settings) -> str:
    if s.beta() is None:
        return "none"
    end = s.beta_end or 1 / s.clients_per_round
    return f"{s.beta_schedule}, {s.beta_start:g} to {end:g} over {s.beta_share:.0%} of the rounds"


def _partition(s: Settings) -> str:
    if s.data.partition.endswith("dirichlet"):
        return f"{s.data.partition}, concentration {s.data.dirichlet_alpha:g}"
    return s.data.partition


def macs_title(prefix: Prefix, examples: str) -> str:
    """Return the title of an axis of MACs, in a unit, an image or an example."""
    size = f" ({prefix.word})" if prefix.word else ""
    return f"multiply-accumulates of one {examples.removesuffix('s')}{size}"


def upper_first(text: str) -> str:
    """Return a text as it begins a sentence."""
    return text[:1].upper() + text[1:]


def ladder_caption(story: Story, row: EvaluationRow) -> str:
    """Return what a ladder's values were measured on."""
    own = f"by the clients on their own {story.examples}"
    where = "on the server" if row.where == "server" else own
    trained = row.trained_rounds
    when = f"after round {trained}" if trained else "before any training"
    return f"{row.split} {story.metric.name} {when}, measured {where}"


def ladder_table(story: Story, row: EvaluationRow) -> tuple[list[str], list[list[str]]]:
    """Return the table of a ladder, headings and lines: subnet, MACs, parameters, metrics, size.

    Rows tell the unit of the first metric alone; the others are plain numbers.
    """
    metric, prefix = story.metric, story.prefix
    values = {name: None for rung in row.ladder for name in rung.values}
    others = [name for name in values if name not in (metric.name, "examples")]
    heads = ["subnet", f"{prefix.letter}MACs", "parameters"]
    heads += [metric.name, *others, story.examples]
    lines = [
        [
            rung.name,
            prefix.say(rung.macs),
            f"{rung.params:,}",
            *(metric.say(rung[metric.name]) if metric.name in rung.values else NONE,),
            *(f"{rung[name]:.3f}" if name in rung.values else NONE for name in others),
            f"{rung.examples:,}",
        ]
        for rung in row.ladder
    ]
    return heads, lines


def client_lines(story: Story) -> list[list[str]]:
    """Return a line a client: name, chosen, MACs, accepted, refused, own metric, bytes."""
    metric, prefix = story.metric, story.prefix
    orders: dict[str, list[ClientRow]] = {}
    for row in story.rounds:
        for client in row.clients:
            orders.setdefault(client.client, []).append(client)
    lines = []
    for name in sorted(orders, key=_natural):
        mine = orders[name]
        accepted = sum(client.accepted for client in mine)
        asked = [c.own.get(metric.name) for c in mine]
        scores = [score for score in asked if score is not None]
        lines.append(
            [
                name,
                str(len(mine)),
                prefix.say(sum(client.macs for client in mine) / len(mine)),
                str(accepted),
                str(len(mine) - accepted),
                metric.say(scores[-1], 1) if scores else NONE,
                amount(sum(client.bytes for client in mine)),
            ]
        )
    return lines


def _natural(name: str) -> tuple[bool, int, str]:
    """Sort numbers by value and before names, without parsing an untrusted text as a number."""
    return (not name.isdecimal(), len(name) if name.isdecimal() else 0, name)


def refusal_lines(rounds: Sequence[RoundRow]) -> list[list[str]]:
    """Return a line per reason, most frequent first: reason, replies, clients, last round.

    A node chooses its reasons: of more than 50, the rest are one line.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for row in rounds:
        for client in row.refused:
            found.setdefault(client.reason or NONE, []).append((client.client, row.round))
    often = sorted(found.items(), key=lambda item: -len(item[1]))
    if rest := often[_REASONS:]:
        hits = sorted((hit for _, some in rest for hit in some), key=lambda hit: hit[1])
        often = [*often[:_REASONS], (f"{len(rest)} other reasons", hits)]
    return [
        [reason, str(len(hits)), str(len({name for name, _ in hits})), str(hits[-1][1])]
        for reason, hits in often
    ]
