"""The end of a run: coverage of the MACs, spread over clients, and the sentences."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superfednas.common.terminal import Terminal
from superfednas.records.rows import Covered, EvaluationRow, RoundRow, Rung, Spread, SummaryRow
from superfednas.server.journal.evaluation import (
    client_spread,
    coverage,
    fuse_ladder,
    hardly_trained,
)
from superfednas.server.journal.progress import Progress
from superfednas.server.journal.summary import print_finale, sentences, summarise
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks.images import ACCURACY, Images
from tests.support.pictures import right
from tests.support.rows import row_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Priced(Architecture):
    """An architecture that is only its cost."""

    finale_cost: int


class Costs(SearchSpace):
    """Costs from 1000 to 2000 MACs, so that a tenth is 100."""

    name = "costs"
    architecture = Priced

    @property
    def genes(self) -> tuple[int, ...]:
        return (1001,)

    def decode(self, choices: Sequence[int]) -> Priced:
        return Priced(1000 + choices[0])

    def module(self, arch: Architecture) -> nn.Module:
        raise AssertionError("nothing is built")

    def macs(self, arch: Any) -> int:
        return int(arch.finale_cost)

    def params(self, arch: Any) -> int:
        return 7 * int(arch.finale_cost)


SPACE = Costs(Images())


def round_row(number: int, *clients: Row, seconds: float = 1.0) -> RoundRow:
    return row_of({"kind": "round", "round": number, "seconds": seconds, "clients": list(clients)})


def client(macs: int, name: str = "0", **more: Any) -> Row:
    plain = {"client": name, "macs": macs, "accepted": True, "reason": None}
    return plain | {"bytes_down": 10, "bytes_up": 20, "images": 100} | more


def refused(macs: int, name: str, reason: str) -> Row:
    plain = {"client": name, "macs": macs, "accepted": False, "reason": reason}
    return plain | {"bytes_down": 10, "bytes_up": 0}


def shares(*macs: int) -> list[float]:
    found = coverage(SPACE, [round_row(k, client(m)) for k, m in enumerate(macs)])
    return [entry.share for entry in found]


# Coverage


def test_ten_even_ranges_from_the_smallest_to_the_largest() -> None:
    ranges = coverage(SPACE, [])
    assert [(r.low, r.high) for r in ranges] == [
        (1000 + 100 * k, 1000 + 100 * (k + 1)) for k in range(10)
    ]
    assert all(r.share == 0 for r in ranges)


def test_shares_are_of_all_assignments_and_end_points_belong_to_no_range() -> None:
    # 8 assignments: both end points, 1001 and 1099 (first range), 1100 (second), 1999 twice (last).
    found = shares(1000, 1000, 2000, 1001, 1099, 1100, 1999, 1999)
    assert found == [2 / 8, 1 / 8, 0, 0, 0, 0, 0, 0, 0, 2 / 8]


def test_refused_replies_count_as_assigned() -> None:
    rows = [round_row(1, refused(1550, "0", "no reply"), client(2000, "1"))]
    assert coverage(SPACE, rows)[5].share == 1 / 2


@settings(max_examples=60, deadline=None)
@given(macs=st.lists(st.integers(1000, 2000), max_size=30))
def test_every_assignment_between_the_end_points_is_in_one_range(macs: list[int]) -> None:
    inner = sum(1000 < m < 2000 for m in macs)
    assert math.fsum(shares(*macs)) * max(1, len(macs)) == pytest.approx(inner)
    for index, share in enumerate(shares(*macs)):
        low = 1000 + 100 * index
        inside = [m for m in macs if low <= m < low + 100 and 1000 < m < 2000]
        assert share == len(inside) / max(1, len(macs))


def test_neighbouring_ranges_below_one_in_a_hundred_are_joined() -> None:
    given_shares = [0.009, 0, 0.01, 0, 0.5, 0.2, 0.0099, 0, 0, 0.3]
    ranges = tuple(
        Covered(1000 + 100 * k, 1100 + 100 * k, share) for k, share in enumerate(given_shares)
    )

    def found(**more: Any) -> list[tuple[int, int]]:
        return hardly_trained(SummaryRow(1, coverage=tuple(replace(r, **more) for r in ranges)))

    assert found() == [(1000, 1200), (1300, 1400), (1600, 1900)]
    assert found(share=0.1) == []
    assert found(share=0.0) == [(1000, 2000)]
    # Of subnets that clients draw for themselves nothing is known.
    assert hardly_trained(SummaryRow(1, coverage=ranges, as_assigned=False)) == []


# Spread


def test_spread_by_hand_from_each_clients_last_report() -> None:
    rows = [
        round_row(
            1,
            client(1500, "a", own_accuracy=0.9, smallest_accuracy=0.1),
            client(1500, "b", own_accuracy=0.6, smallest_accuracy=0.2),
        ),
        round_row(2, client(1500, "a", own_accuracy=0.8, smallest_accuracy=0.4)),
        # No report of its own: the last one stands. A client that never reports is not there.
        round_row(3, client(1500, "a", own_accuracy=None), client(1500, "c")),
    ]
    assert client_spread(rows, ACCURACY) == {
        "smallest": Spread(
            clients=2,
            mean=pytest.approx((0.4 + 0.2) / 2),
            sd=pytest.approx((0.4 - 0.2) / 2),
            min=0.2,
            max=0.4,
            lowest="b",
        ),
        "own": Spread(
            clients=2,
            mean=pytest.approx((0.8 + 0.6) / 2),
            sd=pytest.approx((0.8 - 0.6) / 2),
            min=0.6,
            max=0.8,
            lowest="b",
        ),
    }


def test_an_accuracy_of_zero_is_a_report() -> None:
    found = client_spread([round_row(1, client(1500, "a", smallest_accuracy=0.0))], ACCURACY)
    assert found["smallest"].mean == 0
    assert "own" not in found


def test_without_reports_there_is_no_spread() -> None:
    assert client_spread([], ACCURACY) == {}
    assert client_spread([round_row(1, client(1500))], ACCURACY) == {}


# The ladder as clients scored it


def test_rungs_are_fused_by_numbers_of_examples() -> None:
    rungs = {"smallest": Priced(1000), "half": Priced(1500), "largest": Priced(2000)}
    reports = [[(0, right(30, 15, 2.0)), (2, right(30, 30, 0.5))], [(0, right(10, 9, 1.0))], []]
    smallest, largest = fuse_ladder(SPACE, rungs, reports)
    values = {
        "accuracy": pytest.approx((30 * 0.5 + 10 * 0.9) / 40),
        "loss": pytest.approx((30 * 2.0 + 10 * 1.0) / 40),
        "examples": 40,
    }
    assert smallest == Rung("smallest", Priced(1000).to_json(), 1000, 7000, values)
    assert (largest.name, largest["accuracy"], largest.examples) == ("largest", 1.0, 30)


# Summary and sentences

ROWS = [
    round_row(
        1,
        client(2000, "a", images=300, smallest_accuracy=0.25, own_accuracy=0.5),
        refused(1500, "b", "numbers that are not finite"),
        seconds=1.25,
    ),
    EvaluationRow("evaluation", 1),
    round_row(
        2,
        client(1000, "a", images=200, smallest_accuracy=0.75, own_accuracy=0.75),
        refused(1000, "b", "numbers that are not finite"),
        refused(1000, "c", "no reply"),
        seconds=2.5,
    ),
]


def test_the_summary_by_hand() -> None:
    found = summarise(SPACE, ROWS, 2)
    assert (found.round, found.replies) == (2, 2)
    assert found.refused == {"numbers that are not finite": 2, "no reply": 1}
    assert found.bytes == 5 * 10 + 2 * 20
    assert found.gmac_images == pytest.approx((2000 * 300 + 1000 * 200) / 1e9)
    assert found.seconds == 1.25 + 2.5
    assert [entry.share for entry in found.coverage] == [1 / 5 if k == 5 else 0 for k in range(10)]
    assert found.spread["own"].mean == 0.75


def test_the_sentences_say_cost_refusals_gaps_and_spread() -> None:
    summary = replace(summarise(SPACE, ROWS, 2), gmac_images=1234.56, bytes=2_500_000)
    cost, refused, gaps, smallest, own = sentences(summary)
    assert "1,234.6 GMAC·images" in cost
    assert "2.5 MB" in cost
    assert "4 s in 2 rounds" in cost
    assert "2 × numbers that are not finite" in refused and "1 × no reply" in refused
    assert " kMACs" in gaps and "0.00" not in gaps  # costs of 1500 and of 1600 MACs
    assert "1 clients, the smallest subnet has 75.0% ± 0.0% accuracy" in smallest
    assert "the subnet each was assigned has 75.0%" in own and "client a" in own


def test_a_node_that_gives_another_reason_every_round_does_not_fill_the_terminal() -> None:
    """The most frequent are said, and how many more there are."""
    refused = {f"reason {k}": 1 for k in range(500)} | {"the usual": 7}
    said = sentences(replace(summarise(SPACE, ROWS, 2), refused=refused))[1]
    assert said.index("7 × the usual") < said.index("reason 0")
    assert said.count("reason ") == 9 and "491" in said


def test_a_full_and_quiet_run_says_only_its_cost() -> None:
    even = tuple(Covered(k, k + 1, 0.1) for k in range(10))
    summary = replace(summarise(SPACE, [], 0), coverage=even)
    (cost,) = sentences(summary)
    assert cost.startswith("Cost: 0.0 GMAC·images")


@pytest.mark.parametrize("where", ["server", "clients"])
def test_the_table_names_every_rung_and_who_measured(where: str) -> None:
    values = {"accuracy": 0.8125, "examples": 64}
    rungs = tuple(Rung(name, "", 1_500_000, 12_345, values) for name in ("smallest", "random:0"))
    evaluation = EvaluationRow("test", 6, 6, where, "test", rungs)
    out = io.StringIO()
    console = Terminal(file=out, width=100)
    print_finale(evaluation, summarise(SPACE, ROWS, 2), data_name="digits", console=console)
    text = " ".join(out.getvalue().split())
    for part in ("digits: test accuracy", "smallest", "random:0", "1.50", "12,345", "81.25%", "64"):
        assert part in text
    assert ("measured by the clients on the weights of round 6" in text) == (where == "clients")
    assert "Refused replies" in text


def test_the_time_left_does_not_count_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts processes and reads data: 100 s of it say nothing of the 9 that follow."""
    now = [0.0]
    monkeypatch.setattr("superfednas.server.journal.progress.time.monotonic", lambda: now[0])
    progress = Progress()
    progress.start(first=1, rounds=10)
    now[0] = 100.0
    assert progress.left(1) == "15 min 0 s"  # nothing else is known yet
    now[0] = 102.0
    assert progress.left(2) == "16 s"
    now[0] = 108.0
    assert progress.left(3) == "28 s"
