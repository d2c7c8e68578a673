"""Files of a user's own network: told before they run, run on arrays, and refused without code."""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from superfednas import cli
from superfednas.deploy.device.cards import make_card
from superfednas.deploy.device.elastic import ElasticModel
from superfednas.deploy.device.elastic_file import write_elastic
from superfednas.deploy.device.export import export
from superfednas.deploy.device.runtime import model as runtime
from superfednas.deploy.device.runtime.__main__ import main
from superfednas.deploy.device.runtime.about import described
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.nas.score.tallies import subnet_module
from superfednas.supernet import load_space
from superfednas.tasks.describe import describe
from tests.extend import table_task
from tests.support.exports import picture_card
from tests.support.strategies import noisy_state

OWN = "landslide_networks"


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a user's module be found for a while, and then no longer."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(OWN, None)
        importlib.invalidate_caches()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a user's module, and a network and a supernet of it."""
    folder = tmp_path_factory.mktemp("own")
    source = Path(table_task.__file__).read_text("utf-8")
    (folder / f"{OWN}.py").write_text(source, "utf-8")
    options = {"space": f"{OWN}:SoilPerceptrons", "norm": "none", "task": f"{OWN}:Landslides"}
    with importable(folder):
        space = load_space(options["space"], norm="none", task=options["task"])
        state, largest = noisy_state(space), space.largest
        card = make_card(space, options, largest, describe(space.task), {})
        write_elastic(folder / "all.safetensors", space, state, card)
        module = subnet_module(space, state, largest).eval()
        test = importlib.import_module(OWN).table(None).test
        export(module, card, test.first(8).fields, "safetensors", folder / "one.safetensors")
    return folder


@pytest.fixture(scope="module")
def onnx(files: Path) -> Path:
    """Return the network as an ONNX file, which needs no code."""
    path = files / "one.onnx"
    with importable(files):
        own = importlib.import_module(OWN)
        space = load_space(f"{OWN}:SoilPerceptrons", norm="none", task=f"{OWN}:Landslides")
        card = runtime.load(files / "one.safetensors").card
        module = subnet_module(space, noisy_state(space), space.largest).eval()
        export(module, card, own.table(None).test.first(8).fields, "onnx", path)
    return path


LOADERS: list[tuple[Callable[[Path], Any], str]] = [
    (runtime.load, "one.safetensors"),
    (runtime.load, "all.safetensors"),
    (ElasticModel.load, "all.safetensors"),
]


@pytest.mark.parametrize(("load", "name"), LOADERS)
def test_code_that_is_missing_is_named_and_the_file_not_blamed(
    load: Callable[[Path], Any], name: str, files: Path
) -> None:
    with pytest.raises(DeployError) as refused:
        load(files / name)
    said = str(refused.value)
    assert said.startswith(f"{files / name}: ") and "\n" not in said
    assert f"No module named '{OWN}'" in said
    assert "damaged" not in said and "elastic" not in said
    with importable(files):
        load(files / name)


@pytest.mark.parametrize(("load", "name"), LOADERS)
def test_a_class_that_is_gone_from_its_module_is_named(
    load: Callable[[Path], Any], name: str, files: Path, tmp_path: Path
) -> None:
    source = (files / f"{OWN}.py").read_text("utf-8")
    (tmp_path / f"{OWN}.py").write_text(source.replace("class Landslides(", "class Slides("))
    with importable(tmp_path), pytest.raises(DeployError) as refused:
        load(files / name)
    assert f"{OWN}:Landslides" in str(refused.value)


def rows() -> dict[str, np.ndarray]:
    """Return rows as a user has them: float64, soils by name, the targets beside."""
    rng = np.random.default_rng(0)
    soils = np.array(table_task.SOILS)
    return {
        "landslide": rng.integers(2, size=4),
        "readings": rng.standard_normal((4, 3)),
        "soil": soils[rng.integers(3, size=4)],
    }


@pytest.mark.slow
def test_both_commands_answer_rows_as_a_user_has_them(
    onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, path, given = str(onnx), tmp_path / "rows.npz", rows()
    np.savez(path, **given)
    codes = np.array([table_task.SOILS.index(name) for name in given["soil"].tolist()])
    raw = {"readings": given["readings"].astype(np.float32), "soil": codes}
    expected = runtime.load(network).run(raw)["logit"].tolist()
    for command in (main, classify):
        assert command([network, str(path), "--json"]) == 0
        said = [json.loads(line)["logit"] for line in capsys.readouterr().out.splitlines()]
        assert said == expected


def classify(arguments: list[str]) -> int:
    """Run the verb in this process, and return its exit status."""
    status = cli.app(["classify", *arguments], standalone_mode=False)
    assert isinstance(status, int)
    return status


@pytest.mark.slow
@pytest.mark.parametrize("command", [main, classify])
def test_without_inputs_a_file_is_told(
    command: Callable[[list[str]], int], onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(onnx)
    assert command([path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "task": f"{OWN}:Landslides",
        "files": ".npz",
        "inputs": {
            "readings": {
                "shape": [3],
                "dtype": "float32",
                "low": None,
                "high": None,
                "categories": [],
            },
            "soil": {
                "shape": [],
                "dtype": "int64",
                "low": 0,
                "high": 2,
                "categories": list(table_task.SOILS),
            },
        },
        "outputs": {"logit": {"shape": [1], "names": ["landslide"]}},
    }
    assert command([path]) == 0
    text = capsys.readouterr().out
    words = ("readings", "float32", "soil", "int64", *table_task.SOILS, "logit", "landslide")
    assert all(word in text for word in words)


def test_a_network_of_pictures_says_so() -> None:
    told = described(picture_card(3, 8, ("cat", "dog")))
    assert told["files"] == "pictures" and told["outputs"]["logits"]["names"] == ("cat", "dog")
    assert told["inputs"]["images"]["shape"] == (3, 8, 8)
    assert told["inputs"]["images"]["high"] == 255


def test_classify_names_no_option_that_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    verb = cli.app
    with contextlib.suppress(SystemExit):
        verb(["classify", "--help"])
    text = capsys.readouterr().out
    assert "--latency-table" not in text
    before = text[: text.index("Arguments")]
    assert "MODEL is" in before and "INPUTS are" in before
