"""Runs beside each other: what each has sent and computed until a rung was accurate enough."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report.canvas import Theme, accuracy_axis, head, new_figure, plain, png
from server.finale import mac_images
from server.progress import traffic
from server.run_folder import RunFolder
from supernet.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_DASHES = ("-", "-.", ":")  # broken lines of equal strokes are the target's
_MARKED = 30  # more points than these are a line without marks


@dataclass(frozen=True)
class Point:
    """A run at one evaluation.

    Parameters
    ----------
    rounds
        Rounds that the evaluated weights have been trained.
    bytes
        Weight bytes sent and received in these rounds.
    gmac_images
        Forward multiply-accumulates of one image times images trained on in them, in billions.
    accuracy
        The rung's validation accuracy, from 0 to 1.
    """

    rounds: int
    bytes: int
    gmac_images: float
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """A run as a comparison tells it.

    Parameters
    ----------
    name
        What the run is called here.
    path
        Its folder.
    method
        Its setting of that name; None where its settings have none.
    points
        One for every evaluation of the rung, in their order; there is at least one.
    """

    name: str
    path: Path
    method: str | None
    points: tuple[Point, ...]

    @property
    def best(self) -> float:
        """The highest accuracy."""
        return max(point.accuracy for point in self.points)

    @property
    def last(self) -> float:
        """The last accuracy."""
        return self.points[-1].accuracy

    def reach(self, target: float) -> Point | None:
        """Return the first evaluation that is at least as accurate; None where none is."""
        return next((point for point in self.points if point.accuracy >= target), None)


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Parameters
    ----------
    rung
        The subnet of the ladder whose accuracies are compared.
    target
        The accuracy whose cost is asked for.
    target_rule
        Where the target comes from, for people.
    curves
        The runs, in the order they were named.
    """

    rung: str
    target: float
    target_rule: str
    curves: tuple[Curve, ...]


def compare(
    runs: Sequence[RunFolder], names: Sequence[str], rung: str, target: float | None
) -> Comparison:
    """Read runs and set them beside each other.

    Parameters
    ----------
    runs
        The run folders, at least one; they are only read.
    names
        A name for each; empty takes the folders' names.
    rung
        A rung of every run's ladder.
    target
        An accuracy above 0 and at most 1; None is the lowest of the runs' best.

    Raises
    ------
    ValueError
        Where names are not as many as the runs or not all different, the target is no accuracy, a
        run has no evaluation, or not every run has the rung.
    RunFolderError
        Where a ``metrics.jsonl`` is damaged.
    """
    names = names or [run.path.name for run in runs]
    _check_names(names, len(runs))
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"target = {target:g}: must be a number above 0 and at most 1")
    rows = {name: run.rows() for name, run in zip(names, runs, strict=True)}
    _check_rung(rung, {name: rungs_of(found) for name, found in rows.items()})
    curves = tuple(
        Curve(name, run.path, _method(run), curve_of(rows[name], rung))
        for name, run in zip(names, runs, strict=True)
    )
    if target is not None:
        return Comparison(rung, target, "as asked", curves)
    lowest = min(curve.best for curve in curves)
    rule = "the lowest of the runs' best accuracies, so that every run reaches it"
    return Comparison(rung, lowest, rule, curves)


def rungs_of(rows: Sequence[Row]) -> set[str]:
    """Return the names of all rungs that a run's rows evaluate."""
    return {rung["name"] for row in rows if row["kind"] == "evaluation" for rung in row["ladder"]}


def curve_of(rows: Sequence[Row], rung: str) -> tuple[Point, ...]:
    """Return a rung's evaluations, each with what the run had cost until then.

    Parameters
    ----------
    rows
        The lines of a run's ``metrics.jsonl``, rounds in their order.
    rung
        The rung; an evaluation without it, as clients make, gives no point.
    """
    rounds = [row for row in rows if row["kind"] == "round"]
    numbers = [row["round"] for row in rounds]
    sent = list(accumulate(map(traffic, rounds), initial=0))
    computed = list(accumulate((sum(map(mac_images, row["clients"])) for row in rounds), initial=0))
    points = []
    for row in rows:
        if row["kind"] != "evaluation":
            continue
        trained = row["trained_rounds"]
        # Clients score what they receive: that round's own traffic is then not yet part of it.
        until = bisect_right(numbers, trained)
        points += [
            Point(trained, sent[until], computed[until] / 1e9, found["accuracy"])
            for found in row["ladder"]
            if found["name"] == rung
        ]
    return tuple(points)


def _method(run: RunFolder) -> str | None:
    method = run.settings.get("method")
    return None if method is None else str(method)


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


def as_json(comparison: Comparison) -> Row:
    """Return a comparison as JSON values."""
    return {
        "rung": comparison.rung,
        "target": comparison.target,
        "target_rule": comparison.target_rule,
        "runs": [_curve_json(curve, comparison.target) for curve in comparison.curves],
    }


def _curve_json(curve: Curve, target: float) -> Row:
    reached = curve.reach(target)
    return {
        "name": curve.name,
        "run": str(curve.path),
        "method": curve.method,
        "best": curve.best,
        "last": curve.last,
        "reached": None if reached is None else vars(reached),
        "curve": [vars(point) for point in curve.points],
    }


def write_plot(comparison: Comparison, folder: Path, theme: Theme) -> Path:
    """Write ``comparison.png`` into a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.png"
    write_whole(path, comparison_plot(comparison, theme))
    return path


def comparison_plot(comparison: Comparison, theme: Theme) -> bytes:
    """Draw accuracy against bytes and against multiply-accumulates, a line a run; return a PNG."""
    curves = comparison.curves
    figure = new_figure(theme, height=4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    most = max(point.bytes for curve in curves for point in curve.points)
    unit, size = next(((unit, size) for unit, size in _UNITS if most >= size), ("B", 1.0))
    sent = [[point.bytes / size for point in curve.points] for curve in curves]
    computed = [[point.gmac_images for point in curve.points] for curve in curves]
    _draw(left, comparison, sent, theme)
    _draw(right, comparison, computed, theme)
    left.set_xlabel(f"sent and received ({unit})")
    right.set_xlabel("multiply-accumulates, forward (GMAC·images)")
    left.set_ylabel("validation accuracy (%)")
    head(left, "accuracy against communication", f"rung: {comparison.rung}", theme)
    head(right, "accuracy against computation", f"rung: {comparison.rung}", theme)
    accuracies = [point.accuracy for curve in curves for point in curve.points]
    accuracy_axis(left, [*accuracies, comparison.target], room=0.05)
    # Labels are given here and not to the lines: there, one that begins with _ would be left out.
    legend = figure.legend(
        left.get_lines(),
        [*(curve.name for curve in curves), f"target {comparison.target:.2%}"],
        loc="outside lower left",
        ncols=3,
        frameon=False,
        labelcolor=theme.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of folders: no dollar sign of theirs is mathematics
    return png(figure)


def _draw(axes: "Axes", comparison: Comparison, costs: Sequence[list[float]], theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    plain(axes, theme)
    # Okabe and Ito's green and purple beside the theme's own of theirs.
    colours = (theme.line, theme.accent, "#009e73", "#cc79a7", theme.ends, theme.ink)
    for index, (curve, along) in enumerate(zip(comparison.curves, costs, strict=True)):
        axes.plot(
            along,
            [point.accuracy for point in curve.points],
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
