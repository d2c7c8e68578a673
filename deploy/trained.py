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
from deploy.card import Card
from nas.accuracy import Score, calibrated, check_fit, score, subnet_module
from nas.measuring import Measured, ScoreBook, ScoreBookError
from server.run_folder import RunFolder
from server.scoring import NODES, score_file
from server.settings import check_settings
from supernet import Architecture, SearchSpace, State
from supernet.config import Scalar, SettingsError, parse
from supernet.digest import digest
from supernet.wire import SpaceOptions

KEPT = "kept"


@dataclass(frozen=True, eq=False)
class Trained:
    """A run folder, opened.

    Parameters
    ----------
    run
        The folder.
    options
        Which space, for which images.
    dataset
        In place of the run's own data set; empty takes that.
    """

    run: RunFolder
    options: SpaceOptions
    dataset: str = ""

    @classmethod
    def open(cls, run: "str | Path | Trained", dataset: str = "") -> "Trained":
        """Open a run folder; ``latest`` is the newest in ``~/.superfednas/runs``.

        One that is open already is returned, with another data set where one is named.
        """
        if isinstance(run, Trained):
            return dataclasses.replace(run, dataset=dataset) if dataset else run
        folder = RunFolder.open(run)
        return cls(folder, parse(SpaceOptions, folder.settings, ignore_unknown=True), dataset)

    @functools.cached_property
    def _weights(self) -> tuple[State, int]:
        return self.run.weights()

    @property
    def state(self) -> State:
        """The supernet's tensors; of an unfinished run those of the newest checkpoint."""
        return self._weights[0]

    @property
    def rounds(self) -> int:
        """Rounds that the tensors were trained for."""
        return self._weights[1]

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

    @functools.cached_property
    def rungs(self) -> dict[str, Architecture]:
        """The subnets that the run's own evaluations look at."""
        return check_settings(self.run.settings).rungs(self.space)

    @property
    def only_levels(self) -> bool:
        """Whether the run trained width levels alone."""
        return check_settings(self.run.settings).only_levels

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.run.settings["seed"])

    @property
    def unfinished(self) -> str:
        """Say where the run is, if it has not ended; empty if it has."""
        if self.run.info["status"] == "finished":
            return ""
        return (
            f"{str(self.run.path)!r} has not finished: round {self.run.info['round']} of "
            f"{self.run.settings['rounds']}, {self.run.info['status']}"
        )

    def about_space(self) -> dict[str, Any]:
        """Return the options of :func:`supernet.load_space`, the space's name as ``space``."""
        return dataclasses.asdict(self.options)

    def subnet(self, arch: Architecture) -> nn.Module:
        """Cut out a subnet with weights of its own, ready to run: calibrated where it needs it."""
        if self.space.norm != "batch":  # the only norm that needs images
            return calibrated(self.space, self.state, arch)
        data = self.data
        return calibrated(self.space, self.state, arch, data.train, data.mean, data.std)

    def card(self, arch: Architecture) -> Card:
        """Return what travels with an exported network of this run."""
        space, data = self.space, self.data
        return Card(
            space=self.about_space(),
            architecture=arch.to_json(),
            classes=data.classes,
            mean=data.mean,
            std=data.std,
            macs=space.macs(arch),
            params=space.params(arch),
            source={
                "run": self.run.path.name,
                "weights": self.weights,
                "rounds": self.rounds,
                "seed": self.seed,
                "data": data.name,
            },
        )

    # Scores

    def score_file(self, of: str) -> Path:
        """Where scores on some images (their digest, or ``nodes``) are kept."""
        return score_file(self.run, self.weights, of)

    def measured(self, split: Split | None = None) -> Measured:
        """Return a measurer on the validation split (or a part of it), with its file of scores."""
        split = self.data.validation if split is None else split
        key = split.digest()
        book = ScoreBook(self.score_file(key), weights=self.weights, data=key)
        return Measured(self.space, self.state, self.data, split, book=book, device=_device())

    def score(self, arch: Architecture, split: Split) -> Score:
        """Measure a subnet, and keep nothing: what a test split is for."""
        module, data = subnet_module(self.space, self.state, arch).to(_device()), self.data
        return score(module, split, data.mean, data.std, calibration=data.train)

    def book(self, scores: str) -> ScoreBook:
        """Open scores that are there: ``nodes``, ``kept`` (of earlier searches), or a file.

        Raises
        ------
        nas.measuring.ScoreBookError
            Where there are none, or they are another supernet's.
        """
        if scores == KEPT:
            path = self.score_file(self.data.validation.digest())
        else:
            path = self.score_file(NODES) if scores == NODES else Path(scores).expanduser()
        if not path.exists():
            hint = ""
            if scores == KEPT:
                hint = ": no search has measured subnets of this run on these images yet"
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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split_description(name: str, data: Dataset, split: Split) -> Mapping[str, Any]:
    """Say which images these are, for a plan."""
    return {"name": data.name, "split": name, "images": len(split), "digest": split.digest()}
