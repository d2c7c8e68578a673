"""Modules that a run names: only those of its app, and those that the node's operator allows."""

import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict

from superfednas.client import app as client
from superfednas.client import modules
from superfednas.client.modules import check_modules
from superfednas.client.node_config import ALLOW_MODULES, NodeConfigError, check_node_config
from superfednas.client.problems import NodeError
from superfednas.client.worker.handover import FOLDER_VARIABLE
from superfednas.common.settings import flatten
from superfednas.data import DataSettings
from superfednas.wire.order import PROTOCOL

pytestmark = pytest.mark.attack

PART = {"partition-id": 0, "num-partitions": 2}
OWN = {"name": "kitchen", "data-path": "digits"}


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an app's folder with `came.py`; `other.py`, which leaves a mark, is on the path too."""
    bundle, elsewhere = tmp_path / "app", tmp_path / "elsewhere"
    for path in (bundle / "came.py", elsewhere / "other.py", elsewhere / "group" / "inner.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("open(__file__ + '.mark', 'w').close()\n")
    (bundle / "pyproject.toml").touch()
    monkeypatch.setattr(modules, "ROOT", bundle)
    monkeypatch.setattr(sys, "path", [*sys.path, str(bundle), str(elsewhere)])
    return bundle


@pytest.mark.parametrize("key", ["space", "task", "dataset"])
def test_a_run_names_modules_of_its_app_and_allowed_ones(app: Path, key: str) -> None:
    check_modules(PART, {key: "came:Space"})
    check_modules(PART, {key: "resnet-tiny"})
    for name in ("other:Space", "group.inner:Space", "os:system", "no_such:Space"):
        with pytest.raises(NodeConfigError, match=name):
            check_modules(PART, {key: name})
    with pytest.raises(NodeConfigError, match='allow-modules="other"'):
        check_modules(PART, {key: "other:Space"})
    check_modules(PART | {ALLOW_MODULES: "group, other"}, {key: "other:Space"})
    check_modules(PART | {ALLOW_MODULES: "group, other"}, {key: "group.inner:Space"})
    with pytest.raises(NodeConfigError):
        check_modules(PART | {ALLOW_MODULES: "oth,group.inner.more,"}, {key: "other:Space"})
    assert not list(app.parent.rglob("*.mark"))


def test_the_nodes_own_data_replace_the_runs_and_bring_their_module(app: Path) -> None:
    check_modules(OWN, {"dataset": "other:data"})
    with pytest.raises(NodeConfigError):
        check_modules(OWN, {"task": "other:Task"})
    check_modules(OWN | {"data-path": "other:data"}, {"task": "other:Task"})


def test_the_folder_of_all_packages_is_no_app(app: Path) -> None:
    (app / "pyproject.toml").unlink()
    with pytest.raises(NodeConfigError):
        check_modules(PART, {"space": "came:Space"})


def test_the_node_config_takes_a_list_of_modules() -> None:
    check_node_config(PART | {ALLOW_MODULES: "other"})
    with pytest.raises(NodeConfigError, match=ALLOW_MODULES):
        check_node_config(PART | {ALLOW_MODULES: 3})


def _message(kind: str, config: dict[str, Any]) -> Message:
    metadata = Metadata(1, "", 0, 2, "", "", 0.0, 100.0, kind)
    record = RecordDict({"config": ConfigRecord(config)})
    return Message(content=record, metadata=metadata)  # type: ignore[call-overload]


def test_a_node_answers_with_a_problem_and_trains_nothing(
    app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/node")
    order = {**flatten(DataSettings()), "seed": 0, "protocol": PROTOCOL, "device-classes": ""}
    context = Context(1, 2, dict(PART), RecordDict(), {"space": "other:Space"})
    answer = client.app(_message("query", order), context).content["config"]
    assert "other:Space" in answer["problem"] and answer["examples"] == 0
    order["space"] = "other:Space"
    for kind in ("train", "evaluate"):
        with pytest.raises(NodeError, match="other:Space"):
            client.app(_message(kind, order), context)
    assert not list(app.parent.rglob("*.mark"))
