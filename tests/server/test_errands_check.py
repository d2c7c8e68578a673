"""Scores that nodes send: right ones pass, each wrong one is refused with its reason."""

import json
from typing import Any

import pytest
from flwr.app import Error, Message

from superfednas.flower.codes import ErrorCode
from superfednas.records.refusals import Refusal
from superfednas.server.errands.check import check_scores
from superfednas.server.round.check import BadReply
from superfednas.tasks.images import ACCURACY, LOSS
from tests.support.pictures import right, sent
from tests.support.replies import ORDER, Named, error, reply

METRICS_READ = (ACCURACY, LOSS)


def scores(
    rows: Any = ((2, 1.0, 0.25), (0, 0.5, 1.5), (1, 0.0, 0.5)),
    examples: Any = 8,
    text: str | None = None,
    **changes: Any,
) -> Message:
    """Give a right reply to an order of three subnets, with some parts changed."""
    told = json.dumps(sent(rows, examples)) if text is None else text
    return reply(
        metrics={} if examples is None else {"evaluation-examples": examples},
        texts={"evaluation": told, **changes},
        drop=("arrays", "round", "loss", "seconds", "images", "mac-images", "num-examples"),
    )


def not_counted(message: Message, ordered: int = 3) -> str:
    with pytest.raises(BadReply) as caught:
        check_scores(message, Named(1), ordered, 8, METRICS_READ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_right_scores_pass_in_any_order() -> None:
    found = check_scores(scores(), Named(1), 3, 8, METRICS_READ)
    assert found.examples == 8
    assert dict(found.tallies) == {
        0: right(8, 4, 1.5),
        1: right(8, 0, 0.5),
        2: right(8, 8, 0.25),
    }


@pytest.mark.parametrize("examples", [0, None])
def test_a_node_without_images_has_no_scores(examples: int | None) -> None:
    found = check_scores(scores((), examples), Named(1), 3, 8, METRICS_READ)
    assert (found.tallies, found.examples) == ((), 0)


@pytest.mark.parametrize("examples", [-3, 2.5, [8], [8.0]])
def test_a_number_of_images_that_is_none_is_refused(examples: Any) -> None:
    assert f"evaluation-examples = {examples}: must be" in not_counted(scores(examples=examples))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0, 0.5, 1], [1, 0.5, 1]], "2 usable scores of 2 subnets"),
        ([[0, 0.5, 1], [1, 0.5, 1], [1, 0.5, 1]], "3 usable scores of 2 subnets"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 0.5, 1], [2, 0.6, 1]], "4 usable scores of 3 subnets"),
        ([[0, 0.5, 1], [1, 0.5, 1], [3, 0.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [-1, 0.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 1.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, -0.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, float("nan"), 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 0.5, float("inf")]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 0.5]], "0 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], None], "0 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, "much", 1]], "0 usable"),
        ([], "0 usable"),
        ({"a": 1}, "0 usable"),
        (7, "0 usable"),
    ],
    ids=str,
)
def test_scores_that_are_not_one_for_each_subnet_are_refused(rows: Any, said: str) -> None:
    refusal = not_counted(scores(rows))
    assert said in refusal and "one for each of 3" in refusal


@pytest.mark.parametrize("text", ["", "no json", "[" * 100_000], ids=lambda text: text[:9] or "-")
def test_scores_that_cannot_be_read_are_refused(text: str) -> None:
    assert "0 usable" in not_counted(scores(text=text))


def test_scores_on_another_subnet_s_weights_are_refused() -> None:
    said = not_counted(scores(architecture=Named(2).to_json()))
    assert Named(2).to_json() in said and Named(1).to_json() in said


def test_a_failed_scoring_is_refused_with_its_code_and_reason() -> None:
    said = not_counted(Message(Error(2, "disk full"), reply_to=ORDER))
    assert "error 2" in said and "disk full" in said
    assert "could not load" in not_counted(Message(Error(1, "ImportError"), reply_to=ORDER))


@pytest.mark.parametrize("missing", ["metrics", "config"])
def test_scores_without_a_record_are_refused(missing: str) -> None:
    assert f"'{missing}'" in not_counted(reply(drop=(missing,)))


def test_more_validation_images_than_declared_are_refused() -> None:
    with pytest.raises(BadReply) as caught:
        check_scores(scores(examples=9), Named(1), 3, 8, METRICS_READ)
    assert caught.value.refused.code == Refusal.MORE_THAN_DECLARED


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (error(ErrorCode.RAISED, "disk full"), Refusal.RAISED),
        (scores(examples=-3), Refusal.METRIC),
        (scores([]), Refusal.SCORES),
        (scores(architecture=Named(2).to_json()), Refusal.ARCHITECTURE),
        (reply(drop=("config",)), Refusal.NAMES),
    ],
)
def test_scores_are_refused_by_code(message: Message, code: Refusal) -> None:
    with pytest.raises(BadReply) as caught:
        check_scores(message, Named(1), 3, 8, METRICS_READ)
    assert caught.value.refused.code == code
