"""Rank the published subnets of SuperFedNAS: regression on a few of them, MACs, zero-cost fitness.

    python benchmarks/published_subnets.py --data superfednas_5000_subnets_half.csv

The file holds 2,500 subnets of the paper's space with the test accuracy that the authors measured
(github.com/gatech-sysml/superfednas, nas/; columns d0-d3, e0-e11, test_accuracy). A regression
learns from n rows, stratified over MACs, and ranks the others. Then the whole space of 577,200,625
networks is searched with one such regression under a limit of MACs: once exactly by dominance, and
once by trying every single network, which proves the first.
"""

import csv
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.stats import spearmanr

from superfednas.bench.machine import describe
from superfednas.nas.cost.costs import Costs
from superfednas.nas.engine.choose import search
from superfednas.nas.front import Tables
from superfednas.nas.score.regression import Regression, stratified
from superfednas.nas.score.zero_cost import Fitness
from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.supernet.families.resnet.spaces import ResNetArchitecture

BINS = ((0.0, 0.95), (0.95, 1.45), (1.45, 2.45), (2.45, 9.9))  # GMACs, as DeepFedNAS divides
TOP = 10
LIMIT = 1.5e9


def read(path: Path) -> tuple[list[ResNetArchitecture], np.ndarray]:
    """Return the subnets and their accuracies."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    archs = [
        ResNetArchitecture(
            tuple(int(row[f"d{i}"]) for i in range(4)),
            tuple(float(row[f"e{i}"]) for i in range(12)),  # type: ignore[arg-type]
        )
        for row in rows
    ]
    return archs, np.array([float(row["test_accuracy"]) for row in rows])


def ranks(
    predicted: np.ndarray, accuracy: np.ndarray, gmacs: np.ndarray
) -> tuple[float, list[float]]:
    """Return Spearman's correlation, and the mean true accuracy of each bin's 10 best predicted."""
    tops = []
    for low, high in BINS:
        inside = np.flatnonzero((gmacs > low) & (gmacs <= high))
        best = inside[np.argsort(-predicted[inside], kind="stable")[:TOP]]
        tops.append(float(accuracy[best].mean()))
    return float(spearmanr(predicted, accuracy)[0]), tops


def enumerate_all(score: Tables, cost: Tables, limit: float) -> tuple[float, int]:
    """Try every network: the best score within the limit, and how many networks were tried."""
    first_score = (score[1][0][:, None] + score[2][0]).ravel()
    first_cost = (cost[1][0][:, None] + cost[2][0]).ravel()
    last_score = (score[3][0][:, None] + score[4][0]).ravel()
    last_cost = (cost[3][0][:, None] + cost[4][0]).ravel()
    room = limit - cost[0][0, 0]
    best, tried = -np.inf, 0
    for one_score, one_cost in zip(first_score, first_cost, strict=True):
        fits = last_cost <= room - one_cost
        tried += len(last_cost)
        if fits.any():
            best = max(best, one_score + last_score[fits].max())
    return float(best), tried


def whole_space(space: SearchSpace, regression: Regression) -> list[str]:
    """Search all networks under a limit, and prove the result."""
    assert space.chain is not None
    _ = space.chain.inventory
    costs = Costs(space)
    found = search(regression, costs, {"macs": LIMIT})
    arch, predicted = found.networks[0]
    started = time.perf_counter()
    best, tried = enumerate_all(regression.tables(), costs.table("macs"), LIMIT)
    seconds = time.perf_counter() - started
    options = np.array([space.chain.locate(arch)])
    own = float(space.chain.gather(regression.tables(), options).sum())
    verdict = "equal" if np.isclose(best, own, rtol=0, atol=1e-12) else "DIFFERENT"
    return [
        f"Limit {LIMIT / 1e9:g} GMACs, regression on 100 rows. Exact search: "
        f"**{found.seconds:.4f} s** for {found.looked_at:,} networks; predicted accuracy "
        f"{predicted:.2%}, {space.macs(arch) / 1e9:.3f} GMACs, `{arch.to_json()}`.",
        "",
        f"Every one of {tried:,} networks tried in {seconds:.1f} s: best score {best:.12f}, the "
        f"exact search's {own:.12f}: {verdict}.",
    ]


def main(
    data: Annotated[Path, typer.Option(help="The authors' subnets, CSV")],
    seeds: Annotated[int, typer.Option(help="Draws of the rows to learn from")] = 20,
) -> None:
    """Print the tables as Markdown."""
    space = load_space("resnet10-26", norm="none")
    archs, accuracy = read(data)
    macs = np.array([float(space.macs(arch)) for arch in archs])
    everything = list(range(len(archs)))
    print(describe({"rows": len(archs), "seeds": seeds}))
    names = " | ".join(f"{low:g}-{high:g}" if high < 9 else f">{low:g}" for low, high in BINS)
    print(f"| score | Spearman | {names} |\n|---|---|---|---|---|---|")

    def line(name: str, found: list[tuple[float, list[float]]]) -> None:
        rho, spread = np.mean([r for r, _ in found]), np.std([r for r, _ in found])
        tops = np.mean([t for _, t in found], axis=0)
        deviation = f" ± {spread:.3f}" if len(found) > 1 else ""
        print(f"| {name} | {rho:.3f}{deviation} | " + " | ".join(f"{t:.2%}" for t in tops) + " |")

    line("MACs", [ranks(macs, accuracy, macs / 1e9)])
    line("zero-cost fitness", [ranks(Fitness(space)(archs), accuracy, macs / 1e9)])
    regression = None
    for n in (25, 50, 100):
        found = []
        for seed in range(seeds):
            rows = stratified(macs, n, np.random.default_rng(seed))
            regression = _learn(space, archs, accuracy, rows)
            rest = np.setdiff1d(everything, rows)
            predicted = regression([archs[row] for row in rest])
            found.append(ranks(predicted, accuracy[rest], macs[rest] / 1e9))
        line(f"regression on {n}", found)
    assert regression is not None
    print("\n" + "\n".join(whole_space(space, regression)))


def _learn(
    space: SearchSpace, archs: list[ResNetArchitecture], accuracy: np.ndarray, rows: np.ndarray
) -> Regression:
    # Ten networks stand twice in the file, measured twice: their mean is learnt.
    known: dict[Architecture, list[float]] = {}
    for row in rows:
        known.setdefault(archs[row], []).append(float(accuracy[row]))
    return Regression(space, {arch: float(np.mean(values)) for arch, values in known.items()})


if __name__ == "__main__":
    typer.run(main)
