"""Points of a search space: frozen, hashable, and a short JSON text."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

Shape = tuple[int, ...]
_HUGE = 1e6


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Base of every family's architecture: a frozen dataclass of numbers and nested tuples.

    A subclass checks and canonicalises its fields in ``__post_init__``, so that equal networks are
    equal and hash equal. Subclasses register themselves; ``Architecture.from_json`` picks the one
    whose fields are the text's keys.
    """

    _families: ClassVar[list[type["Architecture"]]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: D105
        super().__init_subclass__(**kwargs)
        Architecture._families.append(cls)

    def to_json(self) -> str:
        """Return the architecture as one line of JSON, fields in declaration order."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        # Not asdict, which copies every list in it first.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps(fields, separators=(",", ":"), default=dataclasses.asdict)

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote (or an equal mapping).

        Raises
        ------
        ValueError
            Where the text is not JSON, its keys are no family's fields, or a field is wrong.
        """
        try:
            fields = json.loads(text) if isinstance(text, str) else dict(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"architecture {text!r:.200} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"architecture {text!r} must be a JSON object")
        known = {
            family: {field.name for field in dataclasses.fields(family)}
            for family in Architecture._families
            if issubclass(family, cls)
        }
        for family, names in known.items():
            if names == set(fields):
                return family(**fields)
        allowed = " or ".join(sorted({str(sorted(names)) for names in known.values()}))
        raise ValueError(f"architecture has the fields {sorted(fields)}; allowed: {allowed}")

    def shapes_within(self, supernet: Mapping[str, Shape]) -> dict[str, Shape]:
        """Names and shapes of this subnet inside a supernet, from the supernet's shapes alone.

        Optional: it lets :func:`superfednas.supernet.boxes.extract` cut a state without its
        space at hand.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be located without its space: "
            "pass space.shapes(arch) or space.boxes(arch) instead of the architecture"
        )


# What its fields may hold


def is_list(value: object) -> bool:
    """Say whether a field holds a list, as JSON and callers write them."""
    return isinstance(value, list | tuple)


def is_number(value: object) -> bool:
    """Say whether a field holds a number of ordinary size."""
    # Compared, not converted: JSON may hold integers that no float can.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_HUGE < value < _HUGE  # false for NaN
    )


def is_whole(value: Any) -> bool:
    """Say whether a field holds a whole number from 0, be it written as 2 or as 2.0."""
    return is_number(value) and bool(value == int(value) and value >= 0)
