"""What 16 bits on the wire cost: accuracy against float32 on CIFAR-10, paired by seed.

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
from hardware import describe

from server.run_folder import RunFolder
from supernet.wire import WIRE_DTYPES


def accuracies(folder: Path) -> dict[str, float] | None:
    """Return a finished run's test accuracy by rung of the ladder."""
    if not (folder / "supernet.safetensors").exists():
        return None
    test = [row for row in RunFolder.open(folder).rows() if row["kind"] == "test"]
    return {rung["name"]: rung["accuracy"] for rung in test[-1]["ladder"]} if test else None


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its 95% t interval."""
    from scipy.stats import t

    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count)
    return statistics.mean(differences), float(t.ppf(0.975, count - 1)) * error


def table(out: Path, seeds: list[int]) -> str:
    """Return the Markdown table of all seeds of which every format is finished."""
    found = {
        seed: cells
        for seed in seeds
        if all(cells := {name: accuracies(out / f"seed{seed}-{name}") for name in WIRE_DTYPES})
        or None not in cells.values()
    }
    found = {seed: cells for seed, cells in found.items() if None not in cells.values()}
    if not found:
        return "no seed is finished"
    rungs = list(next(iter(found.values()))["float32"])
    means = {
        seed: {name: statistics.mean(cell.values()) for name, cell in cells.items()}
        for seed, cells in found.items()
    }
    lines = [
        "| seed | "
        + " | ".join(WIRE_DTYPES)
        + " | "
        + " | ".join(f"{n} - float32" for n in WIRE_DTYPES[1:])
        + " |",
        "|" + "---|" * (2 * len(WIRE_DTYPES)),
    ]
    for seed, cell in means.items():
        plain = " | ".join(f"{cell[name]:.2%}" for name in WIRE_DTYPES)
        minus = " | ".join(
            f"{100 * (cell[name] - cell['float32']):+.2f}" for name in WIRE_DTYPES[1:]
        )
        lines.append(f"| {seed} | {plain} | {minus} |")
    lines += [
        "",
        "| points against float32, mean and 95% interval | " + " | ".join(WIRE_DTYPES[1:]) + " |",
    ]
    lines.append("|" + "---|" * len(WIRE_DTYPES))
    for rung in ["all six", *rungs]:
        row = []
        for name in WIRE_DTYPES[1:]:
            differences = [
                100 * (means[seed][name] - means[seed]["float32"])
                if rung == "all six"
                else 100 * (cells[name][rung] - cells["float32"][rung])
                for seed, cells in found.items()
            ]
            mean, half = interval(differences)
            row.append(f"{mean:+.2f} ± {half:.2f}")
        lines.append(f"| {rung} | " + " | ".join(row) + " |")
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
