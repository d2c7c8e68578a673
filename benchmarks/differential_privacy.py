r"""The cost in accuracy of clipping and noise on what clients send.

    python benchmarks/differential_privacy.py runs/privacy --averagings overlap \
        --clips 0.1,0.3,1 --noises 0,0.003,0.03
    python benchmarks/differential_privacy.py runs/privacy --clips 0.3 --test

Digits, 10 clients, 5 a round, the README's settings but for the number of rounds; ``dp-clip`` is C
and ``dp-noise`` σ. The first command chooses C on the validation split, the second also shows the
test split, which every run reads once at its end. ``none`` is a run without clipping. One run
folder a cell: finished ones are kept, others started anew. Noise is never the same twice.
"""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

import superfednas
from superfednas.bench.machine import describe
from superfednas.records.folder import RunFolder
from superfednas.records.rows import EvaluationRow, of_kind

EVERY = 20
AVERAGINGS = ("overlap", "maxnet")
Cell = tuple[str, str, str, int]


def run_cell(folder: Path, cell: Cell, rounds: int) -> None:
    """Train one cell of the table, unless it is there already."""
    if (folder / "supernet.safetensors").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    averaging, clip, noise, seed = cell
    superfednas.train(
        rounds=rounds,
        clients=10,
        clients_per_round=5,
        averaging=averaging,
        evaluate_every=EVERY,
        seed=seed,
        run_dir=str(folder),
        dp_clip=0.0 if clip == "none" else float(clip),
        dp_noise=float(noise),
    )


def means(folder: Path, kind: str) -> list[str]:
    """Return the ladder's mean accuracy at each ``evaluation`` (validation split) or ``test``."""
    rows = of_kind(RunFolder.open(folder).rows(), EvaluationRow)
    return [
        f"{sum(r['accuracy'] for r in row.ladder) / len(row.ladder):.1%}"
        for row in rows
        if row.kind == kind
    ]


def table(out: Path, cells: list[Cell], test: bool) -> str:
    """Return the Markdown table of these cells."""
    heads = ["averaging", "C", "σ", "seed", f"validation, every {EVERY} rounds"]
    heads += ["test"] if test else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for cell in cells:
        found = [", ".join(means(out / name(cell), "evaluation"))]
        found += means(out / name(cell), "test") if test else []
        lines.append("| " + " | ".join([*map(str, cell), *found]) + " |")
    return "\n".join(lines)


def name(cell: Cell) -> str:
    """Return the folder's name of a cell."""
    averaging, clip, noise, seed = cell
    return f"{averaging}-clip{clip}-noise{noise}-seed{seed}"


def main(
    out: Annotated[Path, typer.Argument(help="folder for the runs")],
    rounds: Annotated[int, typer.Option(help="rounds of every run")] = 60,
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0",
    averagings: Annotated[str, typer.Option(help="comma-separated")] = ",".join(AVERAGINGS),
    clips: Annotated[str, typer.Option(help="dp-clip, comma-separated")] = "0.3",
    noises: Annotated[str, typer.Option(help="dp-noise, comma-separated")] = "0,0.03,0.1,0.3",
    test: Annotated[bool, typer.Option(help="show the test split too")] = False,
) -> None:
    """Train what is missing, then print the table."""
    torch.set_num_threads(1)
    cells: list[Cell] = [
        (averaging, clip, noise, int(seed))
        for averaging in averagings.split(",")
        for clip, noise in [("none", "0")]
        + [(clip, noise) for clip in clips.split(",") for noise in noises.split(",")]
        for seed in seeds.split(",")
    ]
    for cell in cells:
        print(f"== {name(cell)}", flush=True)
        run_cell(out / name(cell), cell, rounds)
    print(f"\n{describe({'rounds': rounds})}")
    print(table(out, cells, test))


if __name__ == "__main__":
    typer.run(main)
