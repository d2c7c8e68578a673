"""Plans: what a search chose, from what, and how; written once, so that testing stays separate.

A plan holds seeds, digests of the weights and of the images used for scores, and every architecture
that was measured, found or chosen. Test images are read later, once, by the verb that tests the
plan.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superfednas.common.damage import damage_of, fill, read_object
from superfednas.common.files import write_whole
from superfednas.common.trust import check_code
from superfednas.nas.cost.cost import COSTS, Noted, Quantity
from superfednas.nas.cost.costs import Costs
from superfednas.supernet import Architecture
from superfednas.tasks import Tally

FORMAT = 1


class PlanError(ValueError):
    """An unusable plan; the message names the file and says why."""


@dataclass(frozen=True)
class Entry:
    """One architecture of a plan.

    Parameters
    ----------
    name
        Its role in the plan: ``chosen``, or its name on the ladder; may be empty.
    architecture
        The architecture's JSON object.
    costs
        All known costs: MACs, parameters, bytes, memory, perhaps latency.
    score
        What the search chose by, for instance the predicted metric; None where it has none.
    measured
        The task's metrics and ``examples`` on the scoring rows; None where not measured.
    """

    architecture: Mapping[str, Any]
    costs: Mapping[str, float]
    name: str = ""
    score: float | None = None
    measured: Mapping[str, float] | None = None

    @classmethod
    def of(
        cls,
        arch: Architecture,
        costs: Costs,
        *,
        name: str = "",
        score: float | None = None,
        measured: Tally | None = None,
    ) -> "Entry":
        """Describe an architecture."""
        return cls(
            architecture=json.loads(arch.to_json()),
            costs=costs.all(arch),
            name=name,
            score=score,
            measured=None if measured is None else measured.row(costs.space.task.metrics),
        )

    @property
    def text(self) -> str:
        """The architecture as JSON, as every verb takes it."""
        return json.dumps(self.architecture, separators=(",", ":"))


@dataclass(frozen=True)
class Plan:
    """The result of one search.

    Parameters
    ----------
    run, weights, rounds
        The run folder, the digest of its supernet's tensors, and the rounds it had been trained;
        empty if nothing was trained.
    space
        Options of :func:`superfednas.supernet.load_space`.
    limits
        Cost name to the maximum that was allowed.
    against
        The cost of the front; empty if only the best subnet was searched for.
    scorer
        How subnets were scored: ``name``, ``measured`` (how many), ``rank_correlation``, and, where
        a metric was measured or predicted, ``metric`` (:meth:`superfednas.tasks.Metric.described`).
    data
        The images used for the scores: ``name``, ``split``, ``images``, ``digest``.
    engine, exact, looked_at
        How the space was searched.
    seed
        Seed of the choice of measured subnets and of evolution.
    seconds
        ``scoring`` and ``search``.
    chosen
        The choice within the limits: the optimum of the score or, if the score is predicted, a
        measured subnet that did better (by the mean of prediction and measurement).
    front, ladder, measured
        Further architectures: the Pareto front, the run's ladder, and all that were measured.
    costs
        How costs of the user's own are said (``title``, ``unit``, ``scale``), by name: whoever
        reads the plan need not have them.
    """

    run: str
    weights: str
    rounds: int
    space: Mapping[str, Any]
    limits: Mapping[str, float]
    against: str
    scorer: Mapping[str, Any]
    data: Mapping[str, Any]
    engine: str
    exact: bool
    looked_at: int
    seed: int
    seconds: Mapping[str, float]
    chosen: Entry
    front: tuple[Entry, ...] = ()
    ladder: tuple[Entry, ...] = ()
    measured: tuple[Entry, ...] = ()
    latency: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    created: str = ""

    def quantity(self, name: str) -> Quantity:
        """Return how a cost is said."""
        return Noted(**self.costs[name]) if name in self.costs else COSTS[name]

    def save(self, path: Path) -> None:
        """Write the plan whole.

        Raises
        ------
        PlanError
            If the file exists: a plan is never overwritten.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)
        try:
            write_whole(path, content, overwrite=False)
        except FileExistsError as error:
            raise PlanError(str(error)) from None

    @classmethod
    def load(cls, path: str | Path, *, trust_code: bool = False) -> "Plan":
        """Read a plan.

        Raises
        ------
        PlanError
            If it is not a plan, or has another format version.
        superfednas.common.trust.UntrustedCodeError
            If its space or task is a module that nobody has trusted; ``trust_code`` trusts it.
        """
        if not Path(path).exists():
            raise PlanError(f"plan {str(path)!r}: there is no such file")
        with damage_of(path, PlanError, "is no plan of this project"):
            fields = read_object(Path(path))
            version = fields.pop("format")
        if version != FORMAT:
            raise PlanError(
                f"{str(path)!r} has plan format {version!r:.60}; this version reads {FORMAT}"
            )
        check_code(fields.get("space", {}), path, trust_code)
        with damage_of(path, PlanError):
            fields["chosen"] = fill(Entry, fields["chosen"])
            for name in ("front", "ladder", "measured"):
                fields[name] = tuple(fill(Entry, entry) for entry in fields[name])
            return fill(cls, fields)
