"""Networks, cards and real pictures that the tests of exported files draw from."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from superfednas.data import Dataset, DataSettings, load_dataset
from superfednas.deploy.device.cards import make_card
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.earlier import picture_fields
from superfednas.nas.score.tallies import subnet_module
from superfednas.supernet import SearchSpace, load_space
from superfednas.supernet.norms import calibrate
from superfednas.tasks.describe import describe
from tests.support.pictures import read
from tests.support.strategies import noisy_state


@functools.cache
def digits() -> Dataset:
    """Give scikit-learn's handwritten digits: 8×8 grey, ten classes."""
    return load_dataset(DataSettings())


@functools.cache
def tiles() -> torch.Tensor:
    """Give 32×32 tiles of scikit-learn's two photographs: uint8 (520, 3, 32, 32)."""
    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    return photographs.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def digits_space(norm: str) -> SearchSpace:
    """Give the small space for digits."""
    return load_space("resnet-tiny", norm=norm, num_classes=10, in_channels=1, image_size=8)


def card_for(space: SearchSpace, arch: str, data: Dataset) -> Card:
    """Describe a subnet as an export does."""
    options = {"space": space.name, "norm": space.norm, **space.task.options}
    source = {"run": "β, a run's path"}
    return make_card(space, options, space.parse(arch), describe(data.task), source)


def network(space: SearchSpace, arch: str, data: Dataset, seed: int = 0) -> nn.Module:
    """Give a subnet in evaluation mode, calibrated where it needs that."""
    module = subnet_module(space, noisy_state(space, seed), space.parse(arch))
    calibrate(module, [(read(data, data.train.first(200)),)])
    return module.eval()


def contents(folder: Path) -> list[str]:
    """List all that lies in a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def picture_card(channels: int = 3, size: int = 8, classes: tuple[str, ...] = ("a", "b")) -> Card:
    """Describe a network of pictures that nobody trained."""
    return Card(architecture="{}", macs=1, params=1, **picture_note(channels, size, classes))


def picture_note(
    channels: int = 3,
    size: int = 8,
    classes: tuple[str, ...] = ("a", "b"),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> dict[str, Any]:
    """Give a card's fields that tell of pictures."""
    space = {
        "space": "resnet-tiny",
        "norm": "none",
        "num_classes": len(classes),
        "in_channels": channels,
        "image_size": size,
    }
    note = {
        "space": space,
        "classes": classes,
        "mean": tuple(mean) or (0.5,) * channels,
        "std": tuple(std) or (0.25,) * channels,
    }
    return {"space": space, **picture_fields(note)}
