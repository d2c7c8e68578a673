"""Compare the subnet that a search picks with the best of 500 random ones under the same limit.

    python benchmarks/search_regret.py RUN1 RUN2 RUN3 --out regret

For every run folder and for limits at 25, 50 and 75% of the range of MACs: the validation images
are divided in two halves. The search measures and chooses on the first half. On the second half its
pick is compared with 500 random subnets (uniform over genes, within the limit), in three ways:

- *first half*: with the one of the 500 that is best on the first half. That is random search with
  the same images and nine times as many measurements.
- *cross-fitted*: with the best of the 500 on the second half, which is chosen on nine tenths of it
  and read on the last tenth, for each tenth in turn: no image is read by a subnet that it chose.
- *biased*: with the one that is best on the second half itself, read on the very images that chose
  it. Its advantage is partly the luck of 500 draws, so this regret is too large, for the true best
  subnet as well.

Regret is in points of accuracy, positive where the search is worse; the standard error is that of
the paired difference over the images of the second half. What each subnet answers right is kept in
``--out``, so an interrupted command goes on where it was.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track

import superfednas
from superfednas.bench.machine import describe
from superfednas.common.settings import flatten
from superfednas.data import Dataset, Split
from superfednas.data.splits import stratified
from superfednas.nas.pipeline import Request
from superfednas.nas.plan import Plan
from superfednas.nas.score.tallies import batches
from superfednas.records.folder import RunFolder
from superfednas.records.trained import Trained
from superfednas.server.settings import check_settings
from superfednas.supernet import Architecture

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
            (module(*inputs).argmax(dim=1) == targets["labels"]).numpy()
            for inputs, targets in batches(data.task, self.split, torch.device("cpu"))
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


def cross_fitted(right: np.ndarray) -> np.ndarray:
    """Return for each image whether it is answered by the subnet that is best on the other tenths.

    Parameters
    ----------
    right
        (subnets, images) of bool.
    """
    images = right.shape[1]
    answers = np.empty(images, dtype=bool)
    for tenth in np.array_split(np.random.default_rng(0).permutation(images), 10):
        others = np.setdiff1d(np.arange(images), tenth)
        answers[tenth] = right[right[:, others].mean(axis=1).argmax(), tenth]
    return answers


def training(run: RunFolder) -> str:
    """Return the command that trains such a run, without its seed."""
    defaults = flatten(check_settings({}))
    own = ("run-dir", "seed", "num-classes", "in-channels", "image-size")
    changed = {
        key: value
        for key, value in run.settings.items()
        if key not in own and value != defaults.get(key)
    }
    return " ".join(["superfednas train", *(f"--{key} {value}" for key, value in changed.items())])


def compare(run: Path, out: Path, images: int) -> list[str]:
    """Return the rows of one run."""
    trained = Trained.open(run)
    whole = trained.data.validation
    if images and images < len(whole):
        whole = whole.take(stratified(trained.data.strata(whole), images, "regret"))
    labels = trained.data.strata(whole)
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
        crossed = cross_fitted(right[:, second])
        rows.append(
            f"| {run.name} | {share:.0%} ({limit / 1e6:.2f}) | {plan.scorer['measured']} | "
            f"{plan.scorer['rank_correlation']:.2f} | {plan.seconds['search']:.4f} | "
            f"{own[second].mean():.2%} | {by_first[second].mean():.2%} | "
            f"{paired(by_first[second], own[second])} | {crossed.mean():.2%} | "
            f"{paired(crossed, own[second])} | {by_second[second].mean():.2%} | "
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
    commands = {
        f"`{run.name}` trained for {folder.info['round']} rounds by": f"`{training(folder)}`"
        for run, folder in ((run, RunFolder.open(run)) for run in runs)
    }
    print("\n" + describe({"images": images or "all of validation", **commands}))
    heads = ("run", "limit (MMACs)", "measured", "rank corr.", "search, s", "search's pick")
    for way in ("first half", "cross-fitted", "biased"):
        heads += (f"best of {RANDOM}, {way}", "regret")
    print("| " + " | ".join([*heads, "images"]) + " |\n|" + "---|" * (len(heads) + 1))
    print("\n".join(rows))


if __name__ == "__main__":
    typer.run(main)
