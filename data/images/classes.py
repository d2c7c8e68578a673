"""Classes of a node's own images, put in the order of a run's."""

import functools
from dataclasses import replace

import torch

from superfednas.data.dataset import DataError, Dataset, Split
from superfednas.tasks.images import Images
from superfednas.tasks.images.task import LABELS


@functools.lru_cache(maxsize=4)  # a node asks with every message
def in_order(dataset: Dataset, text: str) -> Dataset:
    """Return a data set whose label k means the k-th class of a list.

    Parameters
    ----------
    dataset
        Of images; each of its classes must be in the list, which may have more.
    text
        Names with commas between them; ``cat=Katze`` says that the data set calls it Katze.

    Raises
    ------
    DataError
        If a name is there twice, or is not one of the data set's, or one of these is missing.
    """
    task = dataset.task
    if not isinstance(task, Images):
        raise DataError(f"classes = {text!r}: {dataset.name} holds no images.")
    entries = [entry.partition("=") for entry in text.split(",")]
    names = [name.strip() for name, _, _ in entries]
    called = [(own or name).strip() for name, _, own in entries]
    for listed in (names, called):
        twice = next((name for name in listed if listed.count(name) > 1 or not name), None)
        if twice is not None:
            raise DataError(f"classes = {text!r}: {twice!r} is there twice or is empty.")
    places = {own: k for k, own in enumerate(called)}
    if missing := [own for own in task.classes if own not in places]:
        raise DataError(
            f"classes = {text!r} does not say what {missing[0]!r} is; the classes of "
            f"{dataset.name} are {', '.join(task.classes)}."
        )
    lookup = torch.tensor([places[own] for own in task.classes])

    def moved(split: Split) -> Split:
        return Split(split.fields, {LABELS: lookup[split.targets[LABELS]]})

    return replace(
        dataset,
        task=replace(task, num_classes=len(names), classes=tuple(names)),
        train=moved(dataset.train),
        validation=moved(dataset.validation),
        test=moved(dataset.test),
    )
