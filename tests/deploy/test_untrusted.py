"""Files that name code or absurd sizes: neither is run nor built, but refused in a sentence."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import superfednas
from superfednas.common import trust
from superfednas.common.settings import SettingsError
from superfednas.common.trust import UntrustedCodeError
from superfednas.deploy.device.elastic import ElasticModel
from superfednas.deploy.device.personal import find_personal
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.model import SAFETENSORS_CARD, load
from superfednas.nas.pipeline import Request
from superfednas.nas.plan import Plan
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.trained import Trained
from superfednas.report import draw_plan, write_report

pytestmark = [pytest.mark.slow, pytest.mark.attack]

PERSONAL = "personal-subnet"
BY_MACS = Request(score="macs")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a run, its plan and one of each file that it is exported to."""
    folder = tmp_path_factory.mktemp("made")
    run, plan = folder / "run", folder / "plan.json"
    superfednas.train(
        rounds=1, clients=2, clients_per_round=1, local_steps=1, ladder=2, run_dir=str(run)
    )
    superfednas.search(run, {"macs": 1e6}, request=BY_MACS, out=plan)
    superfednas.export_elastic(run, folder / "elastic.safetensors")
    for name, format_ in (("subnet.safetensors", "safetensors"), ("subnet.onnx", "onnx")):
        superfednas.export(run, "smallest", folder / name, format=format_)
    superfednas.personalise(
        run, state_dir=folder / "state", personal_subnets="smallest", fine_tune_epochs=1
    )
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a copy of it, with a module `evil` that leaves a mark on the path."""
    monkeypatch.setattr(trust, "_given", set())
    monkeypatch.setattr(trust, "_FILE", tmp_path / "trusted.json")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("open(__file__ + '.mark', 'w').close()\n")
    yield shutil.copytree(made, tmp_path / "made")
    sys.modules.pop("evil", None)


def mark(files: Path) -> Path:
    return files.parent / "evil.py.mark"


def change_run(files: Path, key: str, value: object) -> Path:
    run = files / "run"
    info = json.loads((run / "run.json").read_text())
    info["settings"][key] = value
    (run / "run.json").write_text(json.dumps(info))
    return run


def change_space(file: Path, note: str, key: str, value: object) -> Path:
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    card = json.loads(about[note])
    card["space"][key] = value
    save_file(tensors, file, about | {note: json.dumps(card)})
    return file


def resumed(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    superfednas.train(resume=str(run))


RUN_VERBS: dict[str, Callable[[Path], Any]] = {
    "evaluate": lambda run: superfednas.evaluate(run, "largest"),
    "subnet": lambda run: superfednas.subnet(run, "largest"),
    "search": lambda run: superfednas.search(run, {"macs": 1e6}, request=BY_MACS),
    "export": lambda run: superfednas.export(run, "largest", run / "x.onnx"),
    "elastic": lambda run: superfednas.export_elastic(run, run / "x.safetensors"),
    "score": lambda run: superfednas.score_nodes(run, score_subnets=8),
    "personalise": superfednas.personalise,
    "resume": resumed,
    "keep-going": lambda run: superfednas.train(run_dir=str(run), keep_going=True),
    "open": lambda run: Trained.open(run).space,
}


@pytest.mark.parametrize("key", ["space", "task", "dataset"])
@pytest.mark.parametrize("verb", RUN_VERBS)
def test_no_verb_imports_what_a_run_names(files: Path, verb: str, key: str) -> None:
    run = change_run(files, key, "evil:Thing")
    with pytest.raises(UntrustedCodeError, match="evil:Thing"):
        RUN_VERBS[verb](run)
    assert not mark(files).exists()


@pytest.mark.parametrize("key", ["method", "assignment", "averaging"])
@pytest.mark.parametrize("verb", ["score", "personalise", "resume", "report"])
def test_nor_what_only_settings_name(files: Path, verb: str, key: str) -> None:
    run = change_run(files, key, "evil:Thing")
    report = lambda run: write_report(RunFolder.open(run), None)  # noqa: E731
    with pytest.raises(UntrustedCodeError, match="evil:Thing"):
        {**RUN_VERBS, "report": report}[verb](run)
    assert not mark(files).exists()


def test_a_plans_test_and_picture_import_nothing(files: Path) -> None:
    run = change_run(files, "space", "evil:Space")
    plan = json.loads((files / "plan.json").read_text())
    plan["run"], plan["space"]["space"] = str(run), "evil:Space"
    (files / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UntrustedCodeError):
        superfednas.test(files / "plan.json")
    with pytest.raises(UntrustedCodeError, match="evil:Space"):
        draw_plan(Plan.load(files / "plan.json"), files, "plan")
    assert not mark(files).exists()


@pytest.mark.parametrize("key", ["space", "task"])
def test_model_files_are_refused_until_they_are_trusted(files: Path, key: str) -> None:
    elastic = change_space(files / "elastic.safetensors", SAFETENSORS_CARD, key, "evil:Thing")
    with pytest.raises(UntrustedCodeError, match="evil:Thing"):
        ElasticModel.load(elastic)
    subnet = change_space(files / "subnet.safetensors", SAFETENSORS_CARD, key, "evil:Thing")
    with pytest.raises(DeployError, match=r"evil:Thing.*--trust-code"):
        load(subnet)
    state = files / "state" / "0"
    for path in state.rglob("*.safetensors"):
        change_space(path, PERSONAL, key, "evil:Thing")
    with pytest.raises(UntrustedCodeError, match="evil:Thing"):
        find_personal(state)
    with pytest.raises(UntrustedCodeError, match="evil:Thing"):
        superfednas.export_personal(state, files / "x.onnx")
    assert not mark(files).exists()
    with pytest.raises(DeployError):  # imported now, but there is no such thing in it
        ElasticModel.load(elastic, trust_code=True)
    assert mark(files).exists()


def test_an_onnx_file_is_run_whatever_its_card_names(files: Path) -> None:
    import onnx

    model = onnx.load(files / "subnet.onnx")
    (card,) = (each for each in model.metadata_props if each.key == "superfednas")
    card.value = card.value.replace('"resnet-tiny"', '"evil:Space"')
    assert "evil:Space" in card.value
    onnx.save(model, files / "subnet.onnx")
    assert load(files / "subnet.onnx").card.space["space"] == "evil:Space"
    assert not mark(files).exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 10**9),
        ("num_classes", 10**5),
        ("in_channels", 10**9),
        ("in_channels", 4000),
        ("image_size", 10**6),
        ("image_size", True),
        ("norm", "no such"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_a_sentence(
    files: Path, key: str, value: object
) -> None:
    with pytest.raises(DeployError):
        ElasticModel.load(change_space(files / "elastic.safetensors", SAFETENSORS_CARD, key, value))
    with pytest.raises(DeployError):
        load(change_space(files / "subnet.safetensors", SAFETENSORS_CARD, key, value))
    state = files / "state" / "0"
    for path in state.rglob("*.safetensors"):
        change_space(path, PERSONAL, key, value)
    with pytest.raises(DeployError):
        find_personal(state)
    run = change_run(files, key.replace("_", "-"), value)
    for verb in ("evaluate", "subnet", "export", "elastic", "open"):
        if verb != "open" or value not in (10**5, 4000):
            with pytest.raises((SettingsError, RunFolderError, ValueError)):
                RUN_VERBS[verb](run)
