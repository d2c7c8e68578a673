"""Search spaces by name, and anybody's own by ``module:Class``."""

import importlib
from inspect import isabstract
from typing import Any

from supernet.mobilenet import MOBILENETS
from supernet.resnet import ResNet10To26, ResNetTiny
from supernet.resnet_wide import ResNet10To26Wide
from supernet.space import SearchSpace

_FAMILIES: tuple[type[SearchSpace], ...] = (
    ResNet10To26,
    ResNet10To26Wide,
    ResNetTiny,
    *MOBILENETS,
)
SPACES: dict[str, type[SearchSpace]] = {family.name: family for family in _FAMILIES}


def import_object(reference: str, what: str) -> Any:
    """Import ``module:name``.

    Raises
    ------
    ValueError
        Where the module or the name in it does not exist.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{what} {reference!r} cannot be imported: {error}") from error


def space_class(name: str) -> type[SearchSpace]:
    """Find a space's class by registered name or ``module:Class``.

    Raises
    ------
    ValueError
        For an unknown name or a class that is no :class:`SearchSpace`.
    """
    if name in SPACES:
        return SPACES[name]
    if ":" not in name:
        known = ", ".join(sorted(SPACES))
        raise ValueError(f"space = {name!r}: must be one of {known}, or module:Class of your own")
    found = import_object(name, "space")
    if isabstract(found):
        raise ValueError(f"space {name!r} lacks {', '.join(sorted(found.__abstractmethods__))}")
    if not (isinstance(found, type) and issubclass(found, SearchSpace)):
        raise ValueError(f"space {name!r} is no subclass of supernet.SearchSpace")
    return found


def load_space(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    norm: str = "group",
) -> SearchSpace:
    """Return a search space for given images, classes and norm (see :class:`SearchSpace`)."""
    return space_class(name)(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, norm=norm
    )
