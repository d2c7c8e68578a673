"""Measure what 16 bits on the wire cost: accuracy against float32 on CIFAR-10, paired by seed.

    python benchmarks/wire_formats.py --data cifar10.npz --out runs/wire --seeds 0,1,2,3,4

Every seed is one run a format: the same initial weights, division of the data, assignments, order
of images and augmentation, so that only the rounding on the wire differs. The recipe is that of
``cifar10_methods.py`` (MaxNet, balanced Dirichlet), with a learning rate that falls to 0: its last
updates are the smallest, which is where rounding whole weights loses most, and noise at the end is
smaller. Each cell is one run folder: finished ones are kept, interrupted ones resumed.
"""

import math
import statistics
from pathlib import Path
from typing import Annotated

import typer
from cifar10_methods import RECIPE, run_cell

from superfednas.bench.machine import describe
from superfednas.records.folder import RunFolder
from superfednas.records.rows import last_test
from superfednas.wire.flat import WIRE_DTYPES


def accuracies(folder: Path) -> dict[str, float] | None:
    """Return a finished run's test accuracy by rung of the ladder."""
    if not (folder / "supernet.safetensors").exists():
        return None
    test = last_test(RunFolder.open(folder).rows())
    return None if test is None else {rung.name: rung["accuracy"] for rung in test.ladder}


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its 95% t interval."""
    from scipy.stats import t

    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count)
    return statistics.mean(differences), float(t.ppf(0.975, count - 1)) * error


def table(out: Path, seeds: list[int]) -> str:
    """Return the Markdown tables of all seeds of which every format is finished."""
    found: dict[int, dict[str, dict[str, float]]] = {}
    for seed in seeds:
        cells = {name: accuracies(out / f"seed{seed}-{name}") for name in WIRE_DTYPES}
        done = {
            # The mean of all rungs is one more column.
            name: {"all six": statistics.mean(cell.values()), **cell}
            for name, cell in cells.items()
            if cell is not None
        }
        if len(done) == len(WIRE_DTYPES):
            found[seed] = done
    if len(found) < 2:
        return "fewer than two seeds are finished"
    others = WIRE_DTYPES[1:]

    def minus(seed: int, name: str, rung: str) -> float:
        return 100 * (found[seed][name][rung] - found[seed]["float32"][rung])

    header = [*WIRE_DTYPES, *(f"{name} - float32" for name in others)]
    lines = [f"| seed | {' | '.join(header)} |", "|" + "---|" * (1 + len(header))]
    for seed, cell in found.items():
        row = [f"{cell[name]['all six']:.2%}" for name in WIRE_DTYPES]
        row += [f"{minus(seed, name, 'all six'):+.2f}" for name in others]
        lines.append(f"| {seed} | {' | '.join(row)} |")
    lines += ["", f"| points against float32, mean and 95% interval | {' | '.join(others)} |"]
    lines.append("|" + "---|" * (1 + len(others)))
    for rung in next(iter(found.values()))["float32"]:
        row = []
        for name in others:
            mean, half = interval([minus(seed, name, rung) for seed in found])
            row.append(f"{mean:+.2f} ± {half:.2f}")
        lines.append(f"| {rung} | {' | '.join(row)} |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="CIFAR-10 as .npz: x_train, y_train, x_test, y_test")],
    out: Annotated[Path, typer.Option(help="folder for the runs")],
    rounds: Annotated[int, typer.Option()] = 20,
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0,1,2,3,4",
) -> None:
    """Train what is missing, seed by seed, then print the table of all that is there."""
    numbers = [int(seed) for seed in seeds.split(",")]
    for seed in numbers:
        for name in WIRE_DTYPES:
            values = {
                **RECIPE,
                "dataset": str(data),
                "dirichlet_alpha": 100.0,
                "seed": seed,
                "rounds": rounds,
                "lr_schedule": "cosine",
                "wire_dtype": name,
                "evaluate_every": 0,
            }
            print(f"== seed {seed}, {name}", flush=True)
            run_cell(out / f"seed{seed}-{name}", values)
    print(f"\n{describe()}\n{table(out, numbers)}")


if __name__ == "__main__":
    typer.run(main)
