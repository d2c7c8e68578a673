"""Measure a simulated round (Ray) against a bare Flower app that sends arrays of the same size.

    python benchmarks/ray_overhead.py

Both run on Flower's simulation engine with the same nodes, clients a round, actors and rounds, one
process after the other, in turns. The clients are empty: each sends back the array that it was
sent. **Ours** is a whole run of this project: assignment, cutting out, checks, average, metrics and
checkpoints. **Bare** is Flower's own ``FedAvg`` with no evaluation; its model is one flat array of
the median size of our subnets, or the same numbers as a model's tensors, as a plain app sends them.
Flower's grid looks for replies every three seconds, so a third rival has one that looks every ten
milliseconds: what is left is Ray, Flower's messages and the average.
A round is timed from the end of one to the end of the next; the first, which starts actors, does
not count.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from hardware import describe
from round_overhead import Silent, echo, strategy_values

from server.app import prepare
from server.run_folder import RunFolder
from server.strategy import SupernetStrategy
from supernet import load_space
from supernet.config import flatten
from supernet.wire import numel

NODES = 10
PROMPT = "bare, one array, replies looked for every 10 ms"
WAYS = ("ours", "bare, one array", "bare, a model's tensors", PROMPT)
_MARK = "rounds of the run: "


def run_ours(grid: Grid, space: str, clients: int, count: int, folder: Path) -> list[float]:
    """Train as a run does; return every round's seconds."""
    prepared = prepare(strategy_values(space, clients, count, folder))
    settings = prepared.settings
    run = RunFolder.create(str(folder), flatten(settings), settings.space.space)
    trainer, ended = SupernetStrategy(settings, run=run, progress=Silent()), [time.perf_counter()]
    trainer._hooks.append(lambda row: ended.append(time.perf_counter()))
    trainer.train(grid, prepared.state)
    return list(np.diff(ended))


class Timed(FedAvg):
    """Flower's FedAvg, with the time at which every round had been averaged."""

    def __init__(self, clients: int) -> None:
        super().__init__(
            fraction_train=clients / NODES,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_evaluate_nodes=0,
            min_available_nodes=NODES,
        )
        self.ended = [time.perf_counter()]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Average, and note the time."""
        found = super().aggregate_train(server_round, replies)
        self.ended.append(time.perf_counter())
        return found


def run_bare(grid: Grid, arrays: list[np.ndarray], clients: int, count: int) -> list[float]:
    """Run Flower's own loop; return every round's seconds."""
    named = {str(number): Array(array) for number, array in enumerate(arrays)}
    trainer = Timed(clients)
    trainer.start(grid, ArrayRecord(named), num_rounds=count)
    return list(np.diff(trainer.ended))


def ask_promptly(grid: Grid, messages: Iterable[Message], **unused: Any) -> list[Message]:
    """Send messages and return the replies, as ``Grid.send_and_receive``."""
    waiting, replies = set(grid.push_messages(messages)), []
    while waiting:
        arrived = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        replies += arrived
        time.sleep(0.01)
    return replies


def answer(message: Message, context: Context) -> Message:
    """Send back what came."""
    metrics = MetricRecord({"num-examples": 100})
    content = RecordDict({"arrays": message.content.array_records["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


def one(way: str, space: str, clients: int, count: int) -> None:
    """Run one simulation in this process and print the seconds of its rounds."""
    from flwr.simulation import run_simulation

    client, app = ClientApp(), ServerApp()
    client.train()(answer if way != "ours" else echo)
    client.query()(echo)
    family = load_space(space, num_classes=10, in_channels=3, image_size=32)

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: Grid, context: Context) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if way == "ours":
                found = run_ours(grid, space, clients, count, Path(folder) / "run")
            else:
                rng = np.random.default_rng(0)
                drawn = [family.largest, family.smallest, *(family.sample(rng) for _ in range(30))]
                middle = sorted(drawn, key=family.params)[len(drawn) // 2]
                shapes = family.shapes(middle)
                flat = np.zeros(numel(shapes), np.float32)
                if way == PROMPT:
                    grid.send_and_receive = functools.partial(ask_promptly, grid)  # type: ignore[method-assign]
                arrays = [np.zeros(shape, np.float32) for shape in shapes.values()]
                found = run_bare(grid, [flat] if "one" in way else arrays, clients, count)
        print(_MARK + json.dumps(found), flush=True)

    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": os.cpu_count()}}
    run_simulation(app, client, num_supernodes=NODES, backend_config=resources)


def main(
    space: Annotated[str, typer.Option()] = "resnet-tiny",
    clients: Annotated[int, typer.Option(help="A round.")] = 8,
    count: Annotated[int, typer.Option("--rounds")] = 15,
    turns: Annotated[int, typer.Option()] = 3,
    way: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure and print Markdown."""
    if way:
        one(way, space, clients, count)
        return
    print(describe({"nodes": NODES, "clients a round": clients, "space": space, "rounds": count}))
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns):
        for name in WAYS if turn % 2 == 0 else reversed(WAYS):
            command = [sys.executable, __file__, "--way", name, "--space", space]
            command += ["--clients", str(clients), "--rounds", str(count)]
            with tempfile.TemporaryDirectory() as home:
                quiet = {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0"}
                said = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    env={**os.environ, **quiet},
                    check=False,
                )
            lines = [line for line in said.stdout.splitlines() if line.startswith(_MARK)]
            if not lines:
                raise SystemExit(f"{name}: no result\n{said.stdout[-2000:]}{said.stderr[-4000:]}")
            seconds = json.loads(lines[-1].removeprefix(_MARK))[1:]
            found[name].append(statistics.median(seconds))
    print("| way | ms a round, median | of every turn | ours ÷ it |\n|---|---|---|---|")
    ours = statistics.median(found["ours"])
    for name, values in found.items():
        each = ", ".join(f"{1e3 * value:,.0f}" for value in values)
        middle = statistics.median(values)
        print(f"| {name} | {1e3 * middle:,.0f} | {each} | {ours / middle:.2f} |")


if __name__ == "__main__":
    typer.run(main)
