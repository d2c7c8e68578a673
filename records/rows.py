"""Rows of ``metrics.jsonl``: a round, an evaluation, the test and the summary of a run, as values.

:mod:`superfednas.records.lines` alone reads and writes them. What rows of earlier versions lack has
a default.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from superfednas.records.refusals import Refusal

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class ClientRow:
    """What a client was asked in a round, and what came of it.

    Parameters
    ----------
    client, architecture
        Its name, and the architecture as JSON.
    macs, params
        Of the architecture.
    weight, favoured
        Its part in the average, and whether it shares β.
    bytes_down, bytes_up
        Of weights.
    accepted
        Whether its reply was used; otherwise ``refusal`` and ``reason`` say why not.
    verdict
        What the averaging did to a reply that it did not take as it was.
    target
        The state that it trained, where that is not the supernet.
    loss, examples, images, seconds
        What it reports of its training; the loss is None of a node that keeps its scores.
    mac_images
        Forward MACs of an image times images; None in rows of runs with one subnet a step.
    own, smallest
        Metric to value, of its own and of the smallest subnet on its validation examples; None
        where it was not asked or has none.
    """

    client: str
    architecture: str = ""
    macs: int = 0
    params: int = 0
    weight: float = 0.0
    favoured: bool = False
    bytes_down: int = 0
    bytes_up: int = 0
    accepted: bool = False
    refusal: Refusal | None = None
    reason: str | None = None
    verdict: str | None = None
    target: str = ""
    loss: float | None = 0.0
    examples: int = 0
    images: int = 0
    mac_images: int | None = None
    seconds: float = 0.0
    own: Mapping[str, float | None] = field(default_factory=dict)
    smallest: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Weight bytes, both ways."""
        return self.bytes_down + self.bytes_up

    @property
    def computed(self) -> int:
        """Forward MACs of one image times images trained on, as SuperFedNAS counts cost."""
        return self.macs * self.images if self.mac_images is None else self.mac_images


@dataclass(frozen=True)
class LateRow:
    """A reply that came after its round had closed.

    Parameters
    ----------
    client, round
        Whose, and to which round.
    folded, weight
        Whether it was folded into a later round, and with which weight.
    refusal, reason
        Why it was refused, where it was.
    """

    client: str
    round: int
    folded: bool = False
    refusal: Refusal | None = None
    reason: str | None = None
    weight: float | None = None


@dataclass(frozen=True)
class RoundRow:
    """A finished round.

    Parameters
    ----------
    round
        Its number, from 1.
    beta, lr
        β, None where the averaging has none, and the learning rate.
    clients
        What each client was asked, in the order of the assignment.
    seconds
        How long it took.
    late
        Replies to earlier rounds that came during this one.
    left_out
        Share of the supernet that secure aggregation left as it was, since too few clients of the
        round held it; None without secure aggregation, or for a round that was given up.
    """

    round: int
    beta: float | None = None
    lr: float | None = None
    clients: tuple[ClientRow, ...] = ()
    seconds: float = 0.0
    late: tuple[LateRow, ...] = ()
    left_out: float | None = None

    @property
    def accepted(self) -> list[ClientRow]:
        """The clients whose replies were used."""
        return [client for client in self.clients if client.accepted]

    @property
    def folded(self) -> bool:
        """Whether any reply was used, to this round or to an earlier one."""
        return bool(self.accepted) or any(late.folded for late in self.late)

    @property
    def refused(self) -> list[ClientRow]:
        """The clients whose replies are missing or were refused."""
        return [client for client in self.clients if not client.accepted]

    @property
    def loss(self) -> float | None:
        """The mean training loss of the clients that tell theirs; None where none does."""
        losses = [client.loss for client in self.accepted if client.loss is not None]
        return sum(losses) / len(losses) if losses else None

    @property
    def bytes(self) -> int:
        """Weight bytes, both ways."""
        return sum(client.bytes for client in self.clients)

    @property
    def computed(self) -> int:
        """Forward MACs times images of all clients, as SuperFedNAS counts cost."""
        return sum(client.computed for client in self.clients)


@dataclass(frozen=True)
class Rung:
    """A subnet of an evaluation.

    Parameters
    ----------
    name, architecture
        Its name on the ladder, and the architecture as JSON.
    macs, params
        What it costs.
    values
        Metric to value, and ``examples``, the number of those that it was measured on.
    """

    name: str
    architecture: str = ""
    macs: int = 0
    params: int = 0
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Examples that it was measured on."""
        return int(self.values.get("examples", 0))

    def __getitem__(self, metric: str) -> float:
        """Return a metric's value."""
        return self.values[metric]


@dataclass(frozen=True)
class EvaluationRow:
    """The ladder, evaluated.

    Parameters
    ----------
    kind
        ``test`` for the final weights on the test split, ``evaluation`` otherwise.
    round, trained_rounds
        When, and how many rounds the weights had been trained for.
    where
        ``server`` or ``clients``.
    split
        ``validation`` or ``test``.
    ladder
        The subnets, by rising cost as a rule; clients may leave some out.
    metric
        The metric that chooses, as :meth:`superfednas.tasks.metric.Metric.described` gives it; None
        in rows of earlier versions.
    clients, of
        Where clients scored it: how many did, of how many whose replies were used; else None.
    """

    kind: Literal["evaluation", "test"]
    round: int
    trained_rounds: int = 0
    where: str = "server"
    split: str = "validation"
    ladder: tuple[Rung, ...] = ()
    metric: Mapping[str, str] | None = None
    clients: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class Covered:
    """A range of MACs, both ends in MACs, and its share of all assignments."""

    low: int
    high: int
    share: float


@dataclass(frozen=True)
class Spread:
    """How a metric spreads over clients: how many, mean, deviation, ends, and whose is worst."""

    clients: int
    mean: float
    sd: float
    min: float
    max: float
    lowest: str


@dataclass(frozen=True)
class SummaryRow:
    """A run as a whole.

    Parameters
    ----------
    round
        Rounds trained.
    replies, refused
        Replies that were used, and how many were not by reason.
    bytes, gmac_images, seconds
        Weight bytes both ways, forward cost in GMAC·images, seconds of all rounds.
    coverage
        Ranges of MACs, and how often each was assigned.
    as_assigned
        Whether clients trained the very subnets that they were assigned, of all sizes.
    spread
        ``own`` or ``smallest`` to how the metric spreads over clients.
    metric
        As in :class:`EvaluationRow`.
    """

    round: int
    replies: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    gmac_images: float = 0.0
    seconds: float = 0.0
    coverage: tuple[Covered, ...] = ()
    as_assigned: bool = True
    spread: Mapping[str, Spread] = field(default_factory=dict)
    metric: Mapping[str, str] | None = None


Row = RoundRow | EvaluationRow | SummaryRow


def of_kind(rows: Iterable[Row], kind: type[Kind]) -> list[Kind]:
    """Return the rows of one class."""
    return [row for row in rows if isinstance(row, kind)]


def evaluations(rows: Iterable[Row]) -> list[EvaluationRow]:
    """Return the evaluations while training, without the test of the end."""
    return [row for row in of_kind(rows, EvaluationRow) if row.kind == "evaluation"]


def last_test(rows: Iterable[Row]) -> EvaluationRow | None:
    """Return the last test; None where there is none."""
    found = [row for row in of_kind(rows, EvaluationRow) if row.kind == "test"]
    return found[-1] if found else None


def at_the_end(row: Row) -> bool:
    """Say whether a row is one of those that a finished run ends with."""
    return isinstance(row, SummaryRow) or (isinstance(row, EvaluationRow) and row.kind == "test")
