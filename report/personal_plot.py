"""The plot of a personalisation: accuracy on the clients' own test images against cost.

With some hundred random subnets it is Figure 5 of Kim and Yun (FedSup).
"""

from collections.abc import Mapping
from typing import Any

from report.canvas import Theme, head, new_figure, plain, png


def personal_plot(table: Mapping[str, Any], theme: Theme) -> bytes:
    """Draw what :func:`server.personal.personalise_by_nodes` has written, as a PNG.

    Every subnet has two dots, before and after fine-tuning: means over clients. Bars of one
    standard deviation over clients stand where they do not hide each other.
    """
    figure = new_figure(theme, height=4.6)
    axes = figure.subplots()
    plain(axes, theme)
    rows = table["subnets"]
    clients = max(len(row["clients"]) for row in rows)
    few = len(rows) <= _BARS
    head(
        axes,
        f"{len(rows)} subnets before and after personalisation",
        f"accuracy on the own test images of {clients} clients, mean"
        + (" ± s.d. over clients" if few else "")
        + f"; {table['part']}, {table['epochs']} epochs, after {table['rounds']} rounds",
        theme,
    )
    for which, colour, shift in (("initial", theme.line, -1), ("personalised", theme.accent, 1)):
        # Side by side, so that the two bars of a subnet can be told apart.
        width = max(row["macs"] for row in rows) / 1e6 * _APART if few else 0.0
        axes.errorbar(
            [row["macs"] / 1e6 + shift * width for row in rows],
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


_BARS = 20
_APART = 0.004
