"""The choice of a reader by the card's task: pictures, or else arrays."""

from collections.abc import Callable, Iterable
from pathlib import Path

from . import arrays, classify
from .card import Card
from .model import Model

_BY_TASK: dict[str, Callable[..., int]] = {"images": classify.answer}


def reads_pictures(card: Card) -> bool:
    """Return whether a model reads picture files, and no arrays."""
    return card.task in _BY_TASK


def answer(
    model: Model,
    paths: Iterable[str | Path],
    *,
    top: int = 1,
    batch: int = 32,
    as_json: bool = False,
) -> int:
    """Print the outputs for files, one line per picture or row.

    Parameters
    ----------
    model
        The model.
    paths
        Pictures and folders of pictures for the images task, else .npz files with one array per
        input.
    top
        Classes to print for a picture.
    batch
        Rows at a time.
    as_json
        One JSON object per line instead of text.

    Returns
    -------
    int
        Exit status: 1 if a picture could not be read, else 0.

    Raises
    ------
    DeployError
        If nothing can be read, or the model does not read such files.
    """
    answering = _BY_TASK.get(model.card.task, arrays.answer)
    return answering(model, paths, top=top, batch=batch, as_json=as_json)
