"""Networks, cards and real pictures that the tests of exported files draw from."""

import functools
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from data import Dataset, DataSettings, load_dataset, normalise
from deploy.card import Card
from nas.accuracy import subnet_module
from supernet import SearchSpace, load_space
from supernet.norms import calibrate
from tests.strategies import noisy_state


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
    found = space.parse(arch)
    return Card(
        space={
            "space": space.name,
            "norm": space.norm,
            "num_classes": space.num_classes,
            "in_channels": space.in_channels,
            "image_size": space.image_size,
        },
        architecture=found.to_json(),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        macs=space.macs(found),
        params=space.params(found),
        source={"run": "β, a run's path"},
    )


def network(space: SearchSpace, arch: str, data: Dataset, seed: int = 0) -> nn.Module:
    """Give a subnet in evaluation mode, calibrated where it needs that."""
    module = subnet_module(space, noisy_state(space, seed), space.parse(arch))
    calibrate(module, [normalise(data.train.images[:200], data.mean, data.std)])
    return module.eval()


def contents(folder: Path) -> list[str]:
    """List all that lies in a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
