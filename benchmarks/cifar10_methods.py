"""Compare MaxNet with its ablations and with FedAvg on CIFAR-10, at equal GMAC·images.

    python benchmarks/cifar10_methods.py --data cifar10.npz --out runs/cifar10

20 clients of about 500 images, 8 a round, one local epoch, ``resnet-tiny``, the same recipe for
every method. Every method trains until its forward cost reaches that of MaxNet's ``--rounds``; how
many rounds that takes is computed beforehand, since assignments depend only on the seed. Each cell
of the table is one run folder: finished ones are kept, interrupted ones resumed, so the command can
be stopped and started at will (and started twice, with different ``--alphas``).
"""

from pathlib import Path
from typing import Annotated

import typer

from superfednas.bench.equal_cost import cost_by_round, run_cell
from superfednas.bench.machine import describe
from superfednas.common.words import amount
from superfednas.records.folder import RunFolder
from superfednas.records.rows import SummaryRow, last_test, of_kind

CLIENTS = 20
RECIPE = {
    "space": "resnet-tiny",
    "clients": CLIENTS,
    "clients_per_round": 8,
    "train_images": 10_000,
    "validation_share": 0.04,
    "partition": "balanced-dirichlet",
    "pixel_mean": ".4914,.4822,.4465",
    "pixel_std": ".2470,.2435,.2616",
    "augment": "crop:4,flip",
    "local_epochs": 1,
    "batch_size": 16,
    "lr": 0.03,
    "momentum": 0.9,
    "clip_norm": 1.0,
}
METHODS = {
    "MaxNet": {},
    "random + overlap": {"assignment": "random", "averaging": "overlap"},
    "sandwich + overlap": {"assignment": "sandwich", "averaging": "overlap"},
    "tracking-sandwich + overlap": {"averaging": "overlap"},
    **{
        f"FedAvg {size}{suffix}": {
            "assignment": "fixed",
            "architecture": size,
            "averaging": averaging,
        }
        for size in ("smallest", "largest")
        for suffix, averaging in (("", "overlap"), (" + β", "maxnet"))
    },
}


def table(cells: dict[tuple[float, int, str], Path]) -> str:
    """Return the Markdown table of all finished cells."""
    lines, names = [], None
    for (alpha, seed, method), folder in cells.items():
        if not (folder / "supernet.safetensors").exists():
            continue
        rows = RunFolder.open(folder).rows()
        test, (summary, *_) = last_test(rows), of_kind(rows, SummaryRow)
        assert test is not None
        if names is None:
            names = [rung.name for rung in test.ladder]
            macs = [f"{rung.name} ({rung.macs / 1e6:.2f})" for rung in test.ladder]
            rungs = " | ".join(macs)
            lines.append(f"| α | seed | method | {rungs} | rounds | GMAC·images | bytes |")
            lines.append("|" + "---|" * (len(names) + 6))
        accuracy = {rung.name: f"{rung['accuracy']:.2%}" for rung in test.ladder}
        if method.startswith("FedAvg"):  # its other subnets were never trained
            own = method.split()[1]
            accuracy = {name: text if name == own else "" for name, text in accuracy.items()}
        rungs = " | ".join(accuracy[name] for name in names)
        cost = f"{summary.gmac_images:,.0f} | {amount(summary.bytes)}"
        lines.append(f"| {alpha:g} | {seed} | {method} | {rungs} | {summary.round} | {cost} |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="CIFAR-10 as .npz: x_train, y_train, x_test, y_test")],
    out: Annotated[Path, typer.Option(help="folder for the runs and the table")],
    rounds: Annotated[int, typer.Option(help="MaxNet's rounds, which set everyone's budget")] = 40,
    alphas: Annotated[
        str, typer.Option(help="Dirichlet concentrations, comma-separated")
    ] = "100,1",
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0",
    methods: Annotated[str, typer.Option(help="substring of the methods to run")] = "",
) -> None:
    """Train what is missing, then print the table of all that is there."""
    cells: dict[tuple[float, int, str], Path] = {}
    for alpha in map(float, alphas.split(",")):
        for seed in map(int, seeds.split(",")):
            base = {**RECIPE, "dataset": str(data), "dirichlet_alpha": alpha, "seed": seed}
            budget = cost_by_round({**base, "rounds": rounds}, rounds)[-1]
            for method, changes in METHODS.items():
                slug = method.replace(" ", "-").replace("β", "beta")
                folder = out / f"alpha{alpha:g}-seed{seed}-{slug}"
                cells[alpha, seed, method] = folder
                if methods not in method:
                    continue
                # The smallest subnet costs least, and MaxNet's mean at most six times as much.
                costs = cost_by_round({**base, **changes}, 8 * rounds)
                wanted = 1 + next(i for i, cost in enumerate(costs) if cost >= budget * 0.999)
                values = {
                    **base,
                    **changes,
                    "rounds": wanted,
                    "evaluate_every": max(1, wanted // 4),
                }
                print(f"== α {alpha:g}, seed {seed}, {method}: {wanted} rounds", flush=True)
                run_cell(folder, values)
    print(f"\n{describe()}\nTest accuracy, columns with MMACs\n")
    print(table(cells))


if __name__ == "__main__":
    typer.run(main)
