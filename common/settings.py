"""Settings as frozen dataclasses, filled from flat ``kebab-case = scalar`` mappings and checked.

Flower's run-config, a message's ``ConfigRecord`` and the command line all speak flat scalars. A
settings class is an ordinary frozen dataclass whose fields are made by :func:`setting`; groups nest
(a field may itself be such a dataclass) and still share one flat name space.
"""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Scalar = bool | int | float | str
_LARGEST = 2**63 - 1  # the largest integer that a message's config can carry
T = TypeVar("T")


class SettingsError(ValueError):
    """An invalid key or value; the message names it and says what is allowed."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key: where it belongs, its type, default, bounds and help text."""

    key: str
    kind: type
    default: Scalar
    help: str
    low: float | None
    high: float | None
    above: float | None
    choices: tuple[str, ...] | None

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        words = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.low),
                ("above", self.above),
                ("at most", self.high),
            )
            if bound is not None
        ]
        return " ".join([words[self.kind], " and ".join(bounds)]).strip()

    def check(self, value: Scalar) -> Scalar:
        """Return ``value`` as this setting's type.

        Raises
        ------
        SettingsError
            If the type does not fit or the value is out of range.
        """
        given = value
        fits = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if isinstance(value, int) and abs(value) > _LARGEST:
            fits = False
        elif self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value, fits = float(value), True
        if fits and self.choices is not None:
            fits = value in self.choices
        if fits and isinstance(value, int | float) and self.kind is not bool:
            fits = (
                math.isfinite(value)
                and (self.low is None or value >= self.low)
                and (self.above is None or value > self.above)
                and (self.high is None or value <= self.high)
            )
        if not fits:
            raise SettingsError(f"{self.key} = {given!r:.100}: {self.key} must be {self.allowed}.")
        return value


def setting(
    default: Scalar,
    help: str,  # noqa: A002 (the word every command-line library uses)
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare one field of a settings dataclass (``low <= value <= high``, ``value > above``)."""
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """Every key of a settings class, nested groups included, in declaration order."""
    found: dict[str, Setting] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found.update(settings_of(typing.cast(type, kind)))
        else:
            key = field.name.replace("_", "-")
            found[key] = Setting(key, kind, typing.cast(Scalar, field.default), **field.metadata)
    return found


def parse(cls: type[T], values: Mapping[str, Scalar], *, ignore_unknown: bool = False) -> T:
    """Build a settings object from flat kebab-case scalars; missing keys take their defaults.

    Parameters
    ----------
    cls
        A frozen dataclass made of :func:`setting` fields and nested groups of them.
    values
        Flat mapping, for instance Flower's ``context.run_config``.
    ignore_unknown
        Accept keys of other groups, for callers that read only a part of a run-config.

    Raises
    ------
    SettingsError
        For an unknown key (with the nearest known one) or a value that is not allowed.
    """
    known = settings_of(typing.cast(type, cls))
    for key in values:
        if key not in known and not ignore_unknown:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "known keys: " + ", ".join(known)
            raise SettingsError(f"unknown key {key!r} (= {values[key]!r}): {hint}")
    checked = {key: s.check(values[key]) for key, s in known.items() if key in values}
    return _assemble(cls, checked)


def _assemble(cls: type[T], checked: Mapping[str, Scalar]) -> T:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = _assemble(hints[field.name], checked)
        elif key in checked:
            arguments[field.name] = checked[key]
    return cls(**arguments)


def flatten(settings: Any) -> dict[str, Scalar]:
    """Return the flat kebab-case mapping of a settings object; the inverse of :func:`parse`."""
    flat: dict[str, Scalar] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value))
        else:
            flat[field.name.replace("_", "-")] = value
    return flat
