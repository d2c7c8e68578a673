"""The page's section on searches: requests, results, and tests."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from superfednas.common.damage import DAMAGE
from superfednas.report.canvas import DARK, LIGHT, Theme, png
from superfednas.report.markup import definitions, image, table, text_of
from superfednas.report.network_plot import network_plot
from superfednas.report.search_plots import score_plot
from superfednas.report.searches import Search, plan_files, read_searches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 5


def searches_section(folder: Path) -> list[str]:
    """Return the section on the plans in a folder; empty if there are none.

    The newest :data:`DRAWN` are described and drawn; a table lists all of them.
    """
    searches, problems = read_searches(plan_files(folder))
    if not searches and not problems:
        return []
    parts = ["<h2>Searches</h2>"]
    if len(searches) > 1:
        headings = [
            "plan",
            "asked for",
            "MACs",
            "score",
            "validation",
            "test split",
            "engine",
            "time",
        ]
        caption = "Chosen subnets, the newest search first, with standard errors where known"
        parts.append(table(headings, [search.line for search in searches], caption))
    parts += [f"<p>Unreadable: {text_of(problem)}</p>" for problem in problems]
    for search in searches[:DRAWN]:
        parts += _told(search)
    return parts


def _told(search: Search) -> list[str]:
    plan = search.plan
    parts = [
        f"<h3>{text_of(search.name)}</h3>",
        definitions(search.facts),
        _picture("Scores of subnets against their cost", lambda theme: score_plot(plan, theme)),
        _picture("The chosen subnet’s blocks", lambda theme: network_plot(plan, theme)),
    ]
    if search.test_lines:
        parts.append(table(search.test_headings, search.test_lines, search.test_caption))
    return parts


def _picture(what: str, draw: Callable[[Theme], "Figure"]) -> str:
    try:
        return image((png(draw(LIGHT)), png(draw(DARK))), what)
    except DAMAGE as error:  # a user's own space that is not available here, or a damaged plan
        return f"<p>{what}: cannot be drawn ({text_of(str(error))}).</p>"
