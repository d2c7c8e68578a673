"""A run on a SuperLink, restarted from its last round until it succeeds."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from superfednas.common.settings import Scalar
from superfednas.deploy.fleet.superlink import COMPLETED, Ending, SuperLink, SuperLinkError

STOPPED = "finished:stopped"
_LEASE = 60.0  # seconds after which Flower declares a run failed whose ServerApp is gone
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


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
    """Run an app until it succeeds, resuming from its run folder.

    If an earlier start is still using the run folder, follow that one.

    Parameters
    ----------
    link
        The SuperLink.
    app
        The folder with the app's pyproject.toml.
    settings
        The run's settings, including ``run-dir`` as a path on the SuperLink's machine.
    run_config
        Further settings, as ``flwr run --run-config`` takes them.
    attempts
        How many starts in a row may end without a round that used a reply.
    patience
        Seconds to wait for a SuperLink that does not answer.
    note
        Called with a sentence at every start and end.

    Raises
    ------
    SuperLinkError
        If somebody stopped the run, no start succeeds, the SuperLink stays away, or the first start
        is refused: because of the SuperLink's certificate, by the SuperLink, or by the app before a
        reply was used. Repeating it would not help.
    """
    number = in_vain = 0
    while in_vain < attempts:
        number += 1
        run, ending = "", Ending("")
        try:
            run = link.submit(app, {**settings, "keep-going": True}, run_config)
            note(f"start {number}: run {run}")
            ending = link.follow(run)
            if number == 1 and ending.at_work:
                run = ending.at_work
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
    raise SuperLinkError(f"the run has failed: {attempts} starts in a row have used no reply")


def _refuse(link: SuperLink, error: SuperLinkError) -> None:
    """Raise if a first start was refused for a reason that waiting does not resolve."""
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
                    "back, the same command resumes after the last finished round"
                ) from None
            time.sleep(_PAUSE)
        else:
            return


def _wait_for_end(link: SuperLink, run: str) -> None:
    """Wait until Flower declares a run ended; until then its ServerApp may still write."""
    deadline = time.monotonic() + _LEASE
    while run and time.monotonic() < deadline:
        try:
            if link.ended(run):
                return
        except SuperLinkError:  # a SuperLink without a database does not know it
            return
        time.sleep(_PAUSE)
