r"""Compare seven methods at equal GMAC·images: initial and personalised accuracy, and bytes.

    python benchmarks/federated_methods.py --data cifar10.npz --pneumonia pneumoniamnist.npz \
        --out runs/methods

20 clients, 4 a round, one local epoch, ``mobilenetv1-tiny`` on images of 16 × 16 pixels, static
batch norm, lr .1 with warm-up and cosine, momentum .5: Kim and Yun's recipe (§4.1) at a size for
two CPU cores. Every method trains for the rounds that cost as much as ``--rounds`` rounds of FedAvg
on the largest subnet; these are computed beforehand. Then every client fine-tunes the head of the
largest subnet and of those of half and a quarter of its width, for five epochs.

Each cell of the table is one run folder: finished ones are kept, interrupted ones resumed, so the
command can be stopped and started at will, and started twice with different ``--seeds``. The table
of all that is there is printed at the end (``--table`` prints it alone).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

import superfednas
from superfednas.bench.equal_cost import cost_by_round, rounds_within, run_cell
from superfednas.bench.machine import describe
from superfednas.common.words import amount
from superfednas.records.folder import RunFolder
from superfednas.records.rows import SummaryRow, of_kind
from superfednas.server.errands.personalise import personal_files
from superfednas.server.methods import METHODS

RECIPE: dict[str, Any] = {
    "space": "mobilenetv1-tiny",
    "norm": "batch",
    "resize": 16,
    "clients": 20,
    "clients_per_round": 4,
    "local_epochs": 1,
    "batch_size": 32,
    "lr": 0.1,
    "lr_schedule": "cosine",
    "momentum": 0.5,
    "evaluate_every": 20,
    "keep_checkpoints": 1,
}
CIFAR = {
    "train_images": 5_000,
    "validation_share": 0.04,
    "pixel_mean": ".4914,.4822,.4465",
    "pixel_std": ".2470,.2435,.2616",
    "augment": "crop:2,flip",
}
PNEUMONIA = {"pixel_mean": "0.5719", "pixel_std": "0.1684", "augment": "crop:2"}
SKEWS: dict[str, tuple[str, dict[str, Any]]] = {
    "CIFAR-10, s = 2": ("cifar", CIFAR | {"partition": "shards", "shards_per_client": 2}),
    "CIFAR-10, s = 10": ("cifar", CIFAR | {"partition": "shards", "shards_per_client": 10}),
    "PneumoniaMNIST, β = 1": ("pneumonia", PNEUMONIA | {"dirichlet_alpha": 1.0}),
    "PneumoniaMNIST, β = 100": ("pneumonia", PNEUMONIA | {"dirichlet_alpha": 100.0}),
}
# What the paper's Tables 3, 4, 16, 17 and 19 vary, of FedSup.
ABLATIONS: dict[str, dict[str, Any]] = {
    "fedsup, momentum 0": {"momentum": 0.0},
    "fedsup, label smoothing .1": {"label_smoothing": 0.1},
    "fedsup, no distillation": {"distil": "off"},
    "fedsup, FedProx .001": {"proximal": 0.001},
    "fedsup, M = 1": {"subnets_per_step": 1},
    "fedsup, M = 2": {"subnets_per_step": 2},
    "fedsup, M = 4": {"subnets_per_step": 4},
    "fedsup, M = 3, no sandwich": {"local_sandwich": False},
    # At equal rounds, as the paper compares; this costs more than the others may.
    "fedsup, FedAvg's rounds": {"rounds": 60},
}
ABLATED = "CIFAR-10, s = 10"
SUBNETS = ("largest", "width 0.5", "width 0.25")


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    data: str
    seed: int
    name: str
    folder: Path
    values: dict[str, Any] = field(compare=False)


def cells(files: dict[str, Path], out: Path, seeds: list[int], only: str) -> list[Cell]:
    """List the rows of the table, in its order."""
    methods: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS}
    ablations = {name: {"method": "fedsup"} | changes for name, changes in ABLATIONS.items()}
    tables = [(data, methods) for data in SKEWS] + [(ABLATED, ablations)]
    found = []
    for data, rows in tables:
        which, options = SKEWS[data]
        for seed in seeds:
            base = RECIPE | options | {"dataset": str(files[which]), "seed": seed}
            for name, changes in rows.items():
                slug = f"{data}-{seed}-{name}".replace(" = ", "").replace(", ", "-")
                cell = Cell(data, seed, name, out / slug.replace(" ", "-"), base | changes)
                if only in f"{data}, {name}":
                    found.append(cell)
    return found


def train(cell: Cell, budget: float) -> None:
    """Train a cell and personalise its subnets, as far as that has not been done."""
    rounds = cell.values.get("rounds") or rounds_within(cell.values, budget)
    print(f"== {cell.data}, seed {cell.seed}, {cell.name}: {rounds} rounds", flush=True)
    schedule = {"rounds": rounds, "warmup_rounds": max(1, rounds // 8)}
    run = run_cell(cell.folder, cell.values | schedule)
    if not personal_files(run):
        superfednas.personalise(run.path, personal_subnets="widths")


def table(rows: list[Cell]) -> str:
    """Return the Markdown table of all finished cells."""
    lines = [
        "| data | seed | method | "
        + " | ".join(f"{name}: initial | personalised" for name in SUBNETS)
        + " | rounds | GMAC·images | bytes |",
        "|" + "---|" * (6 + 2 * len(SUBNETS)),
    ]
    for cell in rows:
        if not (cell.folder / "supernet.safetensors").exists():
            continue
        run = RunFolder.open(cell.folder)
        files = personal_files(run)
        if not files:
            continue
        found = {row["name"]: row for row in json.loads(files[-1].read_text())["subnets"]}
        summary = of_kind(run.rows(), SummaryRow)[-1]
        accuracies = [
            f"{found[name][k]['mean']:.1%} ± {found[name][k]['sd']:.1%}".replace("%", "")
            # FedAvg has trained no other subnet than the largest.
            if cell.name != "fedavg" or name == "largest"
            else ""
            for name in SUBNETS
            for k in ("initial", "personalised")
        ]
        lines.append(
            f"| {cell.data} | {cell.seed} | {cell.name} | "
            + " | ".join(accuracies)
            + f" | {summary.round} | {summary.gmac_images:,.0f} "
            + f"| {amount(summary.bytes)} |"
        )
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="CIFAR-10 as .npz: x_train, y_train, x_test, y_test")],
    pneumonia: Annotated[Path, typer.Option(help="PneumoniaMNIST as .npz")],
    out: Annotated[Path, typer.Option(help="folder for the runs")],
    rounds: Annotated[
        int, typer.Option(help="FedAvg's rounds, half on PneumoniaMNIST: everyone's budget")
    ] = 60,
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0,1",
    only: Annotated[str, typer.Option(help="substring of the rows to run")] = "",
    show: Annotated[bool, typer.Option("--table", help="train nothing, print the table")] = False,
) -> None:
    """Train what is missing, then print the table of all that is there."""
    rows = cells(
        {"cifar": data, "pneumonia": pneumonia}, out, [int(s) for s in seeds.split(",")], only
    )
    budgets: dict[tuple[str, int], float] = {}
    for cell in rows if not show else ():
        key = cell.data, cell.seed
        if key not in budgets:
            fedavg = RECIPE | SKEWS[cell.data][1] | {"dataset": cell.values["dataset"]}
            fedavg |= {"seed": cell.seed, "method": "fedavg"}
            # PneumoniaMNIST's two classes are learnt sooner.
            budgets[key] = cost_by_round(fedavg, rounds if "CIFAR" in cell.data else rounds // 2)[
                -1
            ]
        train(cell, budgets[key])
    print(f"\n{describe()}\nAccuracy on clients' own test images (%), mean ± s.d. over clients\n")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
