"""Search spaces by name, and anybody's own by ``module:Class``."""

import json
from inspect import isabstract

from superfednas.common.imports import import_object
from superfednas.supernet.families.mobilenet.spaces import MOBILENETS
from superfednas.supernet.families.resnet.spaces import ResNet10To26, ResNetTiny
from superfednas.supernet.families.resnet.wide import ResNet10To26Wide
from superfednas.supernet.space import SearchSpace
from superfednas.tasks import Task, load_task
from superfednas.tasks.images import Images

_FAMILIES: tuple[type[SearchSpace], ...] = (
    ResNet10To26,
    ResNet10To26Wide,
    ResNetTiny,
    *MOBILENETS,
)
SPACES: dict[str, type[SearchSpace]] = {family.name: family for family in _FAMILIES}


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
        raise ValueError(f"space {name!r} is no subclass of superfednas.supernet.SearchSpace")
    return found


def load_space(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    norm: str = "group",
    task: Task | str = "",
    task_options: str = "",
) -> SearchSpace:
    """Return a search space for a task and norm (see :class:`SearchSpace`).

    Parameters
    ----------
    num_classes, in_channels, image_size
        Of the images, where the task is their classification.
    task, task_options
        In their place another task: itself, or its name with its options as JSON.
    """
    kind = space_class(name)
    if not isinstance(task, Task):
        if task in ("", Images.name):
            task = Images(num_classes, in_channels, image_size)
        else:
            task = load_task(task, json.loads(task_options or "{}"))
    return kind(task, norm)
