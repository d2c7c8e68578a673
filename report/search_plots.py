"""The plot of a search: scores against a cost, with what was measured, found and chosen."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from superfednas.nas.plan import Plan
from superfednas.report.canvas import Theme, head, metric_axis, metric_title, new_figure, plain
from superfednas.report.labels import Label, place
from superfednas.report.search_points import Mark, Points, score_prefix
from superfednas.report.searches import SHORT, examples_in, limits_of, score_of, scored_by
from superfednas.report.tables import macs_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "macs": "multiply-accumulates of one {example}",
    "params": "parameters",
    "bytes": "exported file, float32 (MB)",
    "memory": "peak of activations, one {example}, float32 (kB)",
    "latency": "latency of a batch (ms)",
}
_DECADE = 10.0
_SPAN = 0.04  # minimum range of shares: error bars show the noise
_BARS = 80  # more error bars would hide each other
_CHARACTERS = 120  # a line of the caption
_FAR = 1.5  # a limit further beyond the most expensive point would squeeze all points together
_ALONG = 400  # points that represent a line when labels look for room


def score_plot(plan: Plan, theme: Theme) -> "Figure":
    """Draw scores against the plan's cost (MACs if it has none)."""
    points = Points.of(plan)
    scorer = plan.scorer["name"]
    figure = new_figure(theme, height=5.4)
    axes = figure.subplots()
    plain(axes, theme)
    metric, prefix = points.metric, score_prefix(plan)
    what = metric.name if metric is not None else f"{SHORT.get(scorer, scorer)} score"
    title = f"{plan.space['space']}: {what} against {SHORT.get(points.cost, points.cost)}"
    # Limits that are not a line in the plot are in its caption.
    said = filter(None, [scored_by(plan), limits_of(plan, without=points.cost)])
    head(axes, title, textwrap.fill("; ".join(said), _CHARACTERS), theme)
    axes.set_xlabel(_title(plan, points))
    score_title = (
        metric_title(metric, "validation")
        if metric is not None
        else what
        if prefix is None
        else macs_title(prefix, examples_in(plan))
    )
    axes.set_ylabel(score_title, parse_math=False)
    _set_axes(axes, points)
    _draw(axes, points, theme)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
    )
    labels = [*_chosen_label(plan, points, theme), *_limit_label(axes, plan, points, theme)]
    labels += [Label(mark.name, mark.x, mark.y, theme.ink) for mark in points.ladder]
    place(axes, labels, _covered(axes, points), theme)
    return figure


def _set_axes(axes: "Axes", points: Points) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    costs = [mark.x for mark in points.all]
    least, most = min(costs), max(costs)
    if points.limit is not None and points.limit <= _FAR * most:
        most = max(most, points.limit)
    if least > 0 and most / least > _DECADE:
        axes.set_xscale("log")
        room = (most / least) ** 0.06
        axes.set_xlim(least / room, most * room)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    else:
        room = 0.06 * (most - least) or 0.05 * most or 1.0
        axes.set_xlim(least - room, most + room)
    ends = [mark.y + sign * mark.error for mark in points.all for sign in (-1, 1)]
    if points.metric is not None:
        metric_axis(axes, points.metric, ends, room=0.12, least_span=_SPAN)
    else:
        room = 0.12 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
        axes.set_ylim(min(ends) - room, max(ends) + room)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _draw(axes: "Axes", points: Points, theme: Theme) -> None:
    predicted = "predicted" if points.predicted else ""
    said = f"{len(points.measured)} measured subnets"
    _marks(axes, points.measured, said, theme, "o", color=theme.muted, markersize=4, alpha=0.6)
    if points.front:
        said = " ".join(filter(None, ["front: best", predicted, "at or below a cost"]))
        said += f", {len(points.front)} subnets"
        axes.plot(*points.steps.T, color=theme.line, linewidth=2, zorder=3, label=said)
    said = ", ".join(filter(None, ["ladder", predicted]))
    _marks(axes, points.ladder, said, theme, "s", color=theme.ends, markersize=6.5, zorder=4)
    said = ", ".join(filter(None, ["chosen", predicted]))
    _marks(axes, [points.chosen], said, theme, "D", color=theme.accent, markersize=9, zorder=6)
    if points.check is not None:
        axes.errorbar(
            [points.check.x],
            [points.check.y],
            yerr=[points.check.error],
            fmt="o",
            color=theme.accent,
            markerfacecolor=theme.paper,
            markersize=5,
            capsize=4,
            zorder=7,
            label="chosen, measured, ± standard error",
        )
    if points.limit is not None and points.limit <= axes.get_xlim()[1]:
        dashes = (0, (5, 3))
        axes.axvline(points.limit, color=theme.ink, linewidth=1.2, linestyle=dashes, zorder=1)


def _marks(
    axes: "Axes", marks: Sequence[Mark], said: str, theme: Theme, shape: str, **style: Any
) -> None:
    """Draw markers of one kind, hollow outside the limits, with error bars if they fit."""
    bars = len(marks) <= _BARS and any(mark.error for mark in marks)
    said += ", ± standard error" if bars else ""
    groups = [[mark for mark in marks if mark.kept == kept] for kept in (True, False)]
    said += "; hollow: outside the limits" if groups[1] else ""
    for group, face in zip(groups, (style["color"], theme.paper), strict=True):
        if group:
            axes.errorbar(
                [mark.x for mark in group],
                [mark.y for mark in group],
                yerr=[mark.error for mark in group] if bars else None,
                fmt=shape,
                markerfacecolor=face,
                elinewidth=0.8,
                label=said,
                **style,
            )
            said = "_"  # named once


def _title(plan: Plan, points: Points) -> str:
    cost, examples, quantity = points.cost, examples_in(plan), plan.quantity(points.cost)
    counts = "" if points.prefix is None else points.prefix.word
    title = _TITLES.get(cost, f"{quantity.title} ({quantity.unit})")
    title = title.replace("{example}", examples.removesuffix("s"))
    return f"{title} ({counts})" if counts else title


def _chosen_label(plan: Plan, points: Points, theme: Theme) -> list[Label]:
    cost = plan.quantity(points.cost).say(plan.chosen.costs[points.cost])
    said = f"chosen: {score_of(plan, plan.chosen, short=True)}\n{cost}"
    chosen = points.chosen
    return [Label(said, chosen.x, chosen.y, theme.accent, needed=True, above=True)]


def _limit_label(axes: "Axes", plan: Plan, points: Points, theme: Theme) -> list[Label]:
    if points.limit is None:
        return []
    said = f"limit {plan.quantity(points.cost).say(plan.limits[points.cost])}"
    (low, high), right = axes.get_ylim(), axes.get_xlim()[1]
    top = high - 0.04 * (high - low)
    if points.limit > right:
        return [Label(f"{said} →", right, top, theme.muted, needed=True)]
    return [Label(said, points.limit, top, theme.ink, needed=True)]


def _covered(axes: "Axes", points: Points) -> np.ndarray:
    """Return (points, 2) that labels should not hide: markers, ends of error bars, lines."""
    found = [(m.x, m.y + m.error * side) for m in points.all for side in (-1, 0, 1)]
    if points.check is not None:
        error = np.linspace(-points.check.error, points.check.error, 9)
        found += [(points.check.x, float(points.check.y + e)) for e in error]
    if points.limit is not None:
        found += [(points.limit, float(y)) for y in np.linspace(*axes.get_ylim(), _ALONG)]
    if points.front:
        corners = np.arange(len(points.steps))
        along = np.linspace(0, len(corners) - 1, _ALONG)
        line = np.stack([np.interp(along, corners, axis) for axis in points.steps.T], axis=1)
        return np.concatenate([np.array(found), line])
    return np.array(found)
