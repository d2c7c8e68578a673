"""The security page and the table of attackers: tests that are named exist, and tries add up."""

import re

import pytest

from tests.support.attackers import KINDS, kind_of, noted, table
from tests.support.processes import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = set(re.findall(r"`(\w+/test_\w+\.py)`", PAGE))


def test_the_tests_that_the_page_names_exist() -> None:
    assert len(NAMED) > 20
    assert not {name for name in NAMED if not (ROOT / "tests" / name).exists()}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_file_that_attacks_is_there(name: str) -> None:
    assert "attack" in (ROOT / "tests" / name).read_text()


def test_the_table_adds_up() -> None:
    """By hand: one test that notes 5 and 2 tries of another kind, one that fails and notes none."""
    notes = [noted("a", 5, 0, 0, {"x": 3, "y": 2})[1], noted("a", 2, 1, 1, {"y": 2})[1]]
    text = table(
        [(True, {"attack-kind": "b"}, notes), (False, {"attack-kind": kind_of("tests/c.py")}, [])]
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["a", "", "0", "7", "1", "1", "y 4, x 3"] in lines
    assert ["b", "1", "0", "0", "0", "0", ""] in lines
    assert ["tests/c.py", "1", "1", "1", "0", "0", ""] in lines
    assert lines[-1] == ["all", "2", "1", "8", "1", "1", ""]
