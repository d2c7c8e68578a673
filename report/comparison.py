"""Comparison of runs: what each sent and computed until a rung was good enough."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superfednas.common.files import write_whole
from superfednas.common.words import Prefix, prefix_of
from superfednas.records.folder import RunFolder
from superfednas.records.rows import RoundRow, Row, evaluations, of_kind
from superfednas.report.canvas import Theme, head, metric_axis, metric_title, new_figure, plain, png
from superfednas.tasks import Metric
from superfednas.tasks.images.task import ACCURACY
from superfednas.tasks.metric import PERCENT
from superfednas.tasks.registry import metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_DASHES = ("-", "-.", ":")  # lines of equal dashes are reserved for the target
_MARKED = 30  # lines with more points have no markers


@dataclass(frozen=True)
class Point:
    """A run at one evaluation.

    Parameters
    ----------
    rounds
        Rounds for which the evaluated weights were trained.
    bytes
        Weight bytes sent and received in these rounds.
    gmac_images
        Forward multiply-accumulates of one image times images trained on in these rounds, in
        billions.
    value
        The rung's value of the metric on validation examples.
    """

    rounds: int
    bytes: int
    gmac_images: float
    value: float


@dataclass(frozen=True)
class Curve:
    """A run in a comparison.

    Parameters
    ----------
    name
        The run's name here.
    path
        Its folder.
    method
        Its setting of that name; None if it has none.
    points
        One for every evaluation of the rung, in order; at least one.
    metric
        What the points are values of.
    data
        The name of its data set; None if it has none.
    """

    name: str
    path: Path
    method: str | None
    points: tuple[Point, ...]
    metric: Metric = ACCURACY
    data: str | None = None

    @property
    def best(self) -> float:
        """The best value: the highest, or the lowest where less is better."""
        return self.metric.sign * max(self.metric.sign * point.value for point in self.points)

    @property
    def last(self) -> float:
        """The last value."""
        return self.points[-1].value

    def reach(self, target: float) -> Point | None:
        """Return the first evaluation that is at least this good; None if none is."""
        sign = self.metric.sign
        return next((point for point in self.points if sign * (point.value - target) >= 0), None)


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Parameters
    ----------
    rung
        The subnet of the ladder whose values are compared.
    target
        The value whose cost is compared.
    target_rule
        The origin of the target, for human readers.
    curves
        The runs, in the order they were named; all of one metric.
    """

    rung: str
    target: float
    target_rule: str
    curves: tuple[Curve, ...]

    @property
    def metric(self) -> Metric:
        """The metric of all runs."""
        return self.curves[0].metric

    @property
    def prefix(self) -> Prefix:
        """The unit in which all costs of computation can be read."""
        costs = (point.gmac_images * 1e9 for curve in self.curves for point in curve.points)
        return prefix_of([max(costs, default=0.0)], "G")

    @property
    def note(self) -> str:
        """What to know before the values are compared; empty if there is nothing."""
        names = {curve.name: curve.data for curve in self.curves}
        if len(set(names.values())) == 1:
            return ""
        said = ", ".join(f"{name}: {data or 'not recorded'}" for name, data in names.items())
        return f"the runs are on different data sets, so their values do not compare ({said})"


def compare(
    runs: Sequence[RunFolder], names: Sequence[str], rung: str, target: float | None
) -> Comparison:
    """Read runs and compare them.

    Parameters
    ----------
    runs
        The run folders, at least one; they are only read.
    names
        A name for each; empty for the folders' names.
    rung
        A rung of every run's ladder.
    target
        A value of the metric, of shares above 0 and at most 1; None for the worst of the runs'
        best.

    Raises
    ------
    ValueError
        If the number of names differs from that of the runs or names repeat, the target is no
        value of the metric, a run has no evaluation, not every run has the rung, or the runs are
        judged by different metrics.
    RunFolderError
        If a ``metrics.jsonl`` is damaged.
    """
    names = names or [run.path.name for run in runs]
    _check_names(names, len(runs))
    rows = {name: run.rows() for name, run in zip(names, runs, strict=True)}
    _check_rung(rung, {name: rungs_of(found) for name, found in rows.items()})
    metric = _common_metric({name: _metric(found) for name, found in rows.items()})
    _check_target(target, metric)
    curves = tuple(
        Curve(
            name,
            run.path,
            _setting(run, "method"),
            curve_of(rows[name], rung),
            metric,
            _setting(run, "dataset"),
        )
        for name, run in zip(names, runs, strict=True)
    )
    if target is not None:
        return Comparison(rung, target, "as asked", curves)
    worst = metric.sign * min(metric.sign * curve.best for curve in curves)
    end = "lowest" if metric.sign > 0 else "highest"
    values = "accuracies" if metric.name == "accuracy" else "values"
    rule = f"the {end} of the runs' best {values}, so that every run reaches it"
    return Comparison(rung, worst, rule, curves)


def rungs_of(rows: Sequence[Row]) -> set[str]:
    """Return the names of all rungs that a run's rows evaluate."""
    return {rung.name for row in evaluations(rows) for rung in row.ladder}


def curve_of(rows: Sequence[Row], rung: str) -> tuple[Point, ...]:
    """Return a rung's evaluations, each with the run's cost until then.

    Parameters
    ----------
    rows
        The lines of a run's ``metrics.jsonl``, rounds in order.
    rung
        The rung; an evaluation without it, as by clients, gives no point.
    """
    rounds = of_kind(rows, RoundRow)
    numbers = [row.round for row in rounds]
    sent = list(accumulate((row.bytes for row in rounds), initial=0))
    computed = list(accumulate((row.computed for row in rounds), initial=0))
    points = []
    for row in evaluations(rows):
        trained, metric = row.trained_rounds, metric_of(row.metric)
        # Clients score the weights they receive, so that round's own traffic does not count yet.
        until = bisect_right(numbers, trained)
        points += [
            Point(trained, sent[until], computed[until] / 1e9, found[metric.name])
            for found in row.ladder
            if found.name == rung
        ]
    return tuple(points)


def _setting(run: RunFolder, key: str) -> str | None:
    value = run.settings.get(key)
    return None if value is None else str(value)


def _metric(rows: Sequence[Row]) -> Metric:
    return metric_of(evaluations(rows)[-1].metric)


def _common_metric(metrics: Mapping[str, Metric]) -> Metric:
    first, *others = metrics.values()
    if any(other.described() != first.described() for other in others):
        said = ", ".join(f"{name!r}: {metric.name}" for name, metric in metrics.items())
        raise ValueError(f"the runs are judged by different metrics ({said}): compare those of one")
    return first


def _check_target(target: float | None, metric: Metric) -> None:
    if target is None:
        return
    if metric.unit == PERCENT and not 0 < target <= 1:
        raise ValueError(f"target = {target:g}: must be a number above 0 and at most 1")
    if not math.isfinite(target):
        raise ValueError(f"target = {target:g}: must be a number")


def _check_names(names: Sequence[str], wanted: int) -> None:
    if len(names) != wanted:
        raise ValueError(
            f"names = {','.join(names)!r}: must be {wanted}, one a run, with commas between"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"name = {twice!r}: stands for more than one run; names must differ, as --names gives "
            "them"
        )
    if "" in names:
        raise ValueError(f"names = {','.join(names)!r}: a name must not be empty")


def _check_rung(rung: str, ladders: Mapping[str, set[str]]) -> None:
    for name, ladder in ladders.items():
        if not ladder:
            raise ValueError(
                f"run {name!r} has no evaluation: runs to compare must have at least one, as "
                "evaluate-every above 0 makes them"
            )
    lacking = [name for name, ladder in ladders.items() if rung not in ladder]
    if lacking:
        common = set.intersection(*ladders.values())
        allowed = f"must be one of {', '.join(sorted(common))}" if common else "no rung is in all"
        raise ValueError(
            f"rung = {rung!r}: not on the ladder of {', '.join(map(repr, lacking))}; {allowed}"
        )


# As JSON and as a plot


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    return {
        "rung": comparison.rung,
        "target": comparison.target,
        "target_rule": comparison.target_rule,
        "metric": comparison.metric.described(),
        "note": comparison.note,
        "runs": [_curve_json(curve, comparison.target) for curve in comparison.curves],
    }


def _curve_json(curve: Curve, target: float) -> dict[str, Any]:
    reached = curve.reach(target)
    return {
        "name": curve.name,
        "run": str(curve.path),
        "method": curve.method,
        "data": curve.data,
        "best": curve.best,
        "last": curve.last,
        "reached": None if reached is None else _point_json(reached, curve.metric),
        "curve": [_point_json(point, curve.metric) for point in curve.points],
    }


def _point_json(point: Point, metric: Metric) -> dict[str, float]:
    values = dict(vars(point))
    return {metric.name: values.pop("value"), **values}


def write_plot(comparison: Comparison, folder: Path, theme: Theme) -> Path:
    """Write ``comparison.png`` into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.png"
    write_whole(path, comparison_plot(comparison, theme))
    return path


def comparison_plot(comparison: Comparison, theme: Theme) -> bytes:
    """Draw the metric against bytes and multiply-accumulates, one line per run; return a PNG."""
    curves, metric, prefix = comparison.curves, comparison.metric, comparison.prefix
    figure = new_figure(theme, height=4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    most = max(point.bytes for curve in curves for point in curve.points)
    unit, size = next(((unit, size) for unit, size in _UNITS if most >= size), ("B", 1.0))
    sent = [[point.bytes / size for point in curve.points] for curve in curves]
    computed = [
        [point.gmac_images * (1e9 / prefix.size) for point in curve.points] for curve in curves
    ]
    _draw(left, comparison, sent, theme)
    _draw(right, comparison, computed, theme)
    left.set_xlabel(f"sent and received ({unit})")
    right.set_xlabel(f"multiply-accumulates, forward ({prefix.letter}MAC·images)")
    left.set_ylabel(metric_title(metric, "validation"), parse_math=False)
    head(left, f"{metric.name} against communication", f"rung: {comparison.rung}", theme)
    head(right, f"{metric.name} against computation", f"rung: {comparison.rung}", theme)
    values = [point.value for curve in curves for point in curve.points]
    metric_axis(left, metric, [*values, comparison.target], room=0.05)
    # Labels are given here, not to the lines, which would drop labels that begin with _.
    legend = figure.legend(
        left.get_lines(),
        [*(curve.name for curve in curves), f"target {metric.say(comparison.target)}"],
        loc="outside lower left",
        ncols=3,
        frameon=False,
        labelcolor=theme.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # folder names: a dollar sign in them is not mathematics
    return png(figure)


def _draw(axes: "Axes", comparison: Comparison, costs: Sequence[list[float]], theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    plain(axes, theme)
    # Okabe and Ito's green and purple, besides the theme's own colours.
    colours = (theme.line, theme.accent, "#009e73", "#cc79a7", theme.ends, theme.ink)
    for index, (curve, along) in enumerate(zip(comparison.curves, costs, strict=True)):
        axes.plot(
            along,
            [point.value for point in curve.points],
            color=colours[index % len(colours)],
            linestyle=_DASHES[index // len(colours) % len(_DASHES)],
            linewidth=1.8,
            marker="o" if len(along) <= _MARKED else None,
            markersize=4,
            clip_on=False,
        )
    axes.axhline(
        comparison.target,
        color=theme.muted,
        linewidth=1.2,
        linestyle=(0, (5, 3)),
        zorder=1,
    )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
