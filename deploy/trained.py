"""A trained supernet with all that is asked of it later: its space, weights, images and files."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data import Dataset, DataSettings, Split, load_dataset
from nas.accuracy import calibrated, check_fit
from nas.measuring import Measured, ScoreBook, ScoreBookError
from server.run_folder import RunFolder
from server.scoring import NODES, score_file
from supernet import Architecture, SearchSpace, State
from supernet.config import Scalar, SettingsError, parse
from supernet.digest import digest
from supernet.wire import SpaceOptions


@dataclass(frozen=True, eq=False)
class Trained:
    """A run folder, opened.

    Parameters
    ----------
    run
        The folder.
    options
        Which space, for which images.
    state
        The supernet's tensors; of an unfinished run those of the newest checkpoint.
    rounds
        Rounds that they were trained for.
    dataset
        In place of the run's own data set; empty takes that.
    """

    run: RunFolder
    options: SpaceOptions
    state: State
    rounds: int
    dataset: str = ""

    @classmethod
    def open(cls, run_dir: str | Path, dataset: str = "") -> "Trained":
        """Open a run folder; ``latest`` is the newest in ``~/.superfednas/runs``."""
        run = RunFolder.open(run_dir)
        state, rounds = run.weights()
        options = parse(SpaceOptions, run.settings, ignore_unknown=True)
        return cls(run, options, state, rounds, dataset)

    @functools.cached_property
    def space(self) -> SearchSpace:
        """The run's search space."""
        return self.options.load()

    @functools.cached_property
    def weights(self) -> str:
        """Digest of the supernet's tensors."""
        return digest(self.state)

    @functools.cached_property
    def data(self) -> Dataset:
        """The run's data set, or the one in its place.

        Raises
        ------
        SettingsError
            Where the run's server had none, and none is named.
        """
        values: dict[str, Scalar] = self.run.settings
        if self.dataset:
            values["dataset"] = self.dataset
        if values["dataset"] == "none":
            raise SettingsError("the run's server had no data: name a data set (--dataset)")
        data = load_dataset(parse(DataSettings, values, ignore_unknown=True))
        check_fit(self.space, data)
        return data

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.run.settings["seed"])

    def about_space(self) -> dict[str, Any]:
        """Return the options of :func:`supernet.load_space`, the space's name as ``space``."""
        return dataclasses.asdict(self.options)

    def subnet(self, arch: Architecture) -> nn.Module:
        """Cut out a subnet with weights of its own, ready to run: calibrated where it needs it."""
        images = self.data.train if self.space.norm == "batch" else None
        constants = (self.data.mean, self.data.std) if images is not None else ((), ())
        return calibrated(self.space, self.state, arch, images, *constants)

    # Scores

    def score_file(self, of: str) -> Path:
        """Where scores on some images (their digest, or ``nodes``) are kept."""
        return score_file(self.run, self.weights, of)

    def measured(self, split: Split | None = None) -> Measured:
        """Return a measurer on the validation split (or a part of it), with its file of scores."""
        split = self.data.validation if split is None else split
        key = split.digest()
        book = ScoreBook(self.score_file(key), weights=self.weights, data=key)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Measured(self.space, self.state, self.data, split, book=book, device=device)

    def book(self, scores: str) -> ScoreBook:
        """Open scores that are there: ``nodes``, or a file.

        Raises
        ------
        nas.measuring.ScoreBookError
            Where there are none, or they are another supernet's.
        """
        path = self.score_file(NODES) if scores == NODES else Path(scores).expanduser()
        if not path.exists():
            hint = ""
            if scores == NODES:
                command = f"flwr run . --run-config \"score-run='{self.run.path}'\""
                hint = f": the nodes have not scored yet ({command})"
            raise ScoreBookError(f"{str(path)!r} does not exist{hint}")
        book = ScoreBook.open(path)
        if book.weights != self.weights:
            raise ScoreBookError(
                f"{str(path)!r} holds scores of another supernet (weights {book.weights:.12}; "
                f"{str(self.run.path)!r} has {self.weights:.12})"
            )
        return book


def split_description(name: str, data: Dataset, split: Split) -> Mapping[str, Any]:
    """Say which images these are, for a plan."""
    return {"name": data.name, "split": name, "images": len(split), "digest": split.digest()}
