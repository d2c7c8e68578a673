"""The report of a run: two plots, and one page that holds everything and needs nothing else."""

from pathlib import Path

from server.run_folder import RunFolder, write_whole

__all__ = ["write_report"]


def write_report(run: RunFolder, out: Path | None = None) -> dict[str, Path]:
    """Write a run's plots and page; a run that has not ended gives a page that says so.

    Parameters
    ----------
    run
        The run folder; it is only read, apart from ``report/`` within it.
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
    from report.plots import macs_plot, rounds_plot
    from report.tables import Story

    story = Story.of(run)
    rounds = {theme: rounds_plot(story, theme) for theme in (LIGHT, DARK)}
    macs = {theme: macs_plot(story, theme) for theme in (LIGHT, DARK)}
    html = page(story, (rounds[LIGHT], rounds[DARK]), (macs[LIGHT], macs[DARK]))

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
