"""What personalisation brought: accuracies on the clients' own test images, before and after.

With some hundred random subnets the plot is Figure 5 of Kim and Yun (FedSup).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report.canvas import DARK, LIGHT, Theme, head, new_figure, plain, png
from report.markup import image, table, text_of
from server.personal import HEADINGS, said_rows

_BARS = 20  # more error bars than these hide each other
_APART = 0.004  # of the dearest subnet's cost: two bars of one subnet stand side by side
_ROWS = 20


def personal_section(files: list[Path]) -> list[str]:
    """Return the page's section on the newest personalisation; nothing where there is none.

    Parameters
    ----------
    files
        What :func:`server.personal.personal_files` found.
    """
    if not files:
        return []
    title = f"<h2>Personalised on the clients</h2><p>{text_of(files[-1].name)}</p>"
    try:
        found = json.loads(files[-1].read_text("utf-8"))
        plots = personal_plot(found, LIGHT), personal_plot(found, DARK)
        lines = said_rows(found, _ROWS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [title, f"<p>Unreadable: {text_of(f'{type(error).__name__}: {error}')}</p>"]
    caption = "Accuracy on the clients' own test images, mean ± s.d. over clients"
    alt = "Accuracy before and after personalisation against multiply-accumulates"
    return [title, image(plots, alt), table(HEADINGS, lines, caption)]


def personal_plot(found: Mapping[str, Any], theme: Theme) -> bytes:
    """Draw what :func:`server.personal.personalise_by_nodes` has written, as a PNG.

    Every subnet has two dots, before and after fine-tuning: means over clients. Bars of one
    standard deviation over clients stand where they do not hide each other.
    """
    figure = new_figure(theme, height=4.6)
    axes = figure.subplots()
    plain(axes, theme)
    rows = found["subnets"]
    clients = max(len(row["clients"]) for row in rows)
    few = len(rows) <= _BARS
    head(
        axes,
        f"{len(rows)} subnets before and after personalisation",
        f"accuracy on the own test images of {clients} clients, mean"
        + (" ± s.d. over clients" if few else "")
        + f"; {found['part']}, {found['epochs']} epochs, after {found['rounds']} rounds",
        theme,
    )
    apart = max(row["macs"] for row in rows) / 1e6 * _APART if few else 0.0
    for which, colour, side in (("initial", theme.line, -1), ("personalised", theme.accent, 1)):
        axes.errorbar(
            [row["macs"] / 1e6 + side * apart for row in rows],
            [row[which]["mean"] * 100 for row in rows],
            yerr=[row[which]["sd"] * 100 for row in rows] if few else None,
            fmt="o",
            markersize=5 if few else 3,
            elinewidth=1,
            color=colour,
            label=which,
        )
    axes.set_xlabel("multiply-accumulates of one image (millions)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False, labelcolor=theme.ink, loc="lower right")
    return png(figure)
