"""Hypothesis strategies and small things that several test modules draw from."""

import functools
from typing import Any

import torch
from hypothesis import strategies as st

from superfednas.data import Dataset, Split
from superfednas.supernet import Architecture, SearchSpace, State, load_space
from superfednas.supernet.norms import NORMS
from tests.support.pictures import picture_set, pictured

norms = st.sampled_from(NORMS)
seeds = st.integers(0, 2**31)


@functools.cache
def space(name: str = "resnet-tiny", **options: Any) -> SearchSpace:
    """Give a space for 8×8 grey images with 3 classes, unless said otherwise."""
    return load_space(name, **({"num_classes": 3, "in_channels": 1, "image_size": 8} | options))


def choices(of: SearchSpace) -> st.SearchStrategy[list[int]]:
    """Draw one choice a gene."""
    return st.tuples(*(st.integers(0, n - 1) for n in of.genes)).map(list)


def architectures(of: SearchSpace) -> st.SearchStrategy[Architecture]:
    """Draw an architecture of a space."""
    return choices(of).map(of.decode)


def noisy_state(of: SearchSpace, seed: int = 0) -> State:
    """Give a supernet whose norm parameters are not all alike."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in of.init(seed).items()
    }


def pictures(count: int, *, size: int = 8, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Give normal noise (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


def small_split(rows: int, seed: int = 0, classes: int = 3) -> Split:
    """Give random 8×8 grey images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return pictured(images, torch.arange(rows) % classes)


def small_dataset(train: int = 10, validation: int = 6) -> Dataset:
    """Give a data set of 8×8 grey images in three classes."""
    parts = (small_split(train, 1), small_split(validation, 2), small_split(3, 3))
    return picture_set("small", *parts, ("a", "b", "c"))
