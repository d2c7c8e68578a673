"""Train on a SuperLink, then search, test, export and report.

The demo's runner container runs ``python -m superfednas.deploy.fleet.pipeline``. It reports each
event as one line of JSON, between the output of Flower and of the verbs. The exit status covers the
run and all that follows: 0 only if everything succeeded. The run folder must be on a disk that the
SuperLink's machine and this one share (``--runs``).
"""

import argparse
import datetime
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from superfednas import ROOT
from superfednas.common.settings import Scalar
from superfednas.deploy.fleet.node import command
from superfednas.deploy.fleet.superlink import COMPLETED, SuperLink, SuperLinkError
from superfednas.records.folder import RunFolder, RunFolderError


class RunFailedError(RuntimeError):
    """The run, or a step after it, has failed; the message says which."""


def say(event: str, **details: object) -> None:
    """Print an event as one line of JSON."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    print(json.dumps({"time": now, "event": event, **details}), flush=True)


def train(superlink: SuperLink, settings: dict[str, Scalar], folder: Path) -> None:
    """Run the app and wait for it to end.

    Parameters
    ----------
    superlink
        Where.
    settings
        The run-config.
    folder
        The run folder: new, with the same path on the SuperLink's machine and on this one.

    Raises
    ------
    RunFailedError
        If Flower says that the run failed or was stopped, or the run folder does not say that it
        finished.
    """
    run = superlink.submit(ROOT, {**settings, "run-dir": str(folder)})
    say("submitted", run=run, folder=str(folder), settings=settings)
    ending = superlink.follow(run)
    if ending.status != COMPLETED:
        said = f": {ending.error}" if ending.error else ""
        raise RunFailedError(f"run {run} has ended as {ending.status}{said}")
    written = RunFolder.open(folder).info["status"]
    if written != "finished":
        raise RunFailedError(f"run {run} has left {str(folder)!r} as {written}")
    say("trained", run=run, status=ending.status)


def verb(*arguments: str) -> None:
    """Run a verb of ``superfednas``.

    Raises
    ------
    RunFailedError
        If its exit status is not 0.
    """
    say("verb", arguments=arguments)
    line, environment = command("superfednas.cli", *arguments)
    done = subprocess.run(line, env=environment, check=False)
    if done.returncode:
        raise RunFailedError(f"superfednas {arguments[0]} has ended with status {done.returncode}")


def harvest(folder: Path, out: Path, max_macs: float) -> None:
    """Search, test, export and report a trained run.

    Parameters
    ----------
    folder
        The run folder; the plan is written into it.
    out
        A new folder for the exported subnet, the report, and the run's settings and metrics.
    max_macs
        The limit on the subnet, in MACs per image.

    Raises
    ------
    RunFailedError
        If a step fails.
    """
    out.mkdir(parents=True)
    plan = folder / "plans" / "plan-001.json"
    limits = ["--max-macs", str(max_macs), "--pareto", "macs"]
    verb("search", "--run", str(folder), *limits, "--out", str(plan))
    verb("test", "--plan", str(plan))
    verb("export", "--plan", str(plan), "--out", str(out / "subnet.onnx"))
    verb("report", "--run", str(folder), "--out", str(out / "report"))
    for path in (folder / "run.json", folder / "metrics.jsonl", plan):
        shutil.copy(path, out)


def main(given: Sequence[str] | None = None) -> int:
    """Parse the command line, run everything and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m superfednas.deploy.fleet.pipeline", description=__doc__
    )
    add = parser.add_argument
    add("--superlink", required=True, help="HOST:PORT of the Control API")
    add("--root-certificates", type=Path, help="the authority's certificate; without: plain text")
    add("--nodes", type=int, default=3, help="nodes to wait for, all of them in every round")
    add("--patience", type=float, default=100.0, help="seconds to wait for the nodes")
    add("--rounds", type=int, default=40)
    add("--seed", type=int, default=0)
    add("--max-macs", type=float, default=1e6, help="limit on the subnet to export")
    add("--runs", type=Path, required=True, help="where run folders go, here and at the SuperLink")
    add("--out", type=Path, required=True, help="where the subnet and the report go")
    options = parser.parse_args(given)
    name = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    settings: dict[str, Scalar] = {
        "rounds": options.rounds,
        "seed": options.seed,
        "clients-per-round": options.nodes,
        "min-nodes": options.nodes,
    }
    try:
        with SuperLink(options.superlink, options.root_certificates) as superlink:
            say("nodes", online=superlink.wait_for_nodes(options.nodes, options.patience))
            train(superlink, settings, options.runs / name)
        harvest(options.runs / name, options.out / name, options.max_macs)
    except (RunFailedError, RunFolderError, SuperLinkError, OSError) as error:
        say("failed", reason=str(error))
        return 1
    say("done", report=str(options.out / name / "report" / "report.html"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
