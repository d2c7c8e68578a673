"""The runtime: pictures as training read them, answers in order, one sentence for what is wrong."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from data import normalise as normalise_in_training
from data.folder import SUFFIXES
from data.images import decode
from deploy import runtime
from deploy.card import Card, DeployError
from deploy.export import export
from deploy.runtime import (
    FORMATS,
    Model,
    Result,
    classify_paths,
    find_pictures,
    load,
    main,
    read_image,
    read_images,
)
from tests.exports import card_for, digits, digits_space, network
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def card(channels: int = 3, size: int = 8, classes: tuple[str, ...] = ("a", "b")) -> Card:
    space = {
        "space": "resnet-tiny",
        "norm": "none",
        "num_classes": len(classes),
        "in_channels": channels,
        "image_size": size,
    }
    return Card(space, "{}", classes, (0.5,) * channels, (0.25,) * channels, 1, 1)


def fixed(*logits: float) -> Model:
    """Give a network that answers every picture alike."""
    names = tuple("abcdefgh"[: len(logits)])
    row = np.array(logits, np.float32)
    return Model(card(classes=names), lambda batch: np.tile(row, (len(batch), 1)))


def brightness() -> Model:
    """Give a network that answers b for bright pictures: logits (0, mean)."""

    def run(batch: np.ndarray) -> np.ndarray:
        mean = batch.mean(axis=(1, 2, 3))
        return np.stack([np.zeros_like(mean), 4 * mean], axis=1)

    return Model(card(), run)


def save(path: Path, level: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), level, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


# The card


@settings(max_examples=30)
@given(
    classes=st.lists(st.text(), min_size=1).map(tuple),
    mean=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
)
def test_a_card_survives_json(classes: tuple[str, ...], mean: list[float]) -> None:
    menu = ({"architecture": "{}", "macs": 1, "params": 2, "score": 0.5},)
    full = dataclasses.replace(
        card(channels=2, classes=classes), mean=tuple(mean), menu=menu, source={"rounds": 3}
    )
    assert Card.from_json(full.to_json(), "here") == full


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "null", "{}", '{"classes": []}'])
def test_what_is_no_card(text: str) -> None:
    with pytest.raises(DeployError, match="here: there is no card of this project in it"):
        Card.from_json(text, "here")


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
def test_a_damaged_card(change: dict[str, Any]) -> None:
    fields = json.loads(card().to_json()) | change
    with pytest.raises(DeployError, match="here: its card is damaged"):
        Card.from_json(json.dumps(fields), "here")
    with pytest.raises(DeployError, match="here: its card is damaged"):
        Card.from_json(json.dumps({k: v for k, v in fields.items() if k != "menu"}), "here")


def test_a_card_of_another_format() -> None:
    with pytest.raises(DeployError, match="here: its card has format 2; 1 is read"):
        Card.from_json(json.dumps(json.loads(card().to_json()) | {"format": 2}), "here")


# Numbers


@settings(max_examples=30)
@given(
    mean=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 2), min_size=3, max_size=3),
)
def test_normalised_as_in_training_to_the_last_bit(mean: list[float], std: list[float]) -> None:
    images = torch.arange(256).repeat(3).reshape(1, 3, 16, 16).to(torch.uint8)
    there = dataclasses.replace(card(), mean=tuple(mean), std=tuple(std))
    expected = normalise_in_training(images, tuple(mean), tuple(std)).numpy()
    found = runtime.normalise(images.numpy(), there)
    assert found.dtype == np.float32 and np.array_equal(found, expected)


def test_probabilities_by_hand() -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    found = fixed(0, math.log(3)).classify(images)
    np.testing.assert_allclose(found, [[0.25, 0.75]] * 2, rtol=1e-6)
    np.testing.assert_allclose(fixed(1e4, 1e4).classify(images), 0.5)


def test_no_image_is_no_work() -> None:
    model = Model(card(), lambda batch: pytest.fail("the network was run"))
    assert model.classify(np.zeros((0, 3, 8, 8), np.uint8)).shape == (0, 2)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 8, 8), np.float64),
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 1, 8, 8), np.float32),
        np.zeros((1, 3, 8, 9), np.float32),
    ],
)
def test_images_of_another_kind_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DeployError, match=r"float32 of shape \(N, 3, 8, 8\) is needed"):
        fixed(0, 1).logits(images)
    with pytest.raises(DeployError, match=r"uint8 of shape \(N, 3, 8, 8\) is needed"):
        fixed(0, 1).classify(images)


# Pictures


def trained_on(path: Path, channels: int, size: int) -> np.ndarray:
    """Read a picture as ``data`` does."""
    with Image.open(path) as picture:
        return decode(picture, str(path), size).expand(channels, -1, -1).numpy()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_without_resizing_pictures_are_those_of_training(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    found = read_image(path, card(3, 8))
    assert found.dtype == np.uint8 and np.array_equal(found, trained_on(path, 3, 8))
    if mode in ("1", "L", "LA"):
        assert np.array_equal(read_image(path, card(1, 8)), trained_on(path, 1, 8))


def test_a_colour_picture_for_a_grey_network(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    assert np.unique(read_image(path, card(1, 8))) == [76]  # ITU-R 601: 0.299 · 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    found = read_image(path, card(3, 8))
    assert np.array_equal(found, trained_on(path, 3, 8))
    assert np.array_equal(found, pixels.transpose(2, 0, 1)) == (orientation == 1)


@pytest.mark.parametrize("size", [8, 32, 224, 500])
def test_resized_pictures_are_those_of_training_to_one_level(size: int, tmp_path: Path) -> None:
    """At most one level of 255 apart, in at most one pixel of a thousand: ties round either way."""
    for number, photograph in enumerate(load_sample_images().images):
        path = tmp_path / "picture.png"
        turned = photograph.transpose(1, 0, 2) if number else photograph
        Image.fromarray(turned).save(path)
        found, expected = read_image(path, card(3, size)), trained_on(path, 3, size)
        apart = np.abs(found.astype(int) - expected)
        assert found.shape == expected.shape == (3, size, size)
        assert apart.max() <= 1 and (apart > 0).mean() <= 1e-3


def test_pictures_are_those_that_training_reads() -> None:
    assert runtime.PICTURES == SUFFIXES


def test_a_batch_is_its_pictures(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{level}.png", level) for level in (10, 20)]
    found = read_images(paths, card())
    assert found.shape == (2, 3, 8, 8) and [image.max() for image in found] == [10, 20]
    with pytest.raises(DeployError, match=r"none\.png: there is no such file"):
        read_images([*paths, tmp_path / "none.png"], card())


@pytest.mark.parametrize("content", [b"", b"no picture", "truncated", "sixteen bits"])
def test_an_unreadable_picture_is_named(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    if content == "sixteen bits":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    elif content == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:4000])
    else:
        path.write_bytes(content)
    with pytest.raises(DeployError, match=r"picture\.png: .*(cannot be read|8-bit)") as error:
        read_image(path, card())
    assert "\n" not in str(error.value)


def test_a_network_that_reads_no_pictures(tmp_path: Path) -> None:
    path = save(tmp_path / "picture.png", 0)
    model = Model(card(channels=2), lambda batch: batch)
    with pytest.raises(DeployError, match="images of 2 channels; pictures have 1 or 3"):
        list(classify_paths(model, [path]))


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a.png", "b/notes.txt", "c/d/e.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_pictures([tmp_path / "c", tmp_path, "elsewhere.xyz"])
    names = [str(path.relative_to(tmp_path)) for path in found[:-1]]
    assert names == ["c/d/e.bmp", "a.png", "b/10.jpg", "b/2.PNG", "c/d/e.bmp"]
    assert found[-1] == Path("elsewhere.xyz")
    with pytest.raises(DeployError, match=r"folder\.png: there are no pictures in it"):
        find_pictures([tmp_path / "folder.png"])


# Many pictures


@pytest.mark.parametrize("batch", [1, 2, 3, 10])
def test_answers_keep_the_order_of_pictures(batch: int, tmp_path: Path) -> None:
    levels = [0, 255, 255, None, 0, None, 255]
    for number, level in enumerate(levels):
        path = save(tmp_path / f"{number}.png", level or 0)
        if level is None:
            path.write_bytes(b"broken")
    results = list(classify_paths(brightness(), [tmp_path], batch))
    assert [result.path.name for result in results] == [f"{n}.png" for n in range(7)]
    for result, level in zip(results, levels, strict=True):
        if level is None:
            assert result.answers == () and f"{result.path}: the picture" in result.problem
        else:
            (best, high), (other, low) = result.answers
            assert (best, other) == (("b", "a") if level else ("a", "b"))
            assert high > 0.9 and high + low == pytest.approx(1) and result.problem == ""


def test_a_picture_may_be_given_twice(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.png", 0), save(tmp_path / "b.png", 255)]
    results = list(classify_paths(brightness(), [*paths, *paths, tmp_path / "no.png"]))
    assert [result.answers[0][0] for result in results[:4]] == ["a", "b", "a", "b"]
    assert "no such file" in results[4].problem


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        Result(Path("x.png"), (("b", 0.75), ("ä", 0.25))),
        Result(Path("y.png"), problem="y.png: it is broken"),
    ]
    assert runtime.print_results(results) == 1
    assert capsys.readouterr() == ("x.png\tb\t75.00%\n", "error: y.png: it is broken\n")
    assert runtime.print_results(results[:1], top=5) == 0
    assert capsys.readouterr().out == "x.png\tb\t75.00%\tä\t25.00%\n"
    assert runtime.print_results(results, as_json=True) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"path": "x.png", "answers": [{"class": "b", "probability": 0.75}]},
        {"path": "y.png", "problem": "y.png: it is broken"},
    ]
    assert err == "error: y.png: it is broken\n"


# Files


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one network in three formats, and ten digits as pictures."""
    folder = tmp_path_factory.mktemp("exported")
    of, data = digits_space("none"), digits()
    module, about = network(of, "smallest", data), card_for(of, "smallest", data)
    for name in ("onnx", "torch-export", "safetensors"):
        export(module, about, data.test.images[:2], name, folder / f"net{FORMATS[name]}")
    for number in range(10):
        pixels = data.validation.images[number, 0].numpy()
        Image.fromarray(pixels).save(folder / f"digit-{number}.png")
    return folder


@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".safetensors"])
def test_all_formats_answer_alike_at_any_batch(ending: str, exported: Path) -> None:
    model = load(exported / f"net{ending}", threads=1)
    module = network(digits_space("none"), "smallest", digits())
    images = digits().validation.images[:10]
    batch = normalise_in_training(images, digits().mean, digits().std)
    expected = torch.softmax(module(batch), 1).detach().numpy()
    for size in (1, 3, 10):
        results = list(classify_paths(model, [exported], size))
        for result, row in zip(results, expected, strict=True):
            found = [dict(result.answers)[name] for name in digits().classes]
            np.testing.assert_allclose(found, row, atol=1e-5)


def rewritten(path: Path, text: str | None, out: Path) -> Path:
    """Copy an ONNX file with another card, or none."""
    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        model.metadata_props.add(key="superfednas", value=text)
    onnx.save(model, out)
    return out


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
        (".safetensors", "supernet", "torch safetensors"),
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
        load(path)
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
        load(exported / "net.pt2", threads=threads)
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


def test_a_device_needs_two_files_and_no_torch(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    for name in ("__init__", "card", "runtime"):
        shutil.copy(ROOT / "deploy" / f"{name}.py", tmp_path / "deploy")
    absent = [
        "torch",
        "flwr",
        "safetensors",
        "typer",
        "rich",
        "onnx",
        "sklearn",
        "supernet",
        "data",
    ]
    code = (
        "import sys, runpy\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"  # None: importing them fails
        "runpy.run_module('deploy.runtime', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported / "net.onnx"), str(exported / "digit-0.png")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{exported / 'digit-0.png'}\t")
