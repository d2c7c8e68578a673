"""Pins: what a node's operator lets a run ask of the node, as ``allow`` in the node config.

A run's settings come from whoever started the run. The node holds every message to its pins before
it reads or computes anything for it; a refusal names the pin, the value asked for and the value
allowed, and concerns this node alone. Nothing here imports torch or Flower.
"""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from superfednas.common.settings import Scalar
from superfednas.wire.claims import shown
from superfednas.wire.errands import ERRANDS, PERSONALISE, SCORE, TRAIN

_IS, _MOST, _LEAST = "=", "<=", ">="
PINS = {
    "errands=train,score": "what it does, of train, score and personalise",
    "dataset=digits,hf:NAME": "what it takes a part of; paths only from here",
    "local-epochs<=5": "of a round; local-steps then need a pin as well",
    "local-steps<=100": "of a round; local-epochs then need a pin as well",
    "fine-tune-epochs<=10": "of a personalised subnet",
    "batch-size<=64": "images a step",
    "batch-size>=16": "the same, as few images' gradients give them away",
    "dp-clip<=0.3": "what it sends is clipped to this norm, or less",
    "dp-noise>=1": "and has this much noise, or more",
}
"""Every pin, written as an example, and what it means."""
_WORD = re.compile(r"([a-z-]+)(<=|>=|=)(.*)", re.DOTALL)
_FRACTIONS = ("dp-clip", "dp-noise")
_LISTS = ("errands", "dataset")
_EPOCHS, _STEPS, _TUNING = "local-epochs", "local-steps", "fine-tune-epochs"


def _signs() -> dict[str, list[str]]:
    signs: dict[str, list[str]] = {}
    for key, sign, _ in (_WORD.match(example).groups() for example in PINS):  # type: ignore[union-attr]
        signs.setdefault(key, []).append(sign)
    return signs


_SIGNS = _signs()


class PinError(ValueError):
    """An invalid pin; the message names it and says what is allowed."""


class NotAllowedError(ValueError):
    """Something that this node's operator does not allow; the message names pin and values."""


@dataclass(frozen=True)
class Pin:
    """One condition.

    Parameters
    ----------
    key, sign
        Of which setting, and how it is compared: ``=``, ``<=`` or ``>=``.
    text
        The value as it is written.
    values
        The allowed values of a list; of a number none.
    bound
        The bound of a number.
    """

    key: str
    sign: str
    text: str
    values: tuple[str, ...] = ()
    bound: float = math.nan

    def __str__(self) -> str:
        """Return the pin as it is written."""
        return f"{self.key}{self.sign}{self.text}"

    def holds(self, value: Scalar) -> bool:
        """Return whether a value of the setting is allowed."""
        if self.sign == _IS:
            return value in self.values
        if isinstance(value, str):
            return False
        if self.key == "dp-clip" and not value:  # 0 does not clip
            return False
        return value <= self.bound if self.sign == _MOST else value >= self.bound


@dataclass(frozen=True)
class Pins:
    """All pins of a node; without any, every value is allowed.

    Parameters
    ----------
    pins
        In the order in which they are written.
    """

    pins: tuple[Pin, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Pins":
        """Read ``allow``: pins with spaces between them, those of :data:`PINS`.

        Raises
        ------
        PinError
            For the first that is none of them, or is there twice.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise PinError(f"allow = {shown(text)}: {error}") from None
        found: dict[tuple[str, str], Pin] = {}
        for word in words:
            pin = _pin(word)
            if (pin.key, pin.sign) in found:
                raise PinError(f"allow: {pin.key}{pin.sign} is there twice")
            found[pin.key, pin.sign] = pin
        return cls(tuple(found.values()))

    def of(self, key: str) -> list[Pin]:
        """Return the pins of a setting."""
        return [pin for pin in self.pins if pin.key == key]

    def check(self, errand: str, asked: Mapping[str, Scalar]) -> None:
        """Refuse an order that goes beyond the pins, except for its ``dataset``.

        Parameters
        ----------
        errand
            One of :data:`superfednas.wire.errands.ERRANDS`.
        asked
            The order's settings by key; those that are missing are not asked for.

        Raises
        ------
        NotAllowedError
            For the first setting that is not allowed.
        """
        self.hold("errands", errand)
        if errand == SCORE:
            return
        self.hold("batch-size", asked.get("batch-size"))
        self._hold_work(errand, asked)
        if errand == TRAIN and "dp-clip" in asked:
            self.hold("dp-clip", asked["dp-clip"])
            self.hold("dp-noise", asked.get("dp-noise") if asked["dp-clip"] else 0.0)

    def hold(self, key: str, value: Scalar | None) -> None:
        """Refuse a value of a setting that one of its pins does not allow; None is not asked for.

        Raises
        ------
        NotAllowedError
            If it does not.
        """
        for pin in self.of(key):
            if value is not None and not pin.holds(value):
                raise NotAllowedError(
                    f"{key} = {shown(value)}: this node's operator allows {pin} (allow in its "
                    "node config)"
                )

    def _hold_work(self, errand: str, asked: Mapping[str, Scalar]) -> None:
        """Hold whatever decides how long the node works; where work is pinned, that must be."""
        decides, counted = _EPOCHS, [_EPOCHS, _STEPS]
        if errand == PERSONALISE:
            decides, counted = _TUNING, [_EPOCHS, _STEPS, _TUNING]
        elif asked.get(_STEPS):
            decides = _STEPS
        value = asked.get(decides)
        self.hold(decides, value)
        bounded = [pin for key in counted for pin in self.of(key)]
        if value is not None and bounded and not self.of(decides):
            raise NotAllowedError(
                f"{decides} = {shown(value)}: this node's operator allows {bounded[0]}, and says "
                f"nothing of {decides} (allow in its node config)"
            )


def _pin(word: str) -> Pin:
    match = _WORD.fullmatch(word)
    key, sign, text = match.groups() if match else (word, "", "")
    if key not in _SIGNS:
        known = ", ".join(PINS)
        raise PinError(f"allow: {shown(word)} is no pin; pins are written as in {known}")
    if sign not in _SIGNS[key]:
        rights = " or ".join(f"{key}{right}" for right in _SIGNS[key])
        raise PinError(f"allow: {shown(word)} must begin with {rights}")
    if key in _LISTS:
        values = tuple(value.strip() for value in text.split(","))
        if not all(values):
            raise PinError(f"allow: {shown(word)} has an empty value between commas")
        strangers = [value for value in values if key == "errands" and value not in ERRANDS]
        if strangers:
            raise PinError(f"allow: errands = {shown(strangers[0])}: {', '.join(ERRANDS)} exist")
        return Pin(key, sign, text, values)
    try:
        bound = float(text) if key in _FRACTIONS else float(int(text))
    except (ValueError, OverflowError):
        bound = math.nan
    if not 0 < bound < math.inf:
        kind = "a number above 0" if key in _FRACTIONS else "a whole number from 1"
        raise PinError(f"allow: {shown(word)}: {key} needs {kind}")
    return Pin(key, sign, text, bound=bound)
