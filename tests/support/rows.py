"""Rows as the JSON values of their lines, which tests compare and take apart, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

from superfednas.records.lines import as_json, read_row
from superfednas.records.rows import Row


def lines(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [as_json(row) for row in rows]


def row_of(values: Mapping[str, Any]) -> Any:
    """Read a row that must be one."""
    row = read_row(values)
    assert row is not None
    return row


def rows_of(values: Iterable[Mapping[str, Any]]) -> list[Any]:
    return [row_of(each) for each in values]
