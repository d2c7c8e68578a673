"""Pictures classified: probabilities, the order of the answers, what is printed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superfednas.deploy.device.runtime.classify import (
    Result,
    classify_paths,
    print_results,
    probabilities,
)
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.model import Model
from tests.support.exports import picture_card as card


def fixed(*logits: float) -> Model:
    """Give a network that answers every picture alike."""
    names = tuple("abcdefgh"[: len(logits)])
    row = np.array(logits, np.float32)
    return Model(card(classes=names), lambda read: np.tile(row, (len(read[0]), 1)))


def brightness() -> Model:
    """Give a network that answers b for bright pictures: logits (0, mean)."""

    def network(read: Sequence[np.ndarray]) -> np.ndarray:
        mean = read[0].mean(axis=(1, 2, 3))
        return np.stack([np.zeros_like(mean), 4 * mean], axis=1)

    return Model(card(), network)


def save(path: Path, level: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), level, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


# Numbers


def test_probabilities_by_hand() -> None:
    images = {"images": np.zeros((2, 3, 8, 8), np.uint8)}
    found = probabilities(fixed(0, math.log(3)), images)
    np.testing.assert_allclose(found, [[0.25, 0.75]] * 2, rtol=1e-6)
    np.testing.assert_allclose(probabilities(fixed(1e4, 1e4), images), 0.5)


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
    assert print_results(results) == 1
    assert capsys.readouterr() == ("x.png\tb\t75.00%\n", "error: y.png: it is broken\n")
    assert print_results(results[:1], top=5) == 0
    assert capsys.readouterr().out == "x.png\tb\t75.00%\tä\t25.00%\n"
    assert print_results(results, as_json=True) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"path": "x.png", "answers": [{"class": "b", "probability": 0.75}]},
        {"path": "y.png", "problem": "y.png: it is broken"},
    ]
    assert err == "error: y.png: it is broken\n"


def test_a_network_that_reads_no_pictures(tmp_path: Path) -> None:
    path = save(tmp_path / "picture.png", 0)
    model = Model(card(channels=2), lambda read: read[0])
    with pytest.raises(DeployError, match="images of 2 channels; pictures have 1 or 3"):
        list(classify_paths(model, [path]))
