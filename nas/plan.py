"""Plans: what a search chose, from what, and how; written once, so that testing stays apart.

A plan holds seeds, digests of the weights and of the images that scores were measured on, and
every architecture that was measured, found or chosen. Test images are read later, once, by whoever
opens the plan for that.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.accuracy import Score
from nas.costs import Costs
from supernet import Architecture
from supernet.files import write_whole

FORMAT = 1


class PlanError(ValueError):
    """A plan that cannot be used; the message names the file and says why."""


@dataclass(frozen=True)
class Entry:
    """One network of a plan.

    Parameters
    ----------
    name
        What it is in the plan: ``chosen``, or its name on the ladder; may be empty.
    architecture
        The architecture's JSON object.
    costs
        Every cost that could be told: MACs, parameters, bytes, memory, perhaps latency.
    score
        What the search maximised, for instance predicted accuracy; None where it has none.
    measured
        ``accuracy``, ``loss`` and ``examples`` on the scoring images; None where not measured.
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
        measured: Score | None = None,
    ) -> "Entry":
        """Describe an architecture."""
        return cls(
            architecture=json.loads(arch.to_json()),
            costs=costs.all(arch),
            name=name,
            score=score,
            measured=None
            if measured is None
            else {
                "accuracy": measured.accuracy,
                "loss": measured.loss,
                "examples": measured.examples,
            },
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
        The run folder, the digest of its supernet's tensors, how long it had been trained; empty
        where nothing was trained.
    space
        Options of :func:`supernet.load_space`.
    limits
        Cost name to the most that was allowed.
    against
        The cost of the front; empty where only the best subnet was searched.
    scorer
        How subnets were scored: ``name``, ``measured`` (how many), ``rank_correlation``, and so on.
    data
        The images that scores were measured on: ``name``, ``split``, ``images``, ``digest``.
    engine, exact, looked_at
        How the space was searched.
    seed
        Of the measured subnets and of evolution.
    seconds
        ``scoring`` and ``search``.
    chosen
        The subnet to take within the limits: the optimum of the score or, where the score is
        predicted, a measured subnet that did better (by the mean of prediction and measurement).
    front, ladder, measured
        Further networks: the Pareto front, the run's ladder, all that were measured.
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
    created: str = ""

    def save(self, path: Path) -> None:
        """Write the plan whole.

        Raises
        ------
        PlanError
            Where the file is there already: a plan is never overwritten.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)
        try:
            write_whole(path, content, overwrite=False)
        except FileExistsError as error:
            raise PlanError(str(error)) from None

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan.

        Raises
        ------
        PlanError
            Where it is none, or of another format version.
        """
        if not Path(path).exists():
            raise PlanError(f"plan {str(path)!r}: there is no such file")
        try:
            fields = json.loads(Path(path).read_text())
            version = fields.pop("format")
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise PlanError(f"{str(path)!r} is no plan of this project: {error}") from None
        if version != FORMAT:
            raise PlanError(
                f"{str(path)!r} has plan format {version!r}; this version reads {FORMAT}"
            )
        try:
            fields["chosen"] = Entry(**fields["chosen"])
            for name in ("front", "ladder", "measured"):
                fields[name] = tuple(Entry(**entry) for entry in fields[name])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise PlanError(f"{str(path)!r} is damaged: {error}") from None
