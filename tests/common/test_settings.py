"""Settings: round trips, and a sentence with key, value and what is allowed for each refusal."""

import dataclasses
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.common.settings import Scalar, SettingsError, flatten, parse, setting, settings_of


@dataclasses.dataclass(frozen=True)
class Oven:
    """A group within a group."""

    heat: float = setting(180.0, "degrees", above=0, high=300)
    fan_on: bool = setting(False, "blow")


@dataclasses.dataclass(frozen=True)
class Kitchen:
    """A group."""

    oven: Oven = dataclasses.field(default_factory=Oven)
    cooks: int = setting(2, "people", low=1, high=5)


@dataclasses.dataclass(frozen=True)
class House:
    """Every kind of key."""

    kitchen: Kitchen = dataclasses.field(default_factory=Kitchen)
    street_name: str = setting("", "where it is")
    colour: str = setting("red", "of the door", choices=("red", "blue"))
    height: float = setting(1.0, "in metres")
    floors: int = setting(0, "beyond the first", low=0)


KEYS = ["heat", "fan-on", "cooks", "street-name", "colour", "height", "floors"]
houses = st.builds(
    House,
    kitchen=st.builds(
        Kitchen,
        oven=st.builds(Oven, heat=st.floats(1e-300, 300), fan_on=st.booleans()),
        cooks=st.integers(1, 5),
    ),
    street_name=st.text(),
    colour=st.sampled_from(("red", "blue")),
    height=st.floats(allow_nan=False, allow_infinity=False),
    floors=st.integers(0, 2**63 - 1),
)


# Laws


@given(house=houses)
def test_parse_undoes_flatten(house: House) -> None:
    flat = flatten(house)
    assert list(flat) == KEYS
    assert parse(House, flat) == house
    assert flatten(parse(House, flat)) == flat


@given(house=houses, kept=st.sets(st.sampled_from(KEYS)))
def test_what_is_missing_takes_its_default(house: House, kept: set[str]) -> None:
    flat, defaults = flatten(house), flatten(House())
    found = flatten(parse(House, {key: flat[key] for key in kept}))
    assert found == {key: (flat if key in kept else defaults)[key] for key in KEYS}


@given(house=houses, value=st.one_of(st.integers(-9, 9), st.text(max_size=3)))
def test_keys_of_others_are_ignored_only_when_asked(house: House, value: Scalar) -> None:
    more = flatten(house) | {"colours": value}
    assert parse(House, more, ignore_unknown=True) == house
    with pytest.raises(SettingsError, match="unknown key 'colours'"):
        parse(House, more)


@given(value=st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=5)))
def test_a_value_is_kept_or_named(value: Scalar) -> None:
    for key, known in settings_of(House).items():
        try:
            found: Scalar | SettingsError = flatten(parse(House, {key: value}))[key]
        except SettingsError as error:
            found = error
        if isinstance(found, SettingsError):
            assert str(found) == f"{key} = {value!r}: {key} must be {known.allowed}."
        else:
            kept = float(value) if known.kind is float else value  # beyond 2⁵³ that rounds
            assert found == kept and type(found) is known.kind


# Kinds


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("cooks", 0, "an integer at least 1 and at most 5"),
        ("cooks", 6, "an integer at least 1 and at most 5"),
        ("cooks", 2.0, "an integer at least 1 and at most 5"),
        ("cooks", "2", "an integer at least 1 and at most 5"),
        ("cooks", True, "an integer at least 1 and at most 5"),
        ("floors", -1, "an integer at least 0"),
        ("floors", False, "an integer at least 0"),
        ("heat", 0.0, "a number above 0 and at most 300"),
        ("heat", -1e-300, "a number above 0 and at most 300"),
        ("heat", 300.00001, "a number above 0 and at most 300"),
        ("heat", math.nan, "a number above 0 and at most 300"),
        ("heat", math.inf, "a number above 0 and at most 300"),
        ("heat", "hot", "a number above 0 and at most 300"),
        ("heat", True, "a number above 0 and at most 300"),
        ("height", math.nan, "a number"),
        ("height", math.inf, "a number"),
        ("height", -math.inf, "a number"),
        ("height", None, "a number"),
        ("fan-on", 1, "true or false"),
        ("fan-on", 0.0, "true or false"),
        ("fan-on", "true", "true or false"),
        ("street-name", 3, "a text"),
        ("street-name", False, "a text"),
        ("colour", "green", "one of red, blue"),
        ("colour", "", "one of red, blue"),
        ("colour", 1, "one of red, blue"),
    ],
)
def test_refusals_name_key_value_and_allowed(key: str, value: Any, allowed: str) -> None:
    sentence = f"{key} = {value!r}: {key} must be {allowed}."
    for ignore_unknown in (False, True):
        with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
            parse(House, {key: value}, ignore_unknown=ignore_unknown)


@pytest.mark.parametrize("key", ["heat", "height"])
def test_an_integer_beyond_any_float_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=f"{key} = 1000.*: {key} must be a number"):
        parse(House, {key: 10**400})


@pytest.mark.parametrize(
    ("key", "value"),
    [("cooks", 1), ("cooks", 5), ("heat", 300.0), ("heat", 5e-324), ("floors", 0)],
)
def test_bounds_belong_or_not(key: str, value: Scalar) -> None:
    assert flatten(parse(House, {key: value}))[key] == value


def test_integers_are_numbers() -> None:
    heat = parse(House, {"heat": 200}).kitchen.oven.heat
    assert heat == 200 and type(heat) is float


# Unknown keys


@pytest.mark.parametrize(
    ("key", "near"),
    [("cook", "cooks"), ("fan_on", "fan-on"), ("street_name", "street-name"), ("Heat", "heat")],
)
def test_unknown_key_suggests_the_nearest(key: str, near: str) -> None:
    with pytest.raises(SettingsError, match=rf"^unknown key '{key}' \(= 7\): did you mean {near}"):
        parse(House, {key: 7})


@pytest.mark.parametrize("key", ["zzz", "kitchen", "oven", ""])
def test_unknown_key_like_no_other_lists_all(key: str) -> None:
    with pytest.raises(SettingsError, match="known keys: " + ", ".join(KEYS) + "$|did you mean"):
        parse(House, {key: 7})


# What is known


def test_settings_in_declaration_order_with_everything() -> None:
    known = settings_of(House)
    assert list(known) == KEYS
    heat = known["heat"]
    assert (heat.kind, heat.default, heat.help) == (float, 180.0, "degrees")
    assert (heat.low, heat.above, heat.high, heat.choices) == (None, 0, 300, None)
    assert known["colour"].choices == ("red", "blue")
    assert {key: value.default for key, value in known.items()} == flatten(House())


def test_error_is_a_value_error() -> None:
    assert issubclass(SettingsError, ValueError)
