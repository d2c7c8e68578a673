"""The report of a run: plots, and one page that holds everything and needs nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING

from superfednas.common.files import write_whole
from superfednas.records.folder import RunFolder

if TYPE_CHECKING:
    from superfednas.nas.plan import Plan

__all__ = ["draw_plan", "write_report"]


def write_report(run: RunFolder, out: Path | None = None) -> dict[str, Path]:
    """Write a run's plots and page; the page of an unfinished run says so.

    Parameters
    ----------
    run
        The run folder; it is only read, except for ``report/`` within it. The page describes its
        plans (``plans/plan-*.json``) and names damaged ones.
    out
        Folder to write into; None for ``report/`` in the run folder.

    Returns
    -------
    dict
        ``html``, ``rounds`` and ``macs`` to the files' paths.

    Raises
    ------
    RunFolderError
        If ``metrics.jsonl`` is damaged.
    SettingsError
        If the run's settings are not those of this version.
    """
    from superfednas.report.canvas import DARK, LIGHT
    from superfednas.report.page import page
    from superfednas.report.personal_plot import personal_section
    from superfednas.report.plots import macs_plot, rounds_plot
    from superfednas.report.search_page import searches_section
    from superfednas.report.tables import Story
    from superfednas.server.errands.personalise import personal_files

    story = Story.of(run)
    drawn = "accuracy" if story.metric.name == "accuracy" else "metric"
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
        "rounds": (folder / f"{drawn}-over-rounds.png", rounds[LIGHT]),
        "macs": (folder / f"{drawn}-against-macs.png", macs[LIGHT]),
    }
    for path, content in files.values():
        write_whole(path, content)
    return {key: path for key, (path, _) in files.items()}


def draw_plan(plan: "Plan", folder: Path, stem: str) -> list[Path]:
    """Draw the result of a search: scores against the cost, and the chosen subnet's architecture.

    Parameters
    ----------
    plan
        The plan.
    folder
        Where the files go; created if missing.
    stem
        The beginning of their names.

    Returns
    -------
    list of Path
        ``STEM-scores.png`` and ``STEM-architecture.png``.

    Raises
    ------
    ValueError
        If the plan's space cannot be loaded, or its architecture does not belong to that space.
    """
    from superfednas.report.canvas import LIGHT, png
    from superfednas.report.network_plot import network_plot
    from superfednas.report.search_plots import score_plot

    files = {
        folder / f"{stem}-scores.png": png(score_plot(plan, LIGHT)),
        folder / f"{stem}-architecture.png": png(network_plot(plan, LIGHT)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
