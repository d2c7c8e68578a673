"""Compare the subnet that a search picks with the best of 500 random ones under the same limit.

    python benchmarks/search_regret.py RUN1 RUN2 RUN3 --out regret

For every run folder and for limits at 25, 50 and 75% of the range of MACs: the validation images
are divided in two halves. The search measures and chooses on the first half. On the second half its
pick is compared with 500 random subnets (uniform over genes, within the limit), in two ways:

- with the one of the 500 that is best on the first half: random search with the same images, twelve
  times as many measurements. Both picks are then read on images that chose neither.
- with the one that is best on the second half itself: the most favourable of 500 looks at those
  images. Its advantage is partly luck of the draw, so this regret is biased upwards.

Regret is in points of accuracy, positive where the search is worse; the standard error is that of
the paired difference over the images of the second half. What each subnet answers right is kept in
``--out``, so an interrupted command goes on where it was.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from hardware import describe
from rich.progress import track

import superfednas
from data import Dataset, Split
from data.splits import stratified
from deploy.trained import Trained
from nas.accuracy import batches
from nas.plan import Plan
from nas.planner import Request
from supernet import Architecture

SHARES = (0.25, 0.5, 0.75)
RANDOM = 500
_DRAWS = 100_000


class RightAnswers:
    """Which validation images each subnet answers right, kept in a file."""

    def __init__(self, trained: Trained, split: Split, path: Path) -> None:
        self.trained, self.split, self.path = trained, split, path
        self.known: dict[str, np.ndarray] = {}
        if path.exists():
            with np.load(path, allow_pickle=False) as found:
                self.known = {key: found[key] for key in found.files}

    def of(self, arch: Architecture) -> np.ndarray:
        """Return (images,) of bool."""
        key = arch.to_json()
        if key not in self.known:
            self.known[key] = self._run(arch, self.trained.data)
            if len(self.known) % 50 == 0:
                self.save()
        return self.known[key]

    @torch.inference_mode()
    def _run(self, arch: Architecture, data: Dataset) -> np.ndarray:
        module = self.trained.subnet(arch)
        right = [
            (module(images).argmax(dim=1) == labels).numpy()
            for images, labels in batches(self.split, data.mean, data.std, torch.device("cpu"))
        ]
        return np.concatenate(right)

    def save(self) -> None:
        """Write the file whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part.npz")
        np.savez_compressed(part, **self.known)  # type: ignore[arg-type]
        part.replace(self.path)


def random_subnets(trained: Trained, limit: float, seed: int) -> list[Architecture]:
    """Draw distinct subnets within a limit; of one seed, the draws for all limits overlap."""
    rng, space = np.random.default_rng(seed), trained.space
    found: dict[Architecture, None] = {}
    for _ in range(_DRAWS):
        arch = space.sample(rng)
        if space.macs(arch) <= limit:
            found[arch] = None
        if len(found) == RANDOM:
            break
    return list(found)


def paired(other: np.ndarray, own: np.ndarray) -> str:
    """Return the mean difference in points and its standard error."""
    difference = 100 * (other.astype(float) - own)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    mark = " **> 2 s.e.**" if difference.mean() > 2 * error else ""
    return f"{difference.mean():+.2f} ± {error:.2f}{mark}"


def compare(run: Path, out: Path, images: int) -> list[str]:
    """Return the rows of one run."""
    trained = Trained.open(run)
    whole = trained.data.validation
    if images and images < len(whole):
        whole = whole.take(stratified(whole.labels.numpy(), images, "regret"))
    labels = whole.labels.numpy()
    first = stratified(labels, len(labels) // 2, "regret halves")
    second = np.setdiff1d(np.arange(len(labels)), first)
    answers = RightAnswers(trained, whole, out / f"{run.name}.npz")
    least, most = (trained.space.macs(a) for a in (trained.space.smallest, trained.space.largest))
    rows = []
    for share in SHARES:
        limit = least + share * (most - least)
        path = out / f"{run.name}-{share:.0%}.json"
        if not path.exists():
            superfednas.search(
                run,
                {"macs": limit},
                request=Request(seed=trained.seed),
                split=whole.take(first),
                out=path,
            )
        plan = Plan.load(path)
        own = answers.of(trained.space.parse(plan.chosen.text))
        random = random_subnets(trained, limit, trained.seed)
        right = np.stack([answers.of(arch) for arch in track(random, f"{run.name} {share:.0%}")])
        by_first = right[right[:, first].mean(axis=1).argmax()]
        by_second = right[right[:, second].mean(axis=1).argmax()]
        rows.append(
            f"| {run.name} | {share:.0%} ({limit / 1e6:.2f}) | {plan.scorer['measured']} | "
            f"{plan.scorer['rank_correlation']:.2f} | {plan.seconds['search']:.4f} | "
            f"{own[second].mean():.2%} | {by_first[second].mean():.2%} | "
            f"{paired(by_first[second], own[second])} | {by_second[second].mean():.2%} | "
            f"{paired(by_second[second], own[second])} | {len(second):,} |"
        )
        print(rows[-1], flush=True)
    answers.save()
    return rows


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, the seeds of one training")],
    out: Annotated[Path, typer.Option(help="Folder for plans and answers")],
    images: Annotated[int, typer.Option(help="Validation images used; 0 is all")] = 0,
    threads: Annotated[int, typer.Option(help="Of torch")] = 2,
) -> None:
    """Print the table as Markdown."""
    torch.set_num_threads(threads)
    rows = [row for run in runs for row in compare(run, out, images)]
    print("\n" + describe({"random subnets": RANDOM, "images": images or "all of validation"}))
    print(
        "| run | limit (MMACs) | measured | rank corr. | search, s | search's pick | best of 500 "
        "on the first half | regret | best of 500 on the second half | regret, biased | images |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    typer.run(main)
