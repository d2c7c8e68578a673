"""A run on a SuperLink that is started again, from its last round, until it has ended well."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.superlink import COMPLETED, SuperLink, SuperLinkError
from supernet.config import Scalar

STOPPED = "finished:stopped"
_LEASE = 60.0  # seconds after which Flower calls a run whose ServerApp has gone failed
_PAUSE = 1.0


def keep_going(
    link: SuperLink,
    app: Path,
    settings: Mapping[str, Scalar],
    run_config: str,
    *,
    attempts: int,
    patience: float,
    note: Callable[[str], None],
) -> None:
    """Run an app until it has ended well; what is there of its run folder is gone on with.

    Parameters
    ----------
    link
        The SuperLink.
    app
        The folder with the app's pyproject.toml.
    settings
        Of the run, ``run-dir`` among them, as the SuperLink's machine calls it.
    run_config
        Further settings as ``flwr run --run-config`` takes them.
    attempts
        How often the run is started at most.
    patience
        Seconds to wait for a SuperLink that does not answer.
    note
        Called with a sentence at every start and end.

    Raises
    ------
    SuperLinkError
        Where the run was stopped by somebody, no start ends well, the SuperLink stays away, or
        answers and refuses the first start: a wrong setting or app is not tried again.
    """
    for number in range(1, attempts + 1):
        run, ended = "", ""
        try:
            run = link.submit(app, {**settings, "keep-going": True}, run_config)
            note(f"start {number} of at most {attempts}: run {run}")
            ended = link.follow(run)
        except SuperLinkError as error:
            ended = str(error)
            if number == 1 and not run and _answers(link):
                raise
        if ended == COMPLETED:
            return
        if ended == STOPPED:
            raise SuperLinkError(f"run {run} was stopped")
        note(f"start {number} has ended: {ended}")
        if number < attempts:
            if not _answers(link):
                note(f"waiting for the SuperLink, at most {patience:g} s")
                _wait(link, patience)
            _wait_for_end(link, run)
    raise SuperLinkError(f"the run has not ended well in {attempts} starts")


def _answers(link: SuperLink) -> bool:
    try:
        link.online()
    except SuperLinkError:
        return False
    return True


def _wait(link: SuperLink, patience: float) -> None:
    """Wait until the SuperLink answers."""
    deadline = time.monotonic() + patience
    while True:
        try:
            link.online()
        except SuperLinkError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _wait_for_end(link: SuperLink, run: str) -> None:
    """Wait until Flower calls a run ended: until then its ServerApp may write into the folder."""
    deadline = time.monotonic() + _LEASE
    while run and time.monotonic() < deadline:
        try:
            if link.ended(run):
                return
        except SuperLinkError:  # a SuperLink without a database knows nothing of it
            return
        time.sleep(_PAUSE)
