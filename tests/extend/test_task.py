"""A task of a user's own is trained, searched for its least loss, exported and run."""

from pathlib import Path

import numpy as np
import pytest
import torch

import superfednas
from superfednas.deploy.device.runtime import model as runtime
from superfednas.nas.pipeline import Request
from superfednas.records.trained import Trained
from superfednas.supernet.contract import check_space
from tests.extend.table_task import LOG_LOSS, Landslides, SoilPerceptrons

pytestmark = pytest.mark.slow

HERE = "tests.extend.table_task"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "run"
    superfednas.train(
        dataset=f"{HERE}:table",
        space=f"{HERE}:SoilPerceptrons",
        norm="none",
        partition="iid",
        rounds=4,
        clients=3,
        clients_per_round=3,
        evaluate_every=2,
        evaluate_on="clients",
        ladder=3,
        run_dir=str(folder),
    )
    return folder


def test_its_networks_keep_the_contract() -> None:
    assert not [
        found for found in check_space(SoilPerceptrons(Landslides(), "none")) if found.problem
    ]


def test_training_by_maxnet_lowers_its_loss(run: Path) -> None:
    trained = Trained.open(run)
    assert trained.options.task == f"{HERE}:Landslides" and isinstance(
        trained.space.task, Landslides
    )
    largest = trained.space.largest
    data, fresh = trained.data, trained.space.init(trained.seed)
    before = type(trained.measured())(trained.space, fresh, data, data.validation)
    (untrained,), (found,) = before.measure([largest]), trained.measured().measure([largest])
    assert found.value(LOG_LOSS) < 0.9 * untrained.value(LOG_LOSS)


def test_a_search_finds_the_least_loss_within_a_limit(run: Path) -> None:
    trained = Trained.open(run)
    space = trained.space
    limit = space.params(space.decode([6]))
    plan, path = superfednas.search(run, {"params": limit}, request=Request(score="measured"))
    every = [space.decode([choice]) for choice in range(7)]
    losses = [found.value(LOG_LOSS) for found in trained.measured().measure(every)]
    assert space.parse(plan.chosen.text) == every[int(np.argmin(losses))]
    assert plan.chosen.score == min(losses)
    assert superfednas.test(path)["chosen"].keys() >= {"log-loss", "examples"}


def test_its_export_answers_as_the_network_does(run: Path, tmp_path: Path) -> None:
    trained = Trained.open(run)
    exported = superfednas.export(run, "largest", tmp_path / "landslides.onnx")
    rows = trained.data.test.fields
    (answers,) = (
        runtime.load(exported.path)
        .run({name: tensor.numpy() for name, tensor in rows.items()})
        .values()
    )
    inputs, _ = trained.data.task.batch(
        rows, trained.data.test.targets, slice(None), torch.device("cpu")
    )
    expected = superfednas.subnet(run, "largest")(*inputs).detach().numpy()
    np.testing.assert_allclose(answers, expected, atol=1e-5)
