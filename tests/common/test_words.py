"""Untrusted texts, as they are shown: on one line, as they stand, and not for ever."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from superfednas.common.terminal import Terminal
from superfednas.common.words import beginning, one_line, printable_json
from superfednas.deploy.device.runtime import words as on_a_device
from superfednas.server.round.check import short
from superfednas.wire.claims import shown
from tests.support.hostile import CONTROLS, HOSTILE, OVERRIDES, assert_harmless

pytestmark = pytest.mark.attack

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=6,
)


@given(text=HOSTILE, most=st.integers(1, 60))
def test_a_line_is_harmless_and_no_longer_than_asked(text: str, most: int) -> None:
    shown = one_line(text, most)
    assert_harmless(shown)
    assert "\n" not in shown and "\t" not in shown and len(shown) <= most
    assert one_line(shown, most) == shown
    if text.isprintable() and len(text) <= most:
        assert shown == text


@pytest.mark.parametrize("char", [*CONTROLS, *OVERRIDES, "\ud800", "\U000e0041"])
def test_each_character_that_is_more_than_a_sign_is_escaped(char: str) -> None:
    assert one_line(f"a{char}b").isascii() and char not in one_line(f"a{char}b")


def test_a_text_of_any_length_ends() -> None:
    assert len(one_line("\x00" * 10**6)) == len(one_line("a" * 10**6)) == 10_000


@given(value=VALUES, indent=st.sampled_from([None, 1]))
def test_json_is_harmless_and_reads_as_the_same(value: Any, indent: int | None) -> None:
    text = printable_json(value, indent)
    assert_harmless(text)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert indent or "\n" not in text


@given(text=HOSTILE)
def test_a_device_shows_texts_as_the_project_does(text: str) -> None:
    assert on_a_device.one_line(text) == one_line(text)
    assert on_a_device.one_line(text, 7) == one_line(text, 7)
    assert on_a_device.printable_json([text]) == printable_json([text])


@given(text=HOSTILE)
def test_a_terminal_shows_a_text_as_it_stands(text: str) -> None:
    out = io.StringIO()
    Terminal(out, width=40).say(text)
    assert out.getvalue() == one_line(text) + "\n"


@given(text=HOSTILE)
def test_so_do_tables_on_it(text: str) -> None:
    out, table = io.StringIO(), Table(text, title=text)
    table.add_row(text)
    Terminal(out, width=400).print(table)
    shown = out.getvalue()
    assert_harmless(shown)
    assert len(shown.splitlines()) <= 7
    assert shown.count(one_line(text).strip()) >= 3


@pytest.mark.attack
def test_the_beginning_of_anything_can_be_shown() -> None:
    values: list[object] = [10**5000, -(10**9999), [10**5000], {"a": [10**5000]}, b"x" * 900]
    for value in values:
        assert 0 < len(beginning(value, 7)) <= 7 and 0 < len(beginning(value, 7, repr)) <= 7
        assert shown(value) and short(value)
    assert beginning("abc", 2) == "ab"
