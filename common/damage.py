"""Damage: JSON that others may have torn or changed, and one sentence for what is wrong with it.

Every file that this project reads back may have been cut off, edited or replaced. Its readers parse
it by :func:`loads` and :func:`fill`, within :func:`damage_of`: what is wrong then ends in one error
of the reader's own kind that names the file.
"""

import contextlib
import functools
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from superfednas.common.imports import NotImportableError
from superfednas.common.trust import UntrustedCodeError
from superfednas.common.words import one_line

# What reading a value of another shape than expected may raise.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_SHORT = 200
T = TypeVar("T")


def loads(text: str | bytes) -> Any:
    """Read JSON.

    Raises
    ------
    ValueError
        If it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises
    ------
    ValueError, OSError
        If it cannot be read, or holds something else.
    """
    found = loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


@contextlib.contextmanager
def damage_of(
    path: str | Path, error: type[ValueError], what: str = "is damaged"
) -> Iterator[None]:
    """Turn whatever reading a file raises into one sentence that names it.

    Parameters
    ----------
    path
        The file.
    error
        The kind to raise; one that is raised within is left as it is, and so is what is said of
        code that a whole file names.
    what
        What is said of the file, before the reason.
    """
    try:
        yield
    except (error, NotImportableError, UntrustedCodeError):
        raise
    except DAMAGE as cause:
        raise error(f"{str(path)!r} {what}: {_reason(cause)}") from None


def _reason(cause: BaseException) -> str:
    if isinstance(cause, KeyError):
        return one_line(f"it lacks {cause}", _SHORT)
    return one_line(str(cause).strip().partition("\n")[0] or type(cause).__name__, _SHORT)


def fill(cls: type[T], fields: Mapping[str, Any]) -> T:
    """Make a dataclass of JSON values, each checked against the annotation of its field.

    Raises
    ------
    TypeError
        If a field is missing, unknown, or of another type.
    """
    hints = _hints(typing.cast(type, cls))
    for key, value in fields.items():
        if key in hints and not fits(value, hints[key]):
            raise TypeError(f"{key} is {value!r:.60}")
    return cls(**fields)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type: scalars, unions, mappings, tuples, classes.

    Whole numbers are floats as well; a number that no float can hold is neither.
    """
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return True
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if kind is typing.Literal:
        return value in inner
    if kind is float:
        return isinstance(value, float) or (type(value) is int and _representable(value))
    if kind is int:
        return type(value) is int and _representable(value)
    if kind is tuple:
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    if inner and isinstance(value, Mapping):
        return all(fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items())
    return not inner and isinstance(value, type(None) if kind is None else kind)


def _representable(value: int) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
