"""The card of a model file: it survives JSON, earlier ones are read, damaged ones are refused."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.fields import Input, Output
from superfednas.tasks import Input as TaskInput
from superfednas.tasks import Output as TaskOutput
from superfednas.tasks.describe import describe
from superfednas.tasks.images import Images
from tests.support.exports import picture_card, picture_note

numbers = st.floats(allow_nan=False, allow_infinity=False)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    """Draw an input: numbers that are scaled, or names of categories."""
    shape = draw(shapes)
    if draw(st.booleans()):
        names = draw(st.lists(st.text(), min_size=1, max_size=4).map(tuple))
        return Input(shape, "int64", 0, len(names) - 1, categories=names)
    several = st.lists(numbers, min_size=shape[0], max_size=shape[0]).map(tuple)
    return Input(shape, "float32", None, draw(numbers), draw(several), draw(several))


cards = st.builds(
    Card,
    space=st.just({"space": "any:Space"}),
    architecture=st.text(),
    task=st.text(),
    inputs=st.dictionaries(st.text(), inputs(), min_size=1, max_size=3),
    outputs=st.builds(
        lambda name, names: {name: Output((len(names),), names)},
        st.text(),
        st.lists(st.text(), min_size=1).map(tuple),
    ),
    macs=st.integers(0),
    params=st.integers(0),
    source=st.just({"rounds": 3}),
    menu=st.just(({"architecture": "{}", "macs": 1, "params": 2, "score": 0.5},)),
)


@settings(max_examples=50)
@given(card=cards)
def test_a_card_survives_json(card: Card) -> None:
    assert Card.from_json(card.to_json(), "here") == card
    assert list(Card.from_json(card.to_json(), "here").inputs) == list(card.inputs)


@settings(max_examples=30)
@given(
    mean=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 2), min_size=3, max_size=3),
    classes=st.lists(st.text(), min_size=1).map(tuple),
)
def test_an_earlier_card_says_what_the_task_of_its_images_says(
    mean: list[float], std: list[float], classes: tuple[str, ...]
) -> None:
    earlier = {
        "format": 1,
        "space": picture_note(3, 8, classes)["space"],
        "architecture": "{}",
        "classes": classes,
        "mean": mean,
        "std": std,
        "macs": 1,
        "params": 2,
        "source": {},
        "menu": [],
    }
    card = Card.from_json(json.dumps(earlier), "here")
    said = describe(Images(len(classes), 3, 8, classes, tuple(mean), tuple(std)))
    told = dataclasses.asdict(card)
    assert {key: told[key] for key in said} == said
    assert (card.architecture, card.macs, card.params) == ("{}", 1, 2)


def test_a_card_says_of_inputs_and_outputs_what_a_task_says() -> None:
    for here, there in ((Input, TaskInput), (Output, TaskOutput)):
        kept = [(field.name, field.type, field.default) for field in dataclasses.fields(there)]
        assert kept == [(each.name, each.type, each.default) for each in dataclasses.fields(here)]


@settings(max_examples=50)
@given(each=inputs(), data=st.data())
def test_raw_numbers_are_prepared_as_in_training_to_the_last_bit(
    each: Input, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    shape = (data.draw(st.integers(0, 3)), *each.shape)
    if each.categories:
        raw = rng.integers(len(each.categories), size=shape)
    else:
        raw = rng.standard_normal(shape).astype(np.float32)
    with np.errstate(all="ignore"):
        found = each.prepare(raw)
    expected = TaskInput(**vars(each)).prepare(torch.from_numpy(raw)).numpy()
    assert found.dtype == expected.dtype and np.array_equal(found, expected, equal_nan=True)
    assert not each.categories or found is raw


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (np.zeros((1, 2), np.float64), "float64 of shape (1, 2); int64 of shape (N, 2) is needed"),
        (np.zeros((1, 2), bool), "bool of shape (1, 2); int64 of shape (N, 2) is needed"),
        (np.zeros((2,), np.int64), "int64 of shape (2,); int64 of shape (N, 2) is needed"),
        (np.zeros((1, 3), np.int64), "int64 of shape (1, 3); int64 of shape (N, 2) is needed"),
        (np.array([[0, 4]]), "from 0 to 4; 0 to 3 is allowed"),
        (np.array([[-1, 3]]), "from -1 to 3; 0 to 3 is allowed"),
        (np.array([[0, 2**63]], np.uint64), f"from 0 to {2**63}; 0 to 3 is allowed"),
        (np.array([["north", "south"]]), "<U5 of shape (1, 2); int64 of shape (N, 2) is needed"),
    ],
)
def test_rows_that_are_not_this_input_are_told(raw: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        Input((2,), "int64", 0, 3).take(raw)


def test_numbers_without_a_bound_may_be_any() -> None:
    anything = np.array([[-1e30], [1e30]], np.float32)
    assert Input((1,)).take(anything) is anything
    with pytest.raises(ValueError, match=r"^from -1e\+30 to 1e\+30; 0 to inf is allowed$"):
        Input((1,), low=0).take(anything)
    with pytest.raises(ValueError, match=r"-inf to 0 is allowed$"):
        Input((1,), high=0).take(anything)
    nan = np.array([[np.nan]], np.float32)
    assert Input((1,)).take(nan) is nan
    with pytest.raises(ValueError, match="0 to inf is allowed"):
        Input((1,), low=0).take(nan)


whole = st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
floating = st.sampled_from(["float16", "float32", "float64"])


@settings(max_examples=200, deadline=None)
@given(of=whole, wanted=whole, data=st.data())
def test_whole_numbers_of_any_type_are_taken_where_they_are_in_range(
    of: str, wanted: str, data: st.DataObject
) -> None:
    low, high = sorted(data.draw(st.tuples(st.integers(-300, 300), st.integers(-300, 300))))
    kept = np.iinfo(of)
    numbers = st.one_of(st.integers(kept.min, kept.max), st.integers(0, 100))
    raw = np.array(data.draw(st.lists(numbers, max_size=4)), of)
    each, type_of = Input((), wanted, low, high), np.iinfo(wanted)
    if all(max(low, type_of.min) <= int(n) <= min(high, type_of.max) for n in raw):
        found = each.take(raw)
        assert found.dtype == wanted and found.tolist() == raw.tolist()
        assert found is raw or of != wanted
    else:
        with pytest.raises(ValueError, match="is allowed"):
            each.take(raw)


@settings(max_examples=200, deadline=None)
@given(of=st.one_of(floating, whole), wanted=floating, data=st.data())
def test_finite_numbers_of_any_type_become_floating_point_ones(
    of: str, wanted: str, data: st.DataObject
) -> None:
    numbers: st.SearchStrategy[float]
    if of.startswith("float"):
        numbers = st.floats(width=int(of.removeprefix("float")))
    else:
        numbers = st.integers(np.iinfo(of).min, np.iinfo(of).max)
    raw = np.array(data.draw(st.lists(numbers, max_size=4)), of)
    with np.errstate(over="ignore"):
        expected = raw.astype(wanted)
    if of == wanted or np.isfinite(expected).all():
        found = Input((), wanted).take(raw)
        assert found.dtype == wanted and np.array_equal(found, expected, equal_nan=True)
    else:
        with pytest.raises(ValueError, match="not finite"):
            Input((), wanted).take(raw)


def test_bounds_hold_for_numbers_that_were_rounded() -> None:
    tenth = Input((), low=0.1, high=0.1)
    assert tenth.take(np.array([0.1])).tolist() == [np.float32(0.1)]
    with pytest.raises(ValueError, match=r"0\.1 to 0\.1 is allowed"):
        tenth.take(np.array([0.2]))


@given(codes=st.lists(st.tuples(*[st.integers(0, 2)] * 2), max_size=4))
def test_categories_are_taken_by_name(codes: list[tuple[int, int]]) -> None:
    soils = ("sandy", "clayey", "rocky, mostly")
    each = Input((2,), "uint8", 0, 2, categories=soils)
    expected = np.array(codes, np.uint8).reshape(-1, 2)
    named = [[soils[code] for code in row] for row in codes]
    for kind in ("U20", object):
        found = each.take(np.array(named, kind).reshape(-1, 2))
        assert found.dtype == np.uint8 and np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (np.array(["sandy", "wet"]), "'wet'"),
        (np.array(["sandy", 1], object), "^1 "),
        (np.array(["sandy", ["clayey"]], object), "'clayey'"),
        (np.array([["sandy"]]), r"shape \(1, 1\)"),
    ],
)
def test_other_names_are_refused(names: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Input((), "int64", 0, 1, categories=("sandy", "clayey")).take(names)


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "null", "{}", '{"classes": []}'])
def test_what_is_no_card(text: str) -> None:
    with pytest.raises(DeployError, match="here: there is no card of this project in it"):
        Card.from_json(text, "here")


GREY = {"shape": [1, 8, 8], "dtype": "uint8"}


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {}},
        {"inputs": None},
        {"inputs": {"images": {}}},
        {"inputs": {"images": GREY | {"unknown": 1}}},
        {"inputs": {"images": GREY | {"dtype": "uint7"}}},
        {"inputs": {"images": GREY | {"shape": [1, 0]}}},
        {"inputs": {"images": GREY | {"scale": [1, 2], "offset": [1, 2]}}},
        {"inputs": {"images": GREY | {"scale": [1]}}},
        {"outputs": {}},
        {"outputs": {"a": {"shape": [1]}, "b": {"shape": [1]}}},
        {"outputs": {"a": {"shape": [1], "names": ["x", "y"]}}},
        {"menu": None},
        {"unknown": 1},
    ],
)
def test_a_damaged_card(change: dict[str, Any]) -> None:
    fields = json.loads(picture_card().to_json()) | change
    with pytest.raises(DeployError, match="here: its card is damaged"):
        Card.from_json(json.dumps(fields), "here")
    del fields["macs"]
    with pytest.raises(DeployError, match="here: its card is damaged"):
        Card.from_json(json.dumps(fields), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5]},
        {"std": 1},
        {"classes": None},
        {"unknown": 1},
        {"space": {}},
        {"space": {"in_channels": "x", "image_size": 8}},
        {"space": {"in_channels": 3, "image_size": 0}},
    ],
)
def test_a_damaged_earlier_card(change: dict[str, Any]) -> None:
    whole = {
        "format": 1,
        "space": picture_note()["space"],
        "architecture": "{}",
        "classes": ["a", "b"],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "macs": 1,
        "params": 2,
        "menu": [],
    }
    assert Card.from_json(json.dumps(whole), "here").task == "images"
    with pytest.raises(DeployError, match="here: its card is damaged"):
        Card.from_json(json.dumps(whole | change), "here")


def test_a_card_of_another_format() -> None:
    for version in (3, "2", None):
        text = json.dumps(json.loads(picture_card().to_json()) | {"format": version})
        with pytest.raises(DeployError, match=f"here: its card has format {version!r}; 2 is read"):
            Card.from_json(text, "here")
