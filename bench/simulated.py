"""A simulated round (Ray) against a bare Flower app that sends arrays of the same size.

Both run on Flower's simulation engine with the same nodes, clients a round, actors and rounds, one
process after the other, in turns. The clients are empty: each sends back the array that it was
sent. **Ours** is a whole run of this project: assignment, cutting out, checks, average, metrics and
checkpoints. **Bare** is Flower's own ``FedAvg`` with no evaluation; its model is one flat array of
the median size of our subnets, or the same numbers as a model's tensors, as a plain app sends them.
Flower's grid polls for replies every three seconds, so a third rival polls every ten milliseconds:
what remains is Ray, Flower's messages and the average. A round is timed from the end of one to the
end of the next; the first, which starts actors, does not count.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from superfednas.bench import fedavg
from superfednas.bench.figures import Effort, Figure, faster, milliseconds
from superfednas.bench.rounds import Silent, echo, strategy_values
from superfednas.common.settings import flatten
from superfednas.records.folder import RunFolder
from superfednas.server.app import prepare
from superfednas.server.strategy import SupernetStrategy

NODES = 10
OURS, FLAT, TENSORS = "ours", "bare, one array", "bare, a model's tensors"
PROMPT = "bare, one array, replies looked for every 10 ms"
WAYS = (OURS, FLAT, TENSORS, PROMPT)
_MARK = "rounds of the run: "


def run_ours(grid: Grid, space: str, clients: int, count: int, folder: Path) -> list[float]:
    """Train as a run does; return every round's seconds."""
    prepared = prepare(strategy_values(space, clients, count, folder))
    settings = prepared.settings
    run = RunFolder.create(str(folder), flatten(settings), settings.space.space)
    trainer, ended = SupernetStrategy(settings, run=run, progress=Silent()), [time.perf_counter()]
    trainer.hooks.append(lambda row: ended.append(time.perf_counter()))
    trainer.train(grid, prepared.state)
    return list(np.diff(ended))


def ask_promptly(grid: Grid, messages: Iterable[Message], **unused: Any) -> list[Message]:
    """Send messages and return the replies, as ``Grid.send_and_receive``."""
    waiting, replies = set(grid.push_messages(messages)), []
    while waiting:
        arrived = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        replies += arrived
        time.sleep(0.01)
    return replies


def simulate(way: str, space: str, clients: int, count: int) -> None:
    """Run one simulation in this process and print the seconds of its rounds."""
    from flwr.simulation import run_simulation

    client, app = ClientApp(), ServerApp()
    client.train()(echo if way == OURS else fedavg.answer)
    client.query()(echo)

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: Grid, context: Context) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if way == OURS:
                found = run_ours(grid, space, clients, count, Path(folder) / "run")
            else:
                if way == PROMPT:
                    grid.send_and_receive = functools.partial(ask_promptly, grid)  # type: ignore[method-assign]
                arrays = fedavg.model(space, flat=way != TENSORS)
                found = fedavg.run(grid, arrays, NODES, clients, count)
        print(_MARK + json.dumps(found), flush=True)

    resources: Any = {
        "client_resources": {"num_cpus": 1},
        "init_args": {"num_cpus": os.cpu_count()},
    }
    run_simulation(app, client, num_supernodes=NODES, backend_config=resources)


def rounds(way: str, space: str, clients: int, count: int) -> float:
    """Simulate in a separate process; return the median seconds of all rounds but the first.

    Raises
    ------
    RuntimeError
        With its output, if it gave no result.
    """
    command = [
        sys.executable,
        "-m",
        "superfednas.bench.simulated",
        way,
        space,
        str(clients),
        str(count),
    ]
    with tempfile.TemporaryDirectory() as home:
        quiet = {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0"}
        env = {**os.environ, **quiet}
        said = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = [line for line in said.stdout.splitlines() if line.startswith(_MARK)]
    if not lines:
        raise RuntimeError(f"{way}: no result\n{said.stdout[-2000:]}{said.stderr[-4000:]}")
    return float(statistics.median(json.loads(lines[-1].removeprefix(_MARK))[1:]))


def figures(effort: Effort) -> Iterator[Figure]:
    """Measure simulated rounds."""
    space, clients, turns = "resnet-tiny", 8, {"quick": 1, "normal": 1, "full": 3}[effort]
    taken: dict[str, list[float]] = {OURS: [], FLAT: [], PROMPT: []}
    for turn in range(turns):
        for way in taken if turn % 2 == 0 else reversed(list(taken)):
            taken[way].append(rounds(way, space, clients, 12 if effort == "full" else 6))
    what = f"a simulated round (Ray) of {clients} empty `{space}` clients"
    for way, against in (
        (FLAT, "a bare Flower app, arrays of the same size"),
        (PROMPT, "the same app with a grid that looks for replies every 10 ms"),
    ):
        yield Figure(
            "ray",
            what,
            against,
            faster(taken[OURS], taken[way]),
            milliseconds(taken[OURS]),
            milliseconds(taken[way]),
            1 / 1.3 if way == FLAT else None,
        )


if __name__ == "__main__":
    simulate(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
