"""Objects that a setting names as ``module:name``."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

# Python believes some files of `__pycache__` without a look at the source, so a folder that came
# from elsewhere may hold other code than its sources say: those of one's own are kept here.
_COMPILED = Path("~/.superfednas/compiled")
_here: list[str] = []


class NotImportableError(ValueError):
    """A ``module:name`` that cannot be imported; one sentence says why."""


def import_from(folder: Path) -> None:
    """Let :func:`import_object` look into a folder for a module that lies in no other place."""
    _here[:] = [str(folder)]


def find(name: str) -> ModuleSpec | None:
    """Return where :func:`import_object` finds a top-level module; None: nowhere.

    Nothing is imported.

    Raises
    ------
    ValueError
        For ``__main__`` and for no name at all.
    """
    found = importlib.util.find_spec(name)
    return found if _is_file(found) or name in sys.modules else _beside(name, found) or found


def import_object(reference: str, what: str) -> Any:
    """Import ``module:name``.

    Raises
    ------
    NotImportableError
        If the module or the name in it does not exist.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise NotImportableError(f"{what} {reference!r}: must be module:Name")
    try:
        with _compiled_here():
            _reach(module_name.partition(".")[0])
            return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise NotImportableError(f"{what} {reference!r} cannot be imported: {error}") from error


def _reach(name: str) -> None:
    """Put the folder on the path, last, if a module lies there alone.

    It stays: the module may import others beside it later.
    """
    if name in sys.modules:
        return
    found = importlib.util.find_spec(name)
    if not _is_file(found) and _beside(name, found):
        sys.path += (folder for folder in _here if folder not in sys.path)


def _beside(name: str, found: ModuleSpec | None) -> ModuleSpec | None:
    """Return a module in the folder, which comes before a mere folder that was found elsewhere."""
    beside = PathFinder.find_spec(name, _here)
    return beside if found is None or _is_file(beside) else None


def _is_file(spec: ModuleSpec | None) -> bool:
    """Return whether a module was found, and is not just a folder of that name."""
    return spec is not None and spec.origin is not None


@contextmanager
def _compiled_here() -> Iterator[None]:
    before = sys.pycache_prefix
    try:
        sys.pycache_prefix = str(_COMPILED.expanduser())
    except RuntimeError:  # this user has no home
        sys.pycache_prefix = os.devnull
    try:
        yield
    finally:
        sys.pycache_prefix = before
