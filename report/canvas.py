"""Figures in the report's own style: colours for light and dark paper, axes without ornament."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from superfednas.tasks import Metric
from superfednas.tasks.metric import PERCENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; ``ramp`` is the part of viridis that contrasts with ``paper``.

    It runs from the colour of the smallest subnet to that of the largest.
    """

    paper: str
    ink: str
    muted: str
    faint: str
    line: str
    ends: str
    accent: str
    ramp: tuple[float, float]


# Okabe and Ito's blue, orange and vermilion, lighter on dark paper; viridis for ordered values. The
# largest subnet gets the colour furthest from the paper.
LIGHT = Theme(
    "#ffffff", "#1c2127", "#5b6570", "#e7eaee", "#0072b2", "#e69f00", "#d55e00", (0.82, 0.0)
)
DARK = Theme(
    "#15181c", "#e4e8ec", "#9aa4af", "#2a3037", "#56b4e9", "#e69f00", "#ff8f4a", (0.4, 1.0)
)


def new_figure(theme: Theme, height: float) -> "Figure":
    """Return an empty figure without global state, ``height`` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(9, height), dpi=_DPI, layout="constrained", facecolor=theme.paper)


def plain(axes: "Axes", theme: Theme) -> None:
    """Reduce axes to faint horizontal grid lines, a base line and labels."""
    axes.set_facecolor(theme.paper)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.tick_params(colors=theme.muted, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)


def head(axes: "Axes", title: str, under: str, theme: Theme) -> None:
    """Write a title and smaller lines under it."""
    # Names of spaces and data sets may be paths: a dollar sign in them is not mathematics.
    pad = 26 + 13 * under.count("\n")
    axes.set_title(title, loc="left", color=theme.ink, fontsize=12, pad=pad, parse_math=False)
    axes.annotate(
        under,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 9),
        va="bottom",
        textcoords="offset points",
        color=theme.muted,
        fontsize=9,
        parse_math=False,
    )


def metric_title(metric: Metric, before: str = "") -> str:
    """Return the title of a metric's axis: its name and unit, perhaps after another word."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return " ".join(filter(None, [before, metric.name])) + unit


def metric_axis(
    axes: "Axes", metric: Metric, values: Sequence[float], room: float, least_span: float = 0.1
) -> None:
    """Show a metric's values; of shares at least ten points, so that noise is no difference.

    Parameters
    ----------
    axes
        Where.
    metric
        Of which metric.
    values
        At least one; shares from 0 to 1.
    room
        Space above and below them, as a share of their range.
    least_span
        Of shares: less than ten points if error bars show the noise.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    least, most = min(values), max(values)
    if metric.unit != PERCENT:
        extra = room * (most - least) or 0.05 * abs(most) or 1.0
        axes.set_ylim(least - extra, most + extra)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return
    if most - least < least_span:
        least = min(max((least + most - least_span) / 2, 0), 1 - least_span)
        most = least + least_span
    extra = room * (most - least)
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(least - extra, most + extra)
    axes.set_yticks([tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9])
    axes.set_ylim(least - extra, most + extra)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))


def ramp(theme: Theme, share: float) -> Any:
    """Return the colour of a subnet, from 0 for the smallest to 1 for the largest."""
    from matplotlib import colormaps

    start, end = theme.ramp
    return colormaps["viridis"](start + share * (end - start))


def png(figure: "Figure") -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    # Without the library's version, so that the same rows give the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
