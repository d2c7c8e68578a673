"""The plot of personalisation: the metric on the clients' own test examples, before and after.

With some hundred random subnets it reproduces Figure 5 of Kim and Yun (FedSup).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from superfednas.common.damage import DAMAGE, read_object
from superfednas.common.words import prefix_of
from superfednas.report.canvas import DARK, LIGHT, Theme, head, metric_title, new_figure, plain, png
from superfednas.report.markup import image, table, text_of
from superfednas.report.tables import macs_title, upper_first
from superfednas.server.errands.personalise import headings_of, said_rows
from superfednas.tasks.metric import PERCENT
from superfednas.tasks.registry import metric_of

_BARS = 20  # more error bars would hide each other
_APART = 0.004  # of the most expensive subnet's cost: offset between the two bars of a subnet
_ROWS = 20


def personal_section(files: list[Path]) -> list[str]:
    """Return the page's section on the newest personalisation; empty if there is none.

    Parameters
    ----------
    files
        What :func:`superfednas.server.errands.personalise.personal_files` found.
    """
    if not files:
        return []
    title = f"<h2>Personalised on the clients</h2><p>{text_of(files[-1].name)}</p>"
    try:
        found = read_object(files[-1])
        plots = personal_plot(found, LIGHT), personal_plot(found, DARK)
        lines, headings = said_rows(found, _ROWS), headings_of(found)
        metric = metric_of(found.get("metric"))
    except DAMAGE as error:
        return [title, f"<p>Unreadable: {text_of(f'{type(error).__name__}: {error}')}</p>"]
    name = upper_first(metric.name)
    caption = f"{name} on the clients' own test examples, mean ± s.d. over clients"
    alt = f"{name} before and after personalisation against multiply-accumulates"
    return [title, image(plots, alt), table(headings, lines, caption)]


def personal_plot(found: Mapping[str, Any], theme: Theme) -> bytes:
    """Draw what ``personalise_by_nodes`` (server/errands) has written, as a PNG.

    Every subnet has two dots, before and after fine-tuning: means over clients. Bars of one
    standard deviation over clients are drawn if they do not hide each other.
    """
    figure = new_figure(theme, height=4.6)
    axes = figure.subplots()
    plain(axes, theme)
    rows, metric = found["subnets"], metric_of(found.get("metric"))
    prefix = prefix_of(row["macs"] for row in rows)
    scale = 100 if metric.unit == PERCENT else 1
    clients = max(len(row["clients"]) for row in rows)
    few = len(rows) <= _BARS
    head(
        axes,
        f"{len(rows)} subnets before and after personalisation",
        f"{metric.name} on the own test examples of {clients} clients, mean"
        + (" ± s.d. over clients" if few else "")
        + f"; {found['part']}, {found['epochs']} epochs, after {found['rounds']} rounds",
        theme,
    )
    apart = max(row["macs"] for row in rows) / prefix.size * _APART if few else 0.0
    for which, colour, side in (("initial", theme.line, -1), ("personalised", theme.accent, 1)):
        axes.errorbar(
            [row["macs"] / prefix.size + side * apart for row in rows],
            [row[which]["mean"] * scale for row in rows],
            yerr=[row[which]["sd"] * scale for row in rows] if few else None,
            fmt="o",
            markersize=5 if few else 3,
            elinewidth=1,
            color=colour,
            label=which,
        )
    axes.set_xlabel(macs_title(prefix, "examples"))
    axes.set_ylabel(metric_title(metric), parse_math=False)
    axes.legend(frameon=False, labelcolor=theme.ink, loc="lower right")
    return png(figure)
