"""Scores that stay on their node: what a curious server learns of classes with and without them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import MessageType
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.client.data import node_data
from superfednas.client.subnet_client import SubnetClient
from superfednas.common.settings import Scalar
from superfednas.data import Dataset, DataSettings, Split
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.refusals import Refusal
from superfednas.server.assign.answer import BadAnswer, client_of
from superfednas.server.errands.personalise import personal_files, personalise_by_nodes
from superfednas.server.nodes import RosterError
from superfednas.server.strategy import SupernetStrategy
from superfednas.supernet import State, extract, load_space
from superfednas.wire.flat import pack, unpack
from superfednas.wire.personal_file import personal_files as kept_files
from tests.server.test_score import Recorder, Said, run_folder
from tests.server.test_score import ask as ask_scores
from tests.support.orders import PART, SPACE, ask, order, query
from tests.support.rows import lines
from tests.support.strategies import small_dataset
from tests.support.training import Quiet, node_configs, train

torch.set_num_threads(1)
KEEPS: dict[str, Scalar] = {"tell-scores": False}
CLASSES = 10
HIGH = 3.0


# What a curious server computes


def head() -> str:
    """Return the name of the classifier's bias."""
    (name,) = (n for n, s in SPACE.shapes(SPACE.largest).items() if SPACE.in_head(n) and len(s) < 2)
    return name


def blind(favourite: int | None = None) -> State:
    """Give weights whose answer is the same for every picture."""
    state = {name: torch.zeros(shape) for name, shape in SPACE.shapes(SPACE.largest).items()}
    if favourite is not None:
        state[head()][favourite] = HIGH
    return state


def counts(split: Split) -> list[int]:
    return np.bincount(split.targets["labels"].numpy(), minlength=CLASSES).tolist()


def own() -> Dataset:
    return node_data(PART, DataSettings(), 0)


def by_scores(node: dict[str, Scalar]) -> list[int] | None:
    """Count a node's validation images by class, from accuracies."""
    found = []
    for k in range(CLASSES):
        told = ask(node, MessageType.EVALUATE, blind(k))
        found += [round(sums["accuracy"]) for _, sums in json.loads(told.get("evaluation", "[]"))]
    return found or None


def by_scores_while_training(node: dict[str, Scalar]) -> list[int] | None:
    """Count the same from the evaluation that comes with trained weights."""
    found, subnets = [], json.dumps([SPACE.smallest.to_json()])
    for k in range(CLASSES):
        told = ask(node, state=blind(k), evaluate=subnets)
        found += [round(sums["accuracy"]) for _, sums in json.loads(told.get("evaluation", "[]"))]
    return found or None


def by_losses(node: dict[str, Scalar]) -> list[int] | None:
    """Count a node's training images by class, from the mean loss of one step on all of them."""
    found = []
    for k in range(CLASSES):
        told = ask(node, state=blind(k), batch_size=10_000)
        if "loss" in told:
            missing = math.log(CLASSES - 1 + math.exp(HIGH)) - told["loss"]
            found.append(round(told["num-examples"] * missing / HIGH))
    return found or None


def by_bias(node: dict[str, Scalar], **asked: Any) -> list[int]:
    """Count a node's training images by class, from how one step moves the classifier's bias."""
    told = ask(node, state=blind(), batch_size=10_000, lr=1.0, clip_norm=0.0, **asked)
    trained = unpack(told["flat"], SPACE.shapes(SPACE.smallest), "float32")[head()]
    shares = trained + 1 / CLASSES  # minus the gradient: share of the class - softmax
    return [round(told["num-examples"] * float(share)) for share in shares]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("count", "part"),
    [
        (by_scores, "validation"),
        (by_scores_while_training, "validation"),
        (by_losses, "train"),
    ],
)
def test_scores_tell_class_counts_exactly_and_only_where_they_are_told(
    count: Any, part: str
) -> None:
    truth = counts(getattr(own(), part))
    assert count(PART) == truth and len(set(truth)) > 3
    assert count(PART | KEEPS) is None


@pytest.mark.attack
def test_weights_tell_class_counts_too_and_noise_hides_them() -> None:
    truth = counts(own().train)
    assert by_bias(PART | KEEPS) == truth
    noisy = by_bias(PART | KEEPS, dp_clip=0.3, dp_noise=1.0)
    wrong = sum(abs(a - b) for a, b in zip(noisy, truth, strict=True))
    assert wrong > sum(truth) / 4


@settings(max_examples=10, deadline=None)
@given(labels=st.lists(st.integers(0, 2), min_size=10, max_size=10), seed=st.integers(0, 99))
def test_beside_weights_nothing_that_is_told_depends_on_labels(
    labels: list[int], seed: int
) -> None:
    def told(data: Dataset) -> dict[str, Any]:
        config = order(
            num_classes=3,
            evaluate=json.dumps([SPACE.smallest.to_json()]),
            seed=seed,
        )
        of = load_space("mobilenetv1-tiny", num_classes=3, in_channels=1, image_size=8)
        flat = pack(extract(of.init(0), of.boxes(of.smallest)), "float32")
        client = SubnetClient("kitchen", data, tells_scores=False)
        _, examples, metrics = client.fit([flat], config)
        return metrics | {"examples": examples, "seconds": 0}

    data = small_dataset()
    other = Split(data.train.fields, {"labels": torch.tensor(labels)})
    changed = Dataset(data.name, data.task, other, data.validation, data.test)
    assert told(changed) == told(data)


def test_errors_of_a_node_that_keeps_its_scores_say_nothing_of_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.zeros((4, 8, 8), np.uint8)
    labels = np.array([0, 1, 7, 7])
    path = tmp_path / "own.npz"
    np.savez(path, x_train=rows, y_train=labels, x_test=rows, y_test=labels)
    node: dict[str, Scalar] = {"name": "kitchen", "data-path": str(path)}
    assert "from 0 to 7" in query(node)["problem"]
    said = query(node | KEEPS)
    assert "7" not in said["problem"].replace(str(tmp_path), "") and "problem-code" not in said
    assert "from 0 to 7" in capsys.readouterr().err


# What becomes of the run


def test_a_node_says_whether_it_tells() -> None:
    told, kept = query(PART), query(PART | KEEPS)
    assert (told["tell-scores"], kept["tell-scores"]) == (True, False)
    assert told["validation-examples"] == len(own().validation)
    assert "validation-examples" not in kept and kept["examples"] == told["examples"]
    assert not client_of(kept, SPACE, {}).tells_scores
    with pytest.raises(BadAnswer) as caught:
        client_of(kept | {"tell-scores": "no"}, SPACE, {})
    assert caught.value.refused.code == Refusal.CLAIM


def keepers(*which: int, count: int = 3) -> dict[int, dict[str, Scalar]]:
    return {n: c | (KEEPS if n in which else {}) for n, c in node_configs(count).items()}


def evaluated(*which: int) -> tuple[SupernetStrategy, Quiet, Recorder]:
    values: dict[str, Scalar] = {
        "rounds": 1,
        "evaluate-every": 1,
        "evaluate-on": "clients",
        "space": "mobilenetv1-tiny",
        "ladder": 2,
    }
    progress, asked = Quiet(), Recorder()
    strategy = train(values, asked.app, nodes=keepers(*which), progress=progress)
    return strategy, progress, asked


@pytest.mark.slow
def test_the_ladder_is_of_those_that_tell_and_says_how_many_they_are() -> None:
    strategy, progress, _ = evaluated(2)
    row, evaluation = lines(strategy.rows)
    by_name = {client["client"]: client for client in row["clients"]}
    assert all(client["accepted"] for client in row["clients"])
    assert by_name["1"]["loss"] is None and by_name["1"]["own_accuracy"] is None
    assert by_name["0"]["loss"] > 0 and by_name["0"]["own_accuracy"] is not None
    assert (evaluation["clients"], evaluation["of"]) == (2, 3)
    whole, _, _ = evaluated()
    everyone = lines(whole.rows)[-1]
    assert (everyone["clients"], everyone["of"]) == (3, 3)
    told = sum(len(node_data(c, DataSettings(), 3).validation) for c in keepers().values())
    less = len(node_data(node_configs(3)[2], DataSettings(), 3).validation)
    assert everyone["ladder"][0]["examples"] == told
    assert evaluation["ladder"][0]["examples"] == told - less
    assert ["2 of 3 clients"] in progress
    assert all(torch.equal(strategy.state[n], t) for n, t in whole.state.items())


@pytest.mark.slow
def test_a_run_of_nodes_that_all_keep_their_scores_says_so_and_goes_on() -> None:
    strategy, progress, _ = evaluated(1, 2, 3)
    (row,) = lines(strategy.rows)
    assert len(row["clients"]) == 3 and strategy.rows[0].loss is None  # type: ignore[union-attr]
    assert ["no score of the ladder"] in progress


@pytest.mark.slow
def test_only_nodes_that_tell_are_asked_for_scores(tmp_path: Path) -> None:
    run, said, asked = run_folder(tmp_path / "run"), Said(), Recorder()
    book = ask_scores(run, asked, keepers(2), progress=said)
    assert sorted(asked.nodes()) == [1, 3]
    told = [node_data(c, DataSettings(), 3) for n, c in node_configs(3).items() if n != 2]
    assert {t.examples for _, t in book.items()} == {sum(len(d.validation) for d in told)}
    assert ["1 of 3 nodes keep their scores"] in said


@pytest.mark.slow
def test_min_nodes_counts_those_that_tell(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    with pytest.raises(RosterError, match="2 of the 3 usable nodes tell"):
        ask_scores(run, Recorder(), keepers(2), min_nodes=3)
    with pytest.raises(RunFolderError, match="no node scored"):
        ask_scores(run, Recorder(), keepers(1, 2, 3))


def personalised(run: RunFolder, tmp_path: Path, said: Said, **values: Scalar) -> dict[str, Any]:
    nodes = {n: c | {"state-dir": str(tmp_path / str(n))} for n, c in keepers(2).items()}
    asked: dict[str, Scalar] = {"personalise-run": str(run.path), "fine-tune-epochs": 1}
    grid = LocalGrid(Recorder().app, nodes, {})
    try:
        asked |= {key.replace("_", "-"): value for key, value in values.items()}
        personalise_by_nodes(asked, grid, said)
    finally:
        grid.close()
    table: dict[str, Any] = json.loads(personal_files(run)[-1].read_text())
    return table


@pytest.mark.slow
def test_a_node_that_keeps_its_scores_keeps_its_own_subnets_all_the_same(tmp_path: Path) -> None:
    run, said = run_folder(tmp_path / "run"), Said()
    table = personalised(run, tmp_path, said, personal_subnets="smallest")
    assert sorted(table["subnets"][0]["clients"]) == ["0", "2"]
    assert all(kept_files(tmp_path / str(n)) for n in (1, 2, 3))
    assert ["client 1", "scores kept"] in said
    table = personalised(run, tmp_path, said, personal_subnets="1")  # nothing to keep
    assert sorted(table["subnets"][0]["clients"]) == ["0", "2"]
    assert ["1 of 3 nodes keep their scores"] in said
