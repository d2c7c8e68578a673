"""Damage to JSON: what does not fit is refused by the reader's own error, in one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.common.damage import damage_of, fill, fits, loads, read_object
from tests.support.hostile import assert_harmless

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
)


@dataclass(frozen=True)
class Held:
    name: str
    count: int = 0
    share: float = 0.0
    kind: Literal["a", "b"] = "a"
    rate: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    other: Any = None


class HeldError(ValueError):
    """A damaged file."""


@given(fields=st.dictionaries(st.sampled_from([*Held.__annotations__, "x"]), VALUES))
def test_what_is_filled_is_of_its_types(fields: dict[str, Any]) -> None:
    try:
        held = fill(Held, fields)
    except TypeError:
        return
    assert isinstance(held.name, str) and type(held.count) is int and held.kind in ("a", "b")
    assert float(held.share) == held.share or math.isnan(held.share)
    assert held.rate is None or isinstance(float(held.rate), float)
    assert all(isinstance(float(each), float) for each in held.rates.values())
    assert all(type(each) is int for each in held.rows)


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (1, float, True),
        (True, float, False),
        (10**400, float, False),
        (10**400, int, False),
        (1.0, int, False),
        (False, int, False),
        ({"a": 1}, Mapping[str, float], True),
        ({"a": None}, Mapping[str, float], False),
        ([], Mapping[str, float], False),
        ([1], tuple[int, ...], True),
        ("12", tuple[str, ...], False),
        (None, float | None, True),
    ],
)
def test_what_fits(value: Any, hint: Any, right: bool) -> None:
    assert fits(value, hint) is right


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"7", b"{", b"\xff\xfe", b"[" * 10_000, b'{"a":' * 10_000, b"1" * 5000],
)
def test_what_is_no_object_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "held\x1b.json"
    path.write_bytes(content)
    with pytest.raises(HeldError) as refusal, damage_of(path, HeldError):
        read_object(path)
    assert str(refusal.value).startswith(repr(str(path)))
    assert_harmless(str(refusal.value))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "cause", [KeyError("a"), OverflowError("b"), IndexError(), OSError(5, "c")]
)
def test_whatever_reading_raises_is_one_error_and_that_error_stays(cause: Exception) -> None:
    with pytest.raises(HeldError), damage_of("file", HeldError):
        raise cause
    own = HeldError("own")
    with pytest.raises(HeldError) as refusal, damage_of("file", HeldError):
        raise own
    assert refusal.value is own


def test_what_is_nested_too_deeply_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested"):
        loads("[" * 100_000)
