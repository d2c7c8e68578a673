"""The runtime: all formats answer alike, what is wrong is one sentence, one folder suffices."""

import ast
import contextlib
import io
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from superfednas.deploy.device.export import export
from superfednas.deploy.device.runtime.__main__ import main
from superfednas.deploy.device.runtime.classify import classify_paths
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.model import FORMATS, SAFETENSORS_CARD, load
from tests.support.exports import card_for, digits, digits_space, network
from tests.support.pictures import normalise as normalise_in_training
from tests.support.processes import ROOT

RUNTIME = ROOT / "deploy" / "device" / "runtime"
ON_A_DEVICE = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# Files


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one network in three formats, and ten digits as pictures."""
    folder = tmp_path_factory.mktemp("exported")
    of, data = digits_space("none"), digits()
    module, about = network(of, "smallest", data), card_for(of, "smallest", data)
    for name in ("onnx", "torch-export", "safetensors"):
        export(
            module,
            about,
            {"images": data.test.fields["images"][:2]},
            name,
            folder / f"net{FORMATS[name]}",
        )
    for number in range(10):
        pixels = data.validation.fields["images"][number, 0].numpy()
        Image.fromarray(pixels).save(folder / f"digit-{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".safetensors"])
def test_all_formats_answer_alike_at_any_batch(ending: str, exported: Path) -> None:
    model = load(exported / f"net{ending}", threads=1, trust_code=True)
    module = network(digits_space("none"), "smallest", digits())
    images = digits().validation.fields["images"][:10]
    batch = normalise_in_training(images, digits().task.mean, digits().task.std)
    expected = torch.softmax(module(batch), 1).detach().numpy()
    for size in (1, 3, 10):
        results = list(classify_paths(model, [exported], size))
        for result, row in zip(results, expected, strict=True):
            found = [dict(result.answers)[name] for name in digits().task.classes]
            np.testing.assert_allclose(found, row, atol=1e-5)


def rewritten(path: Path, text: str | None, out: Path) -> Path:
    """Copy an ONNX file with another card, or none."""
    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        model.metadata_props.add(key="superfednas", value=text)
    onnx.save(model, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "all but the end"])
def test_a_damaged_file_is_one_sentence(
    ending: str,
    damage: str,
    exported: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = (exported / f"net{ending}").read_bytes()
    damaged: dict[str, bytes] = {
        "empty": b"",
        "text": b"Once upon a time there was a network.",
        "half": whole[: len(whole) // 2],
        "all but the end": whole[:-100],
    }
    path = tmp_path / f"net{ending}"
    path.write_bytes(damaged[damage])
    with pytest.raises(DeployError, match=rf"net\{ending}: the file is damaged") as error:
        load(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


class Hostile:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.attack
def test_a_file_that_torch_would_unpickle_needs_a_word(exported: Path, tmp_path: Path) -> None:
    mark, path, hostile = tmp_path / "mark", tmp_path / "net.pt2", io.BytesIO()
    torch.save(((Hostile(mark),), {}), hostile)
    with zipfile.ZipFile(exported / "net.pt2") as whole, zipfile.ZipFile(path, "w") as changed:
        for part in whole.infolist():
            pickled = part.filename.endswith("sample_inputs/model.pt")
            changed.writestr(part, hostile.getvalue() if pickled else whole.read(part))
    with pytest.raises(DeployError, match="--trust-code"):
        load(path)
    assert not mark.exists()
    with contextlib.suppress(DeployError):  # after it has run
        load(path, trust_code=True)
    assert mark.exists()


@pytest.mark.attack
@pytest.mark.parametrize("shape", [[1, 8, 9], [3, 8, 8], [1, 10**5, 10**5], [1] * 40, [10**9] * 9])
def test_a_card_cannot_say_another_size_than_the_networks(
    shape: list[int], exported: Path, tmp_path: Path
) -> None:
    card = json.loads(load(exported / "net.onnx").card.to_json())
    card["inputs"]["images"] |= {"shape": shape, "scale": [], "offset": []}
    path = rewritten(exported / "net.onnx", json.dumps(card), tmp_path / "net.onnx")
    with pytest.raises(DeployError):
        load(path)
    with safe_open(exported / "net.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "net.safetensors", {SAFETENSORS_CARD: json.dumps(card)})
    with pytest.raises(DeployError):
        load(tmp_path / "net.safetensors")


def foreign_onnx(exported: Path, out: Path) -> Path:
    return rewritten(exported / "net.onnx", None, out / "foreign.onnx")


def foreign_pt2(exported: Path, out: Path) -> Path:
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, out / "foreign.pt2")
    return out / "foreign.pt2"


def foreign_safetensors(exported: Path, out: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, out / "foreign.safetensors")
    return out / "foreign.safetensors"


@pytest.mark.parametrize("make", [foreign_onnx, foreign_pt2, foreign_safetensors])
def test_another_projects_file(
    make: Callable[[Path, Path], Path], exported: Path, tmp_path: Path
) -> None:
    path = make(exported, tmp_path)
    with pytest.raises(DeployError) as error:
        load(path)
    assert str(error.value) == f"{path}: there is no card of this project in it"


def test_a_file_with_a_damaged_card(exported: Path, tmp_path: Path) -> None:
    path = rewritten(exported / "net.onnx", '{"format": 1, "classes": 3}', tmp_path / "net.onnx")
    with pytest.raises(DeployError, match=r"net\.onnx: its card is damaged"):
        load(path)


def test_a_file_with_an_earlier_card_answers_as_before(exported: Path, tmp_path: Path) -> None:
    data, now = digits(), load(exported / "net.onnx")
    earlier = {
        "format": 1,
        "space": dict(now.card.space),
        "architecture": now.card.architecture,
        "classes": data.task.classes,
        "mean": data.task.mean,
        "std": data.task.std,
        "macs": now.card.macs,
        "params": now.card.params,
        "source": dict(now.card.source),
        "menu": [],
    }
    path = rewritten(exported / "net.onnx", json.dumps(earlier), tmp_path / "net.onnx")
    before = load(path)
    assert before.card == now.card
    images = {"images": data.validation.fields["images"][:4].numpy()}
    assert np.array_equal(before.run(images)["logits"], now.run(images)["logits"])


def test_a_file_that_is_not_there_or_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"net\.onnx: there is no such file"):
        load(tmp_path / "net.onnx")
    with pytest.raises(DeployError, match=r"net\.bin: a model file ends with \.onnx, \.pt2"):
        load(tmp_path / "net.bin")


@pytest.mark.parametrize(
    ("ending", "missing", "package"),
    [
        (".onnx", "onnxruntime", "onnxruntime"),
        (".pt2", "torch", "torch"),
        (".safetensors", "safetensors", "torch safetensors"),
        (".safetensors", "superfednas.supernet.norms", "torch safetensors"),
        (".pte", "executorch.runtime", "executorch"),
    ],
)
def test_a_missing_library_is_named(
    ending: str,
    missing: str,
    package: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"net{ending}"
    if ending == ".pte":
        path.write_bytes(b"")
    else:
        shutil.copy(exported / path.name, path)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DeployError, match=rf"needs {package} \(pip install {package}\)") as error:
        load(path, trust_code=True)
    assert missing in str(error.value)


def test_threads_reach_the_library(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    session = onnxruntime.InferenceSession

    def noted(path: str, options: Any, **rest: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    for threads in (0, 2):
        load(exported / "net.onnx", threads=threads)
        load(exported / "net.pt2", threads=threads, trust_code=True)
    assert seen == [0, 2, 2]  # torch's own choice stays where it is left to torch


# The command


def test_the_command(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(exported / "net.onnx")
    assert main([model, str(exported), "--top", "2", "--batch", "3"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [Path(row[0]).name for row in rows] == [f"digit-{n}.png" for n in range(10)]
    assert all(len(row) == 5 and row[2].endswith("%") for row in rows)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    picture = str(exported / "digit-0.png")
    assert main([model, str(broken), picture, "--json"]) == 1
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert "problem" in first and second["path"] == picture
    assert second["answers"][0]["class"] == rows[0][1]
    assert err.startswith(f"error: {broken}: the picture cannot be read") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["net.bin", "x.png"], "error: net.bin: a model file ends with"),
        (["net.onnx", "empty"], "error: empty: there are no pictures in it"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: list[str],
    sentence: str,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(exported / "net.onnx", tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(sentence) and err.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--top", "0"], ["--batch", "x"], ["--threads", "-1"], []])
def test_wrong_options(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["net.onnx", "x.png", *wrong] if wrong else [])
    assert "error: " in capsys.readouterr().err


# The folder


def test_a_device_needs_the_folder_and_three_libraries(exported: Path, tmp_path: Path) -> None:
    installed, here = Path(sysconfig.get_paths()["purelib"]), tmp_path / "device"
    site = tmp_path / "site"
    site.mkdir()
    for name in ON_A_DEVICE:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    shutil.copytree(RUNTIME, here / "runtime", ignore=shutil.ignore_patterns("__pycache__"))

    def python(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-S", *options]  # without any package but those of `site`
        env = {"PYTHONPATH": str(site)}
        return subprocess.run(
            command, cwd=here, env=env, capture_output=True, text=True, timeout=100
        )

    code = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    elsewhere = ("superfednas", "torch", "flwr", "safetensors", "onnx", "deploy")
    assert python("-c", code % (elsewhere,)).stdout == "[]\n"
    picture = exported / "digit-0.png"
    done = python("-m", "runtime", str(exported / "net.onnx"), str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    ((name, _),) = next(classify_paths(load(exported / "net.onnx"), [picture])).answers[:1]
    assert done.stdout.startswith(f"{picture}\t{name}\t")
    refused = python("-m", "runtime", str(exported / "net.safetensors"), str(picture))
    assert refused.returncode == 1 and "needs torch safetensors" in refused.stderr
    assert python("-m", "runtime", "--help").stdout.startswith("usage: python -m runtime ")


def test_the_folder_imports_nothing_from_outside_itself() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime", "PIL"}
    at_first_use = {"torch", "executorch", "safetensors", "superfednas"}
    for path in RUNTIME.glob("**/*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                continue
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found = {name.partition(".")[0] for name in names} - allowed
            assert found <= (set() if node in tree.body else at_first_use), path
