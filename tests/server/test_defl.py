"""DeFL: norms by hand, votes, critical periods, records, and what an attacker gets."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from superfednas.server.average.defl import (
    FIRST,
    WINDOW,
    DeflAverage,
    Records,
    cosines,
    layer_norms,
    opposed,
    outlier_votes,
)
from superfednas.server.average.overlap import OverlapAverage
from tests.support.updates import Fold, Update, boxed_clients, random_update, same_bits

torch.set_num_threads(1)
LAYERS = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (4,)}


def zeros() -> Update:
    return {name: torch.zeros(shape) for name, shape in LAYERS.items()}


def along(length: float) -> Update:
    """Give an update of one direction whose every tensor has this norm."""
    return {n: length * t / t.norm() for n, t in random_update(LAYERS, 9).items()}


def settled(norm: float = 1.0, rounds: int = WINDOW) -> Records:
    """Give records after quiet rounds: the next like them is no critical period."""
    records = Records()
    for _ in range(rounds):
        records.critical(norm)
    return records


def test_layer_norms_by_hand() -> None:
    average = DeflAverage(zeros(), Records())
    average.add(
        {
            "a.weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]]),
            "a.bias": torch.tensor([1.0, 1.0]),
            "b.weight": torch.tensor([2.0]),
        },
        1.0,
    )
    assert layer_norms(average._held[0]) == {"a": 9 + 16 + 1 + 1, "b": 4}


def test_votes_by_hand() -> None:
    # Logarithms 0, 1, 2, 3, x: median 2, MAD 1; three spreads above are 2 + 3 · 1.4826 = 6.45.
    found = outlier_votes(
        [{"a": float(np.exp(x)), "b": 1.0} for x in (0, 1, 2, 3, 6.5)] + [{"c": 1e9}, {"c": 1.0}]
    )
    assert found == [(0, 2)] * 4 + [(1, 2), (0, 0), (0, 0)]
    assert outlier_votes([{"a": float(np.exp(x))} for x in (0, 1, 2, 3, 6.4)])[-1] == (0, 1)
    # Too small a norm is none; nearly equal norms have no outliers, equal ones neither.
    assert outlier_votes([{"a": n} for n in (1.0, 2.0, 3.0, 1e-9)])[-1] == (0, 1)
    assert outlier_votes([{"a": n} for n in (1.0, 1.0, 1.0, 1.3)])[-1] == (0, 1)
    assert outlier_votes([{"a": n} for n in (1.0, 1.0, 1.0, 1.4)])[-1] == (1, 1)
    assert outlier_votes([{"a": 0.0}] * 3) == [(0, 1)] * 3


def test_the_first_rounds_and_growth_are_critical() -> None:
    records = Records()
    assert [records.critical(1.0) for _ in range(FIRST + 2)] == [True] * FIRST + [False] * 2
    records = settled()
    # One round of 1.5 lifts the mean of ten from 1 to 1.05: just 5%.
    assert not settled().critical(1.49)
    assert records.critical(1.51)
    assert len(records.norms) == WINDOW + 1
    assert not records.critical(1.0)


def test_trust_by_hand() -> None:
    records = Records()
    assert records.trust("x") == 1 / 2
    for flagged in (False, False, True):
        records.count("x", flagged)
    assert records.trust("x") == 3 / 5
    assert records.trust("y") == 1 / 2


def test_records_survive_a_checkpoint() -> None:
    records = settled(2.0, 4)
    records.count("x", True)
    records.count("y", False)
    other = Records()
    other.restore(json.loads(json.dumps(records.state())))
    assert other.state() == records.state()
    assert (other.trust("x"), other.trust("y")) == (1 / 3, 2 / 3)
    assert other.critical(2.0) and not other.critical(2.0)


def one_round(records: Records, factor: float) -> tuple[Update, DeflAverage]:
    """Merge four honest replies and one whose norm is ``factor`` times theirs."""
    average = DeflAverage(zeros(), records)
    for k in range(4):
        average.add(along(1 + 0.1 * k), 1.0, client=str(k))
    average.add(along(factor), 1.0, client="bad")
    return average.result(), average


def test_in_a_critical_period_an_outlier_is_left_out() -> None:
    records = Records()
    result, average = one_round(records, 10)
    honest = torch.stack([along(1 + 0.1 * k)["b.weight"] for k in range(4)]).double()
    torch.testing.assert_close(result["b.weight"], honest.mean(0).float())
    assert average.verdicts == {
        "bad": "left out (critical period): its gradient norm stands out in 2 of 2 layers"
    }
    assert (records.bad, records.good) == ({"bad": 1}, {str(k): 1 for k in range(4)})


def test_directions_are_compared_without_the_outliers_of_norms() -> None:
    _, average = one_round(Records(), -10)
    assert list(average.verdicts) == ["bad"] and "stands out" in average.verdicts["bad"]


def test_outside_a_critical_period_it_weighs_as_its_record_says() -> None:
    # Squared norms of the replies: three tensors of length 1 to 1.3 each; their median is 3 · 1.2².
    records = settled(3 * 1.2**2)
    records.bad = {"bad": 8}
    result, average = one_round(records, 10)
    weights = np.array([0.5] * 4 + [0.1])
    updates = [along(1 + 0.1 * k) for k in range(4)] + [along(10)]
    values = np.stack([update["b.weight"].double().numpy() for update in updates])
    expected = (weights[:, None] * values).sum(0) / weights.sum()
    np.testing.assert_allclose(result["b.weight"].numpy(), expected, rtol=1e-6)
    assert average.verdicts["bad"].startswith("weighed 0.10: its gradient norm")
    assert records.bad == {"bad": 9}


@pytest.mark.parametrize("turned", [(), (3,), (0, 4)])
def test_updates_that_are_turned_round_are_found(turned: tuple[int, ...]) -> None:
    average = DeflAverage(zeros(), Records())
    updates = [along((-1 if k in turned else 1) * (1 + 0.1 * k)) for k in range(5)]
    for k, update in enumerate(updates):
        average.add(update, 1.0, client=str(k))
    result = average.result()
    assert set(average.verdicts) == {str(k) for k in turned}
    assert all("points against the others" in what for what in average.verdicts.values())
    honest = torch.stack([updates[k]["b.weight"].double() for k in range(5) if k not in turned])
    torch.testing.assert_close(result["b.weight"], honest.mean(0).float())


def test_cosines_on_shared_parameters_by_hand() -> None:
    state = {"w": torch.ones(4), "v": torch.zeros(2)}
    average = DeflAverage(state, Records())
    average.add({"w": torch.tensor([4.0, 5.0, 9.0])}, 1.0)  # differences 3, 4, 8
    average.add({"w": torch.tensor([5.0, -2.0])}, 1.0)  # 4, -3
    average.add({"w": torch.tensor([2.0, 2.0])}, 1.0, {"w": [[(1, 3)]]})  # 1, 1 at 1 and 2
    average.add({"v": torch.tensor([1.0, 1.0])}, 1.0)
    expected = np.eye(4)
    expected[0, 1] = expected[1, 0] = (3 * 4 - 4 * 3) / 25
    expected[0, 2] = expected[2, 0] = (4 + 8) / np.sqrt((16 + 64) * 2)
    expected[1, 2] = expected[2, 1] = -3 / 3
    np.testing.assert_allclose(cosines(average._held, state), expected, rtol=1e-12)


def test_the_worst_goes_first_and_fewer_than_half_go() -> None:
    assert opposed(np.zeros((0, 0))) == {}
    assert opposed(np.array([[1.0, -1.0], [-1.0, 1.0]])) == {}
    # Three agree (0.5), one is against all three (-0.4): alone it draws their means down.
    cosine = np.full((4, 4), 0.5)
    cosine[3, :3] = cosine[:3, 3] = -0.4
    assert opposed(cosine) == {3: pytest.approx(-0.4)}
    # All against all: of five at most two.
    assert len(opposed(np.full((5, 5), -0.2))) == 2
    assert len(opposed(np.full((4, 4), -0.2))) == 1


def test_where_few_meet_the_change_of_a_detected_reply_does_not_count() -> None:
    # No critical period, and the turned one alone holds the last two elements.
    records = settled(1e9)
    average = DeflAverage({"w": torch.zeros(4)}, records)
    for k in range(3):
        average.add({"w": torch.tensor([1.0, 1.0])}, 1.0, client=str(k))
    average.add({"w": torch.tensor([-0.7, -0.7, -0.7, 0.7])}, 1.0, client="bad")
    result = average.result()["w"].tolist()
    assert result[2:] == [0.0, 0.0]
    assert result[:2] == [pytest.approx((3 * 1 - 0.7) / 4)] * 2
    assert average.verdicts["bad"].startswith("weighed 0.50: it points against the others")


@settings(max_examples=60, deadline=None)
@given(case=boxed_clients())
def test_without_outliers_and_history_it_is_the_plain_average(
    case: tuple[Update, list[Fold]],
) -> None:
    state, folds = case
    plain, defl = OverlapAverage(state), DeflAverage(state, Records())
    for number, (update, _, boxes) in enumerate(folds):
        plain.add(update, 1.0, boxes)
        defl.add(update, 1.0, boxes, str(number))
    found = defl.result()
    if not defl.verdicts:
        for name, tensor in plain.result().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_left_out_reply_makes_no_majority() -> None:
    # Three replies reach the second element; without the last they are too few, and the longer of
    # them, 3.5, is cut to twice the median of 1, 1.5 and 3.5.
    average = DeflAverage({"w": torch.zeros(3)}, Records())
    for number, row in enumerate(([1.0], [0.0, 1.5], [0.0, 3.5], [0.0, 1000.0])):
        average.add({"w": torch.tensor(row)}, 1.0, client=str(number))
    third = float(torch.tensor((1 + 0 + 0) / 3))
    assert average.result()["w"].tolist() == [third, (1.5 + 3) / 2, 0.0]
    assert "left out" in average.verdicts["3"]
    assert average.verdicts["2"] == "its change was clipped to 86% where fewer than 3 replies meet"


def test_without_replies_nothing_changes_and_nothing_is_remembered() -> None:
    records, state = Records(), zeros()
    assert same_bits(DeflAverage(state, records).result(), state)
    assert records.norms == []
