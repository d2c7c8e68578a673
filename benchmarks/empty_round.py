"""Measure where the time of a round goes: a SuperLink and two nodes on this machine.

    git worktree add /tmp/before COMMIT
    python benchmarks/empty_round.py --before /tmp/before

The round is as empty as one can be with a client that uses torch: both nodes train the smallest
subnet of ``resnet-tiny`` for one step on their half of scikit-learn's digits. What happens when is
noted by ``marks/sitecustomize.py`` in every process. The causes are laid end to end along the reply
that comes last in its round, so that they add up to the round.
"""

import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from superfednas.bench.machine import describe
from tests.support.processes import BIN, ROOT, environment, fleet, flwr_run

NODES = 2
PLAIN = [str(BIN / "flower-supernode")]
OURS = [sys.executable, "-m", "superfednas.cli", "node"]
TRAINING: dict[str, object] = {
    "clients-per-round": NODES,
    "min-nodes": NODES,
    "assignment": "fixed",
    "architecture": "smallest",
    "local-steps": 1,
    "evaluate-every": 0,
    "device": "cpu",
}
CAUSES = {
    "server": "server: fold, checkpoint, assign, write messages",
    "ask": "wait: SuperNode asks SuperLink (Flower: 3 s)",
    "receive": "SuperNode pulls the message",
    "launch": "wait: SuperExec asks SuperNode (Flower: 1 s)",
    "start": "ClientApp process starts, imports Flower",
    "input": "ClientApp pulls the message, checks the app's file",
    "imports": "app's imports (torch), the data; or hand-over to the worker",
    "train": "one step of training",
    "reply": "ClientApp hands the reply to the SuperNode",
    "send": "wait: SuperNode sees the reply (Flower: 0.5 s), sends it",
    "pull": "server pulls the reply",
}


def read_marks(path: Path) -> list[dict[str, Any]]:
    """Return the notes of one node or of the server, in order of their ends."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["ended"])


def messages(path: Path) -> list[dict[str, float]]:
    """Return when what happened to every training message of a node."""
    found: list[dict[str, float]] = []
    now: dict[str, float] = {}
    for row in read_marks(path):
        began, ended = row["began"], row["ended"]
        match row["call"]:
            case "_pull_and_store_message" if row["result"]:
                now = {"asked": began, "received": ended}
            case "run_clientapp":
                now |= {"born": began - row["age"], "started": began}
            case "install_from_fab":
                now["installed"] = ended
            case "SubnetClient.fit":
                now |= {"fit": began, "fitted": ended}
            case "push_message":
                now["replied"] = ended
            case "_push_messages" if "fit" in now:
                found.append({**now, "sent": ended})
                now = {}
    return found


def rounds(folder: Path) -> list[dict[str, float]]:
    """Return the seconds by cause of every round but the first, along its last reply."""
    server = read_marks(folder / "marks-server")
    pushes = [row for row in server if row["call"] == "GrpcGrid.push_messages"]
    pulls = [row for row in server if row["call"] == "GrpcGrid.pull_messages" and row["result"]]
    nodes = [messages(folder / f"marks-{node}") for node in range(NODES)]
    trainings = pushes[-len(nodes[0]) :]  # before them: who the nodes are
    found = []
    for number in range(1, len(trainings)):
        push = trainings[number]
        last_pull = max(pull["ended"] for pull in pulls if pull["ended"] < push["began"])
        ended = [pull for pull in pulls if pull["ended"] > push["ended"]]
        end = _until(ended, NODES)[-1]["ended"]
        last = max((node[number] for node in nodes), key=lambda message: message["sent"])
        stops = [
            last_pull,
            push["ended"],
            last["asked"],
            last["received"],
            last["born"],
            last["started"],
            last["installed"],
            last["fit"],
            last["fitted"],
            last["replied"],
            last["sent"],
            end,
        ]
        found.append(dict(zip(CAUSES, _gaps(stops), strict=True)))
    return found


def _until(pulls: Sequence[dict[str, Any]], replies: int) -> list[dict[str, Any]]:
    """Return the pulls that brought the first so many replies."""
    taken, count = [], 0
    for pull in pulls:
        taken.append(pull)
        count += pull["result"]
        if count >= replies:
            return taken
    raise ValueError(f"{replies} replies were expected, {count} came")


def _gaps(stops: Sequence[float]) -> list[float]:
    """Return the differences; a stop before its forerunner (they overlap) counts as at it."""
    gaps, at = [], stops[0]
    for stop in stops[1:]:
        gaps.append(max(stop - at, 0.0))
        at = max(stop, at)
    return gaps


def measure(app: Path, supernode: Sequence[str], count: int) -> list[dict[str, float]]:
    """Run an app and return the seconds by cause of its rounds."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        marks = str(Path(__file__).resolve().parent / "marks")
        paths = [marks, str(ROOT)]
        env = environment(home, MARKS=str(home / "marks"), PYTHONPATH=os.pathsep.join(paths))
        with fleet(home, env, NODES, supernode):
            config = {**TRAINING, "rounds": count + 1, "run-dir": str(home / "run")}
            said = flwr_run(home, env, config, 120 + 60 * count, app)
        if not (home / "run" / "supernet.safetensors").exists():
            logs = "".join(path.read_text() for path in home.glob("*.log"))
            raise RuntimeError(f"the run failed:\n{said}\n{logs}")
        return rounds(home)


def main(
    before: Annotated[Path | None, typer.Option(help="An older checkout to compare with.")] = None,
    count: Annotated[int, typer.Option("--rounds", help="Rounds measured, of each.")] = 8,
) -> None:
    """Print one Markdown table."""
    plans = {"now, flower-supernode": (ROOT, PLAIN), "now, superfednas node": (ROOT, OURS)}
    if before is not None:
        plans = {"before, flower-supernode": (before.resolve(), PLAIN), **plans}
    loads: list[float] = []
    table: dict[str, dict[str, list[float]]] = {}
    for name, (app, supernode) in plans.items():
        measured = measure(app, supernode, count)
        loads.append(os.getloadavg()[0])
        columns = defaultdict(list)
        for row in measured:
            for cause, seconds in row.items():
                columns[cause].append(1e3 * seconds)
            columns["round"].append(1e3 * sum(row.values()))
        table[name] = columns
    load = ", ".join(f"{load:.1f}" for load in loads)
    print(describe({"Flower": version("flwr"), "rounds": count, "load average after each": load}))
    print(f"| milliseconds, median (range) | {' | '.join(plans)} |\n|{'---|' * (len(plans) + 1)}")
    for cause, said in {**CAUSES, "round": "**round**"}.items():
        cells = [
            f"{statistics.median(columns[cause]):,.0f} "
            f"({min(columns[cause]):,.0f} to {max(columns[cause]):,.0f})"
            for columns in table.values()
        ]
        print(f"| {said} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
