"""The plots: the metric over rounds above β, and against MACs above the assignments."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from superfednas.records.rows import Rung
from superfednas.report.canvas import (
    Theme,
    head,
    metric_axis,
    metric_title,
    new_figure,
    plain,
    png,
    ramp,
)
from superfednas.report.tables import Story, ladder_caption
from superfednas.server.journal.evaluation import HARDLY, hardly_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 12  # a legend with more entries is unreadable
_LABELLED = 9


def _is_random(rung: Rung) -> bool:
    """Return whether a rung is the ladder's random one, which is not a step of MACs."""
    return rung.name.startswith("random")


# The metric over rounds


def rounds_plot(story: Story, theme: Theme) -> bytes:
    """Draw the ladder's metric over rounds, with β below if there is one; return a PNG."""
    metric = story.metric
    betas = [(row.round, row.beta) for row in story.rounds if row.beta is not None]
    figure = new_figure(theme, height=5.4)
    if betas:
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        curve = low.plot(*zip(*betas, strict=True), color=theme.muted, marker=_marker(betas))[0]
        curve.set(markersize=3, clip_on=False)
        low.set_ylim(0, 1)
        low.set_yticks([0, 0.5, 1])
        low.set_ylabel("β")
    else:
        top = low = figure.subplots()
    for axes in {top, low}:
        plain(axes, theme)
    low.set_xlabel("round")
    low.set_xlim(0, max([1, *(row.round for row in story.rounds)]))
    low.xaxis.get_major_locator().set_params(integer=True)
    evaluations = story.evaluations
    under = f"{evaluations[-1].split} {metric.name} of the ladder" if evaluations else ""
    head(top, f"{story.title}: {metric.name} over rounds", under, theme)
    top.set_ylabel(metric_title(metric), parse_math=False)
    if evaluations:
        _draw_lines(top, story, theme)
        _legend(figure, top, story, theme)
    else:
        _note(top, story, theme)
        if not story.rounds:
            low.set_xticks([])
    return png(figure)


def _marker(points: Sequence[object]) -> str | None:
    """Mark each of a few points: a single one would not be a line."""
    return "o" if len(points) <= 30 else None


def _draw_lines(axes: "Axes", story: Story, theme: Theme) -> None:
    evaluations, metric, prefix = story.evaluations, story.metric, story.prefix
    # Clients score only the rungs inside their own subnet, so a rung may miss an evaluation.
    rungs = {rung.name: rung for row in evaluations for rung in row.ladder}
    steps = sorted((r for r in rungs.values() if not _is_random(r)), key=lambda r: -r.macs)
    every = math.ceil(len(steps) / _NAMED)
    series = [
        (
            rung,
            ramp(theme, 1 - index / max(1, len(steps) - 1)),
            index % every == 0 or rung is steps[-1],
        )
        for index, rung in enumerate(steps)
    ]
    series += [(rung, theme.accent, True) for rung in rungs.values() if _is_random(rung)]
    marker = _marker(evaluations)
    for rung, colour, named in series:
        points = [
            (row.trained_rounds, found[metric.name])
            for row in evaluations
            for found in row.ladder
            if found.name == rung.name
        ]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=1.8,
            linestyle=(0, (4, 2)) if _is_random(rung) else "-",
            marker=marker,
            markersize=4,
            clip_on=False,
            label=f"{rung.name} ({prefix.say(rung.macs)})" if named else None,
        )
    values = [r[metric.name] for row in evaluations for r in row.ladder]
    metric_axis(axes, metric, values, room=0.05)


def _legend(figure: "Figure", axes: "Axes", story: Story, theme: Theme) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        labelcolor=theme.ink,
        title=f"subnet ({story.prefix.letter}MACs)",
        alignment="left",
    )
    legend.get_title().set_color(theme.muted)


# The metric against MACs


def macs_plot(story: Story, theme: Theme) -> bytes:
    """Draw the ladder's metric against MACs, and the assignments' MACs below; return a PNG."""
    metric = story.metric
    figure = new_figure(theme, height=5.8)
    if story.summary is None:
        top = low = figure.subplots()
    else:
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
        _draw_coverage(top, low, story, theme)
    for axes in {top, low}:
        plain(axes, theme)
    low.set_xlabel(story.macs_title)
    last = story.last
    under = "" if last is None else ladder_caption(story, last)
    head(top, f"{story.title}: {metric.name} against MACs", under, theme)
    top.set_ylabel(metric_title(metric), parse_math=False)
    if last is None:
        _note(top, story, theme)
        if story.summary is None:
            low.set_xticks([])
    else:
        _draw_points(top, story, last.ladder, theme)
    return png(figure)


def _draw_points(axes: "Axes", story: Story, rungs: Sequence[Rung], theme: Theme) -> None:
    from matplotlib.patheffects import withStroke

    metric, size = story.metric, story.prefix.size
    steps = sorted((r for r in rungs if not _is_random(r)), key=lambda r: r.macs)
    randoms = [rung for rung in rungs if _is_random(rung)]
    for some, colour, marker, line in (
        (steps, theme.line, "o", "-"),
        (randoms, theme.accent, "D", ""),
    ):
        axes.plot(
            [rung.macs / size for rung in some],
            [rung[metric.name] for rung in some],
            color=colour,
            marker=marker,
            markersize=6.5,
            linewidth=1.8,
            linestyle=line,
        )
    sides = _sides(metric.name, steps, randoms)
    for index, rung in enumerate([*steps, *randoms]):
        if len(steps) > _LABELLED and index not in (0, len(steps) - 1) and not _is_random(rung):
            continue
        axes.annotate(
            f"{rung.name}\n{metric.say(rung[metric.name], 1)}",
            (rung.macs / size, rung[metric.name]),
            xytext=(0, 8 * sides[index]),
            textcoords="offset points",
            ha="center",
            va="bottom" if sides[index] > 0 else "top",
            color=theme.accent if _is_random(rung) else theme.ink,
            fontsize=9,
            parse_math=False,
            path_effects=[withStroke(linewidth=2, foreground=theme.paper)],
        )
    axes.margins(x=0.07)
    metric_axis(axes, metric, [rung[metric.name] for rung in rungs], room=0.22)


def _sides(metric: str, steps: Sequence[Rung], randoms: Sequence[Rung]) -> list[int]:
    """Place each label above (1) or below (-1), away from the line through ``steps``."""
    import numpy as np

    x, y = [r.macs for r in steps], [r[metric] for r in steps]
    sides = []
    for index in range(len(steps)):
        others = [i for i in (index - 1, index + 1) if 0 <= i < len(steps)]
        chord = np.interp(x[index], [x[i] for i in others], [y[i] for i in others]) if others else 0
        sides.append(1 if y[index] >= chord else -1)
    for rung in randoms:
        over = bool(steps) and rung[metric] > np.interp(rung.macs, x, y)
        sides.append(1 if over else -1)
        if steps:
            # It is usually close to a step, whose label then goes to the other side.
            sides[min(range(len(steps)), key=lambda i: abs(x[i] - rung.macs))] = -sides[-1]
    return sides


def _draw_coverage(top: "Axes", low: "Axes", story: Story, theme: Theme) -> None:
    from matplotlib.ticker import PercentFormatter

    assert story.summary is not None
    ranges, size = story.summary.coverage, story.prefix.size
    least, most = ranges[0].low / size, ranges[-1].high / size
    low.bar(
        [entry.low / size for entry in ranges],
        [entry.share for entry in ranges],
        width=[(entry.high - entry.low) / size for entry in ranges],
        align="edge",
        color=theme.line,
        edgecolor=theme.paper,
        label="subnets between the ends",
    )
    low.bar(
        [least, most],
        list(story.end_shares),
        width=(most - least) / 80 or 0.01,
        color=theme.ends,
        label="the smallest, the largest",
    )
    for index, (start, end) in enumerate(hardly_trained(story.summary)):
        for axes in (top, low):
            axes.axvspan(
                start / size,
                end / size,
                color=theme.faint,
                linewidth=0,
                zorder=0,
                label=f"hardly trained (under {HARDLY:.0%})" if axes is low and not index else None,
            )
    low.set_ylabel("share of\nassignments (%)")
    low.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    low.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=theme.muted,
        borderaxespad=0.2,
        borderpad=0,
    )


def _note(axes: "Axes", story: Story, theme: Theme) -> None:
    """Write into empty axes why they are empty."""
    text = "no evaluation of the ladder yet" if story.rounds else "no round has ended yet"
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.annotate(
        text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=theme.muted
    )
