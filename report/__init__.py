"""The report of a run: plots, and one page that holds everything and needs nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING

from server.run_folder import RunFolder
from supernet.files import write_whole

if TYPE_CHECKING:
    from nas.plan import Plan

__all__ = ["draw_plan", "write_report"]


def write_report(run: RunFolder, out: Path | None = None) -> dict[str, Path]:
    """Write a run's plots and page; a run that has not ended gives a page that says so.

    Parameters
    ----------
    run
        The run folder; it is only read, apart from ``report/`` within it. Its plans
        (``plans/plan-*.json``) are told in the page; one that is damaged is named there.
    out
        Folder to write into; None is ``report/`` in the run folder.

    Returns
    -------
    dict
        ``html``, ``rounds`` and ``macs`` to the files' paths.

    Raises
    ------
    RunFolderError
        Where ``metrics.jsonl`` is damaged.
    SettingsError
        Where the run's settings are not ones of this version.
    """
    from report.canvas import DARK, LIGHT
    from report.page import page
    from report.personal_plot import personal_section
    from report.plots import macs_plot, rounds_plot
    from report.search_page import searches_section
    from report.tables import Story
    from server.personal import personal_files

    story = Story.of(run)
    rounds = {theme: rounds_plot(story, theme) for theme in (LIGHT, DARK)}
    macs = {theme: macs_plot(story, theme) for theme in (LIGHT, DARK)}
    html = page(
        story,
        (rounds[LIGHT], rounds[DARK]),
        (macs[LIGHT], macs[DARK]),
        [*personal_section(personal_files(run)), *searches_section(run.path / "plans")],
    )

    folder = run.path / "report" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "html": (folder / "report.html", html),
        "rounds": (folder / "accuracy-over-rounds.png", rounds[LIGHT]),
        "macs": (folder / "accuracy-against-macs.png", macs[LIGHT]),
    }
    for path, content in files.values():
        write_whole(path, content)
    return {key: path for key, (path, _) in files.items()}


def draw_plan(plan: "Plan", folder: Path, stem: str) -> list[Path]:
    """Draw what a search found: scores against the cost, and the chosen subnet's architecture.

    Parameters
    ----------
    plan
        The plan.
    folder
        Where the files go; made where it is not there.
    stem
        What their names begin with.

    Returns
    -------
    list of Path
        ``STEM-scores.png`` and ``STEM-architecture.png``.

    Raises
    ------
    ValueError
        Where the plan's space cannot be loaded, or its architecture is none of that space.
    """
    from report.canvas import LIGHT, png
    from report.network_plot import network_plot
    from report.search_plots import score_plot

    files = {
        folder / f"{stem}-scores.png": png(score_plot(plan, LIGHT)),
        folder / f"{stem}-architecture.png": png(network_plot(plan, LIGHT)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
