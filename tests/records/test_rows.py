"""Rows: what is written is read again, and rows of earlier versions are read too."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.records.lines import as_json, read_row
from superfednas.records.refusals import Refusal
from superfednas.records.rows import (
    ClientRow,
    Covered,
    EvaluationRow,
    LateRow,
    RoundRow,
    Row,
    Rung,
    Spread,
    SummaryRow,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 10**12)
NAMES = st.text(max_size=5)
METRICS = st.sampled_from(["accuracy", "squared-error", "loss"])
VALUES = st.dictionaries(METRICS, NUMBERS, max_size=2)
SCORES = st.dictionaries(METRICS, st.none() | NUMBERS, max_size=2)
REFUSALS = st.none() | st.sampled_from(Refusal)
DESCRIBED = st.none() | st.just({"name": "squared-error", "better": "less", "unit": "nat"})
ACCEPTED = st.builds(
    ClientRow,
    client=NAMES,
    architecture=NAMES,
    macs=COUNTS,
    weight=NUMBERS,
    favoured=st.booleans(),
    bytes_up=COUNTS,
    accepted=st.just(True),
    verdict=st.none() | NAMES,
    target=NAMES,
    loss=NUMBERS,
    images=COUNTS,
    mac_images=st.none() | COUNTS,
    own=SCORES,
    smallest=SCORES,
)
REFUSED = st.builds(ClientRow, client=NAMES, macs=COUNTS, refusal=REFUSALS, reason=NAMES)
LATE = st.builds(LateRow, NAMES, COUNTS, st.booleans(), REFUSALS, st.none() | NAMES, NUMBERS)
ROUNDS = st.builds(
    RoundRow,
    COUNTS,
    st.none() | NUMBERS,
    NUMBERS,
    st.lists(ACCEPTED | REFUSED, max_size=3).map(tuple),
    NUMBERS,
    st.lists(LATE, max_size=2).map(tuple),
)
RUNGS = st.builds(Rung, NAMES, NAMES, COUNTS, COUNTS, VALUES)
EVALUATIONS = st.builds(
    EvaluationRow,
    st.sampled_from(["evaluation", "test"]),
    COUNTS,
    COUNTS,
    st.sampled_from(["server", "clients"]),
    NAMES,
    st.lists(RUNGS, max_size=3).map(tuple),
    DESCRIBED,
)
SUMMARIES = st.builds(
    SummaryRow,
    COUNTS,
    COUNTS,
    st.dictionaries(NAMES, COUNTS, max_size=3),
    COUNTS,
    NUMBERS,
    NUMBERS,
    st.lists(st.builds(Covered, COUNTS, COUNTS, NUMBERS), max_size=3).map(tuple),
    st.booleans(),
    st.dictionaries(
        st.sampled_from(["own", "smallest"]),
        st.builds(Spread, COUNTS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NAMES),
    ),
    DESCRIBED,
)


@given(row=ROUNDS | EVALUATIONS | SUMMARIES)
def test_what_is_written_is_read(row: Row) -> None:
    line = json.dumps(as_json(row), allow_nan=False)
    assert read_row(json.loads(line)) == row


@given(row=ROUNDS)
def test_a_round_divides_into_what_was_used_and_what_was_not(row: RoundRow) -> None:
    assert sorted(row.accepted + row.refused, key=id) == sorted(row.clients, key=id)
    assert (row.loss is None) == (not row.accepted)
    assert row.bytes == sum(client.bytes_down + client.bytes_up for client in row.clients)


EARLIER: dict[str, tuple[dict[str, Any], Row]] = {
    "a round before codes, late replies and several subnets a step": (
        {
            "kind": "round",
            "round": 2,
            "beta": 0.5,
            "clients": [
                {
                    "client": "0",
                    "macs": 7,
                    "images": 3,
                    "accepted": True,
                    "loss": 1.5,
                    "own_accuracy": 0.5,
                    "smallest_accuracy": None,
                },
                {"client": "1", "accepted": False, "reason": "no reply within 9 s"},
            ],
            "seconds": 1.0,
        },
        RoundRow(
            2,
            0.5,
            clients=(
                ClientRow(
                    "0",
                    macs=7,
                    images=3,
                    accepted=True,
                    loss=1.5,
                    own={"accuracy": 0.5},
                    smallest={"accuracy": None},
                ),
                ClientRow("1", reason="no reply within 9 s"),
            ),
            seconds=1.0,
        ),
    ),
    "an evaluation before metrics": (
        {
            "kind": "evaluation",
            "round": 1,
            "trained_rounds": 1,
            "ladder": [{"name": "largest", "macs": 9, "accuracy": 0.25, "loss": 1.0}],
        },
        EvaluationRow(
            "evaluation",
            1,
            1,
            ladder=(Rung("largest", macs=9, values={"accuracy": 0.25, "loss": 1.0}),),
        ),
    ),
    "a summary before anything was added to it": (
        {"kind": "summary", "round": 4, "coverage": [{"from": 1, "to": 2, "share": 0.5}]},
        SummaryRow(4, coverage=(Covered(1, 2, 0.5),)),
    ),
}


@pytest.mark.parametrize(("values", "row"), EARLIER.values(), ids=EARLIER)
def test_rows_of_earlier_versions_are_read(values: dict[str, Any], row: Row) -> None:
    assert read_row(values) == row
    assert read_row({**values, "of a later version": 1}) == row


def test_what_one_subnet_a_step_has_computed_follows_from_its_macs() -> None:
    assert ClientRow("0", macs=7, images=3).computed == 21
    assert ClientRow("0", macs=7, images=3, mac_images=0).computed == 0


def test_a_kind_of_a_later_version_is_passed_over() -> None:
    assert read_row({"kind": "weather"}) is None
    with pytest.raises(KeyError):
        read_row({"round": 1})
