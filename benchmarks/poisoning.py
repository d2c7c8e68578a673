"""Poison a training run: 20% of the nodes send false updates, against each averaging.

    python benchmarks/poisoning.py runs/poisoning [--rounds 60] [--seeds 0] [--attacks flip]

Digits, 10 clients, 5 a round, the README's settings but for the number of rounds. Two of the ten
clients are attackers: they train as everybody does, then send w + f · (w' − w) in place of w',
where w are the weights that they were sent: ``flip`` is f = −1, ``scale`` f = 10, ``flip-scale``
f = −10, ``clean`` f = 1 (nobody attacks). Attackers are clients 0 and 1; ties go to the lowest
name, so they get the largest and the smallest subnet early. One run folder a cell: finished ones
are kept, others started anew.
"""

import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from flwr.app import Array, ArrayRecord, Context, Message

from superfednas.bench.machine import describe
from superfednas.client.app import app as client_app
from superfednas.common.settings import flatten
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder
from superfednas.records.rows import EvaluationRow, of_kind
from superfednas.server.app import prepare, run_training
from superfednas.server.journal.progress import Progress

CLIENTS = 10
EVERY = 20
ATTACKERS = ("0", "1")
FACTORS = {"clean": 1.0, "flip": -1.0, "scale": 10.0, "flip-scale": -10.0}
AVERAGINGS = ("overlap", "maxnet", "trimmed-mean", "median", "clip", "defl")


class Poisoned:
    """The ClientApp, except that attackers scale the difference that they send."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        attacks = str(context.node_config["partition-id"]) in ATTACKERS
        if message.metadata.message_type != "train" or not attacks or self.factor == 1:
            return client_app(message, context)
        sent = message.content.array_records["arrays"]["subnet"].numpy()
        reply = client_app(message, context)
        trained = reply.content.array_records["arrays"]["subnet"].numpy()
        false = (sent + self.factor * (trained - sent)).astype(np.float32)
        reply.content["arrays"] = ArrayRecord({"subnet": Array(false)})
        return reply


def run_cell(folder: Path, attack: str, averaging: str, seed: int, rounds: int) -> None:
    """Train one cell of the table, unless it is there already."""
    if (folder / "supernet.safetensors").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    values = {
        "rounds": rounds,
        "seed": seed,
        "clients": CLIENTS,
        "averaging": averaging,
        "max-change": 1e6,  # the averages alone, without the bound that refuses long changes
        "evaluate-every": EVERY,
        "run-dir": str(folder),
    }
    prepared = prepare(values)
    nodes = {n + 1: {"partition-id": n, "num-partitions": CLIENTS} for n in range(CLIENTS)}
    grid = LocalGrid(Poisoned(FACTORS[attack]), nodes, flatten(prepared.settings), 1)
    try:
        run_training(prepared, grid, Progress())
    finally:
        grid.close()


def means(folder: Path, kind: str) -> list[float]:
    """Return the ladder's mean accuracy at each ``evaluation`` (validation split) or ``test``."""
    rows = of_kind(RunFolder.open(folder).rows(), EvaluationRow)
    return [
        sum(r["accuracy"] for r in row.ladder) / len(row.ladder) for row in rows if row.kind == kind
    ]


def table(out: Path, seeds: list[int]) -> str:
    """Return the Markdown table of all finished cells."""
    lines = [
        f"| attack | averaging | seed | validation, every {EVERY} rounds | test | against clean "
        "overlap |",
        "|---|---|---|---|---|---|",
    ]
    for attack in FACTORS:
        for averaging in AVERAGINGS:
            for seed in seeds:
                folder, clean = (out / name(a, v, seed) for a, v in ((attack, averaging), CLEAN))
                if not all((f / "supernet.safetensors").exists() for f in (folder, clean)):
                    continue
                (test,), (least,) = means(folder, "test"), means(clean, "test")
                steps = ", ".join(f"{mean:.1%}" for mean in means(folder, "evaluation"))
                lines.append(
                    f"| {attack} | {averaging} | {seed} | {steps} | {test:.2%} "
                    f"| {100 * (test - least):+.2f} |"
                )
    return "\n".join(lines)


CLEAN = ("clean", "overlap")


def name(attack: str, averaging: str, seed: int) -> str:
    """Return the folder's name of a cell."""
    return f"{attack}-{averaging}-seed{seed}"


def main(
    out: Annotated[Path, typer.Argument(help="folder for the runs")],
    rounds: Annotated[int, typer.Option(help="rounds of every run")] = 60,
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0",
    attacks: Annotated[str, typer.Option(help="attacks, comma-separated")] = ",".join(FACTORS),
    averagings: Annotated[str, typer.Option(help="comma-separated")] = ",".join(AVERAGINGS),
) -> None:
    """Train what is missing, then print the table of all that is there."""
    torch.set_num_threads(1)
    chosen = [int(seed) for seed in seeds.split(",")]
    for seed in chosen:
        for attack in attacks.split(","):
            for averaging in averagings.split(","):
                cell = name(attack, averaging, seed)
                print(f"== {cell}", flush=True)
                run_cell(out / cell, attack, averaging, seed, rounds)
    print(f"\n{describe({'rounds': rounds})}")
    print(table(out, chosen))


if __name__ == "__main__":
    typer.run(main)
