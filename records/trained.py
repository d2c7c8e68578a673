"""A trained supernet and everything asked of it later: its space, weights, images and files."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superfednas.common.damage import damage_of
from superfednas.common.digest import digest
from superfednas.common.settings import Scalar, SettingsError, parse
from superfednas.common.trust import check_code
from superfednas.data import Dataset, DataSettings, Split, load_dataset
from superfednas.nas.score.measured import Measured, ScoreBook, ScoreBookError
from superfednas.nas.score.tallies import calibrated, check_fit, score, subnet_module
from superfednas.records.folder import LADDER, ONLY_LEVELS, RunFolder, RunFolderError
from superfednas.records.scores import NODES, score_file
from superfednas.supernet import Architecture, SearchSpace, State
from superfednas.tasks import Tally
from superfednas.wire.order import SpaceOptions

KEPT = "kept"


@dataclass(frozen=True, eq=False)
class Trained:
    """A run folder, opened.

    Parameters
    ----------
    run
        The folder.
    options
        The space and its images.
    dataset
        Instead of the run's own data set; empty for that.
    ladder, levels
        In place of what ``run.json`` says of the subnets that the run looks at, and of whether it
        trains width levels alone; those of earlier versions say neither.
    """

    run: RunFolder
    options: SpaceOptions
    dataset: str = ""
    ladder: Mapping[str, Architecture] | None = None
    levels: bool | None = None

    @classmethod
    def open(
        cls, run: "str | Path | Trained", dataset: str = "", *, trust_code: bool = False
    ) -> "Trained":
        """Open a run folder; ``latest`` is the newest in ``~/.superfednas/runs``.

        An open run is returned as it is, with another data set if one is named.

        Raises
        ------
        superfednas.common.trust.UntrustedCodeError
            If the folder names modules that nobody has trusted; ``trust_code`` trusts them.
        """
        if isinstance(run, Trained):
            return dataclasses.replace(run, dataset=dataset) if dataset else run
        folder = RunFolder.open(run)
        named = {**folder.settings, "dataset": "" if dataset else folder.settings.get("dataset")}
        check_code(named, folder.path, trust_code)
        return cls(folder, parse(SpaceOptions, folder.settings, ignore_unknown=True), dataset)

    @functools.cached_property
    def _weights(self) -> tuple[State, int]:
        state, rounds = self.run.weights()
        check_state(state, self.space, str(self.run.path))
        return state, rounds

    @property
    def state(self) -> State:
        """The supernet's tensors; for an unfinished run those of the newest checkpoint."""
        return self._weights[0]

    @property
    def rounds(self) -> int:
        """Number of rounds that the tensors were trained for."""
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
        """The run's data set, or the one given instead.

        Raises
        ------
        SettingsError
            If the run's server had none, and none is given.
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
        """The subnets that the run's own evaluations score."""
        if self.ladder is not None:
            return dict(self.ladder)
        kept: dict[str, str] = self._said(LADDER)
        with damage_of(self.run.path / "run.json", RunFolderError):
            return {name: self.space.parse(text) for name, text in kept.items()}

    @property
    def only_levels(self) -> bool:
        """Whether the run trained only width levels."""
        return bool(self._said(ONLY_LEVELS) if self.levels is None else self.levels)

    @property
    def says_what_it_trained(self) -> bool:
        """Whether :attr:`rungs` and :attr:`only_levels` are known."""
        return self.ladder is not None or LADDER in self.run.info

    def _said(self, key: str) -> Any:
        if key not in self.run.info:
            raise RunFolderError(
                f"{str(self.run.path / 'run.json')!r} is of an earlier version and does not say "
                f"{key!r}: superfednas.search and the command line work it out"
            )
        return self.run.info[key]

    @property
    def seed(self) -> int:
        """The run's seed."""
        with damage_of(self.run.path / "run.json", RunFolderError):
            return int(self.run.settings["seed"])

    @property
    def unfinished(self) -> str:
        """Return how far an unfinished run is; empty if it has finished."""
        with damage_of(self.run.path / "run.json", RunFolderError):
            status, done = self.run.info["status"], self.run.info["round"]
        if status == "finished":
            return ""
        return (
            f"{str(self.run.path)!r} has not finished: round {done} of "
            f"{self.run.settings['rounds']}, {status}"
        )

    def about_space(self) -> dict[str, Any]:
        """Return the options of ``load_space``, the space's name as ``space``."""
        return dataclasses.asdict(self.options)

    def subnet(self, arch: Architecture) -> nn.Module:
        """Extract a subnet with its own weights, ready to run: calibrated if it needs that."""
        if self.space.norm != "batch":  # the only norm that needs images
            return calibrated(self.space, self.state, arch)
        return calibrated(self.space, self.state, arch, self.data)

    # Scores

    def score_file(self, of: str) -> Path:
        """Return the file of scores on some images (their digest, or ``nodes``)."""
        return score_file(self.run, self.weights, of)

    def measured(self, split: Split | None = None) -> Measured:
        """Return a scorer on the validation split (or a part of it), with its file of scores."""
        split = self.data.validation if split is None else split
        key = split.digest()
        metrics = self.space.task.metrics
        book = ScoreBook(self.score_file(key), weights=self.weights, data=key, metrics=metrics)
        return Measured(self.space, self.state, self.data, split, book=book, device=_device())

    def score(self, arch: Architecture, split: Split) -> Tally:
        """Measure a subnet without keeping the result, as for a test split."""
        module = subnet_module(self.space, self.state, arch).to(_device())
        return score(module, self.data, split)

    def book(self, scores: str) -> ScoreBook:
        """Open existing scores: ``nodes``, ``kept`` (from earlier searches), or a file.

        Raises
        ------
        superfednas.nas.score.measured.ScoreBookError
            If there are none, or they are of another supernet.
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
        book = ScoreBook.open(path, self.space.task.metrics)
        if book.weights != self.weights:
            raise ScoreBookError(
                f"{str(path)!r} holds scores of another supernet (weights {book.weights:.12}; "
                f"{str(self.run.path)!r} has {self.weights:.12})"
            )
        return book


def check_state(state: State, space: SearchSpace, where: str) -> None:
    """Refuse weights of another space.

    Raises
    ------
    RunFolderError
        With the first tensor that differs.
    """
    needed = space.shapes(space.largest)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != needed:
        differing = sorted(
            name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name)
        )
        name = differing[0]
        raise RunFolderError(
            f"the weights in {where!r} are not those of {space.name} with these options: {name!r} "
            f"is {found.get(name, 'missing')}, must be {needed.get(name, 'absent')}"
        )


def trusted_settings(run: RunFolder, trust_code: bool = False) -> dict[str, Scalar]:
    """Return a run's settings, whose modules are trusted.

    Raises
    ------
    superfednas.common.trust.UntrustedCodeError
        If they name modules that nobody has trusted; ``trust_code`` trusts them.
    """
    settings: dict[str, Scalar] = run.settings
    check_code(settings, run.path, trust_code)
    return settings


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split_description(name: str, data: Dataset, split: Split) -> Mapping[str, Any]:
    """Describe these images for a plan."""
    return {"name": data.name, "split": name, "images": len(split), "digest": split.digest()}
