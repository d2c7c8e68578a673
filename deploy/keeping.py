"""A run on a SuperLink that is started again, from its last round, until it has ended well."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.superlink import COMPLETED, Ending, SuperLink, SuperLinkError
from supernet.config import Scalar

STOPPED = "finished:stopped"
_LEASE = 60.0  # seconds after which Flower calls a run whose ServerApp has gone failed
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_AT_WORK = re.compile(r"is being written by run (\d+)")  # server/run_folder.py


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

    Where an earlier start is still at work in the run folder, that one is followed.

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
        How many starts in a row may end without having finished a round.
    patience
        Seconds to wait for a SuperLink that does not answer.
    note
        Called with a sentence at every start and end.

    Raises
    ------
    SuperLinkError
        Where the run was stopped by somebody, no start ends well, the SuperLink stays away, or the
        first start is refused: by the SuperLink's certificate, by the SuperLink, or by the app
        before a first round. That would be so again.
    """
    number = in_vain = 0
    while in_vain < attempts:
        number += 1
        run, ending = "", Ending("")
        try:
            run = link.submit(app, {**settings, "keep-going": True}, run_config)
            note(f"start {number}: run {run}")
            ending = link.follow(run)
            if number == 1 and (other := _AT_WORK.search(ending.error)):
                run = other[1]
                note(f"run {run} is at work in this run folder already: it is followed")
                ending = link.follow(run)
            ended = ending.status
        except SuperLinkError as error:
            ended = str(error)
            if number == 1 and not run:
                _refuse(link, error)
        if ended == COMPLETED:
            return
        if ended == STOPPED:
            raise SuperLinkError(f"run {run} was stopped")
        if number == 1 and ending.error and not ending.last:
            raise SuperLinkError(ending.error)
        note(f"start {number} has ended: {ended}" + (f": {ending.error}" * bool(ending.error)))
        in_vain = 0 if ending.last > ending.first else in_vain + 1
        if in_vain < attempts:
            if not _answers(link):
                _wait(link, patience, note)
            _wait_for_end(link, run)
            time.sleep(min(_PAUSE * 2**in_vain, _LONGEST_PAUSE))
    raise SuperLinkError(
        f"the run has not ended well: {attempts} starts in a row have finished no round"
    )


def _refuse(link: SuperLink, error: SuperLinkError) -> None:
    """Raise where a first start was refused by what waiting does not mend."""
    if _answers(link):
        raise error
    fault = link.fault()
    if fault is not None and fault.name == "TLS":
        raise SuperLinkError(f"{link.address}: {fault.found}: {fault.remedy}") from error


def _answers(link: SuperLink) -> bool:
    try:
        link.online()
    except SuperLinkError:
        return False
    return True


def _wait(link: SuperLink, patience: float, note: Callable[[str], None]) -> None:
    """Wait until the SuperLink answers."""
    fault = link.fault()
    why = "" if fault is None else f" ({fault.found}: {fault.remedy})"
    note(f"waiting for the SuperLink at {link.address}, at most {patience:g} s{why}")
    deadline = time.monotonic() + patience
    while True:
        try:
            link.online()
        except SuperLinkError:
            if time.monotonic() > deadline:
                raise SuperLinkError(
                    f"{link.address} has not answered for {patience:g} s (--patience): once it is "
                    "there again, the same command goes on after the last finished round"
                ) from None
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
