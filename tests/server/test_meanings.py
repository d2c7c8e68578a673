"""Meanings compared between nodes: one that counts classes otherwise is left out by name."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas.common.settings import Scalar
from superfednas.data import DataError, DataSettings, load_dataset
from superfednas.data.images.classes import in_order
from superfednas.server.assign.client import Client
from superfednas.server.assign.meanings import RunMeaning
from superfednas.server.nodes import RosterError
from superfednas.tasks import Input, Metric, Output, Task
from superfednas.wire.claims import ClaimError
from superfednas.wire.meaning import brief, heard, told
from tests.support.training import Quiet, rounds_of, same, train

PETS = ("cat", "dog", "owl")
SMALL: dict[str, Scalar] = {"rounds": 2, "local-steps": 4, "evaluate-every": 0}


def pictures(
    path: Path, names: tuple[str, ...] | None, order: tuple[str, ...], seed: int
) -> dict[str, Scalar]:
    """Write images of pets, each bright in another row, labelled by ``order``; the node's config.

    ``names`` are the class names of the file.
    """
    rng = np.random.default_rng(seed)
    arrays = {} if names is None else {"class_names": np.array(names)}
    for part, count in (("train", 24), ("val", 9), ("test", 9)):
        pets = rng.permutation(np.arange(count) % len(PETS))
        images = rng.integers(0, 60, (count, 8, 8), np.uint8)
        for image, pet in zip(images, pets, strict=True):
            image[2 * pet : 2 * pet + 2] += 180
        arrays |= {f"x_{part}": images}
        arrays |= {f"y_{part}": np.array([order.index(PETS[pet]) for pet in pets])}
    np.savez(path, **arrays)
    return {"name": path.stem, "data-path": str(path)}


def fleet(folder: Path, others: dict[str, Scalar]) -> dict[int, dict[str, Scalar]]:
    """Four nodes; two of them number the pets in another order."""
    turned = ("owl", "cat", "dog")
    nodes = [pictures(folder / f"n{k}.npz", PETS, PETS, k) for k in range(2)]
    nodes += [pictures(folder / f"n{k}.npz", turned, turned, k) | others for k in (2, 3)]
    return {k + 1: node for k, node in enumerate(nodes)}


def server(folder: Path) -> dict[str, Scalar]:
    pictures(folder / "server.npz", PETS, PETS, 9)
    return {**SMALL, "dataset": str(folder / "server.npz"), "clients-per-round": 2}


def test_a_node_of_another_order_of_classes_is_left_out_with_both_lists(tmp_path: Path) -> None:
    said = Quiet()
    strategy = train(server(tmp_path), nodes=fleet(tmp_path, {}), progress=said)
    for row in rounds_of(strategy):
        assert {client["client"] for client in row["clients"]} == {"n0", "n1"}
    told_of = [line for line in said.said if "left out" in line]
    for name in ("n2", "n3"):
        (line,) = [line for line in told_of if name in line]
        assert '["owl", "cat", "dog"]' in line and '["cat", "dog", "owl"]' in line


def test_too_few_that_agree_end_the_start_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RosterError, match="owl"):
        train(server(tmp_path) | {"clients-per-round": 4}, nodes=fleet(tmp_path, {}))


def test_classes_put_in_the_run_s_order_train_as_if_they_had_been_written_so(
    tmp_path: Path,
) -> None:
    values = server(tmp_path) | {"clients-per-round": 4}
    mapped = train(values, nodes=fleet(tmp_path, {"classes": "cat,dog,owl"}))
    (tmp_path / "right").mkdir()
    right = {k + 1: pictures(tmp_path / "right" / f"n{k}.npz", PETS, PETS, k) for k in range(4)}
    assert same(mapped.state, train(values, nodes=right).state)


def test_names_of_another_language_and_numbers_are_mapped(tmp_path: Path) -> None:
    katze = pictures(tmp_path / "a.npz", ("Hund", "Katze", "Uhu"), ("dog", "cat", "owl"), 1)
    plain = pictures(tmp_path / "b.npz", None, ("dog", "cat", "owl"), 1)
    right = pictures(tmp_path / "c.npz", PETS, PETS, 1)
    found = [
        in_order(load_dataset(DataSettings(dataset=str(one["data-path"]))), text)
        for one, text in (
            (katze, "cat=Katze, dog=Hund, owl=Uhu"),
            (plain, "cat=1,dog=0,owl=2"),
            (right, "cat,dog,owl"),
        )
    ]
    assert len({one.train.digest() for one in found}) == 1
    assert len({one.test.digest() for one in found}) == 1
    assert [one.task.meaning for one in found] == [found[2].task.meaning] * 3


def test_a_list_may_have_more_classes_than_a_node(tmp_path: Path) -> None:
    own = pictures(tmp_path / "a.npz", PETS, PETS, 1)
    data = load_dataset(DataSettings(dataset=str(own["data-path"])))
    wider = in_order(data, "ant,owl,cat,dog")
    assert wider.task.classes == ("ant", "owl", "cat", "dog")
    names = np.array(wider.task.classes)[wider.strata(wider.train)]
    assert (names == np.array(PETS)[data.strata(data.train)]).all()


@pytest.mark.parametrize("text", ["", "cat,dog", "cat,dog,owl,cat", "cat,dog=cat,owl", "a,b,c"])
def test_lists_that_do_not_say_it_are_refused(text: str, tmp_path: Path) -> None:
    own = pictures(tmp_path / "a.npz", PETS, PETS, 1)
    data = load_dataset(DataSettings(dataset=str(own["data-path"])))
    with pytest.raises(DataError, match="classes"):
        in_order(data, text)


def test_pixel_constants_are_compared_too(tmp_path: Path) -> None:
    nodes = fleet(tmp_path, {})
    nodes[2] = {"name": "digits", "data-path": "digits"}
    said = Quiet()
    values = {**SMALL, "dataset": "digits", "clients-per-round": 1}
    numbered = pictures(tmp_path / "m.npz", tuple("0123456789"), PETS, 1)
    train(values, nodes={1: {"name": "d", "data-path": "digits"}, 2: numbered}, progress=said)
    (line,) = [line for line in said.said if "left out" in line]
    assert "m" in line and "pixel-mean" in line and "[0.3053]" in line and "[0.5]" in line
    # What the run says holds for all.
    said = Quiet()
    values |= {"pixel-mean": "0.4", "pixel-std": "0.3", "clients-per-round": 2}
    train(values, nodes={1: {"name": "d", "data-path": "digits"}, 2: numbered}, progress=said)
    assert not [line for line in said.said if "left out" in line]


class Table(Task):
    """Two numbers, a category, and a yes or no."""

    inputs: ClassVar = {
        "ground": Input((), "int64", 0, 1, categories=("chalk", "clay")),
        "rain": Input((2,), scale=(0.5, 2.0), offset=(0.0, 1.0)),
        "slope": Input((1,)),
    }
    outputs: ClassVar = {"slides": Output((2,), ("no", "yes"))}
    metrics: ClassVar = (Metric("surprise", "less"),)

    def loss(self, outputs, targets, *, smoothing=0.0):
        raise NotImplementedError

    def count(self, outputs, targets):
        raise NotImplementedError


# What most say, where the server has no data


def client(name: str, *classes: str) -> Client:
    return Client(name, meaning=brief({"classes": json.dumps(classes)}))


def test_without_data_the_run_s_are_what_most_say_until_it_begins() -> None:
    run = RunMeaning(None)
    run.ask([client("a", "x", "y"), client("b", "y", "x")])
    assert [run.problem(client("a", "x", "y")), bool(run.problem(client("b", "y", "x")))] == [
        "",
        True,
    ]
    run.ask([client("a", "x", "y"), client("b", "y", "x"), client("c", "y", "x")])
    assert run.problem(client("a", "x", "y")) and not run.problem(client("b", "y", "x"))
    run.settled = True
    run.ask([client("a", "x", "y"), client("d", "x", "y"), client("e", "x", "y")])
    assert not run.problem(client("b", "y", "x"))
    again = RunMeaning(None)
    again.restore(json.loads(json.dumps(run.state())))
    again.ask([client("a", "x", "y")])
    assert not again.problem(client("b", "y", "x")) and again.problem(client("a", "x", "y"))


def test_the_server_s_own_data_outvote_everybody() -> None:
    run = RunMeaning({"classes": '["x", "y"]'})
    run.ask([client("b", "y", "x"), client("c", "y", "x")])
    assert not run.problem(client("a", "x", "y")) and run.problem(client("b", "y", "x"))


# On the wire


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=400), max_size=5))
def test_what_is_told_is_heard_and_differs_where_texts_do(meaning: dict[str, str]) -> None:
    short = heard(told(brief(meaning)))
    assert [each.digest for each in short.values()] == [
        each.digest for each in brief(meaning).values()
    ]
    assert all(len(each.shown) <= 400 and each.shown.isprintable() for each in short.values())
    changed = brief({what: text + "." for what, text in meaning.items()})
    assert all(changed[what].digest != brief(meaning)[what].digest for what in meaning)


@pytest.mark.parametrize(
    "text",
    [
        *(None, 7, "", "[]", "7", "{" * 10_000, '{"a": 1}', '{"a": ["x", "y"]}', '{"a": [1, 2]}'),
        *('{"a": ["' + "0" * 32 + '"]}', '"' + "x" * 200_000 + '"'),
    ],
)
def test_what_is_no_meaning_is_a_claim_that_cannot_be(text: object) -> None:
    with pytest.raises(ClaimError):
        heard(text)


def test_a_task_of_one_s_own_says_how_its_numbers_are_scaled_and_named() -> None:
    task = Table()
    assert dict(task.meaning) == {
        "numbers of ground": '[[], [], ["chalk", "clay"]]',
        "numbers of rain": "[[0.5, 2.0], [0.0, 1.0], []]",
        "slides": '["no", "yes"]',
    }
