"""Spaces as files describe them: a model file, a personal file or a plan, which anybody may write.

What a file says is checked in the order in which it could do harm: sizes, then the modules that it
names, both before anything is imported or built; then the shapes of the tensors beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from superfednas.common.settings import parse
from superfednas.common.trust import check_code
from superfednas.supernet.architecture import Architecture
from superfednas.supernet.registry import load_space
from superfednas.supernet.space import SearchSpace
from superfednas.wire.order import SpaceOptions


def described_space(
    options: Mapping[str, Any], where: str | Path, *, trust_code: bool = False
) -> SearchSpace:
    """Return the space that a file describes.

    Parameters
    ----------
    options
        Those of :func:`superfednas.supernet.load_space`, the space's name as ``space``.
    where
        The file, for errors.
    trust_code
        Trust the modules that it names.

    Raises
    ------
    superfednas.common.trust.UntrustedCodeError
        If it names a module that nobody has trusted.
    ValueError
        If a size is out of bounds, or there is no such space or option.
    """
    own = dict(options)
    parse(SpaceOptions, {key.replace("_", "-"): value for key, value in own.items()})
    check_code(own, where, trust_code)
    return load_space(own.pop("space"), **own)


def check_tensors(
    space: SearchSpace, arch: Architecture, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Check that tensors have the shapes of an architecture, before its module is built.

    Raises
    ------
    ValueError
        For the first that is missing or has another shape; further ones are not looked at.
    """
    for name, shape in space.shapes(arch).items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise ValueError(
                f"its tensor {name!r} is {found}; of the space and sizes that it names: {shape}"
            )
