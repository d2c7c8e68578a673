"""Classes by name: those known here, and a user's own as ``module:Class``."""

from collections.abc import Mapping
from inspect import isabstract
from typing import Any

from superfednas.common.imports import import_object
from superfednas.common.settings import SettingsError


def named(key: str, name: str, known: Mapping[str, Any], what: str = "module:Class") -> Any:
    """Return what a setting names: a known object, or one imported by reference.

    Raises
    ------
    SettingsError
        For a name that is not known, or a reference that cannot be imported.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        raise SettingsError(f"{key} = {name!r}: must be one of {', '.join(known)}, or {what}")
    try:
        return import_object(name, key)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def named_class(key: str, name: str, known: Mapping[str, type[Any]], base: type[Any]) -> Any:
    """Return the class that a setting names, which must be a subclass of ``base``.

    Raises
    ------
    SettingsError
        As :func:`named`, and for anything that is not such a class, or lacks a method.
    """
    found = named(key, name, known)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SettingsError(
            f"{key} {name!r} is no subclass of {base.__module__}.{base.__qualname__}"
        )
    if isabstract(found):
        lacking = ", ".join(sorted(vars(found)["__abstractmethods__"]))
        raise SettingsError(f"{key} {name!r} lacks {lacking}")
    return found
