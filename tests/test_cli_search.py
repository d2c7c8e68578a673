"""The verbs after training, as typed: from a run to a file that classifies pictures."""

import json
from pathlib import Path

import pytest

from tests.test_cli import superfednas


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home folder whose newest run is a trained one."""
    home = tmp_path_factory.mktemp("home")
    done = superfednas(
        *("train", "--rounds", "2", "--clients", "3", "--clients-per-round", "3"),
        *("--local-steps", "4", "--json"),
        home=home,
    )
    assert done.returncode == 0, done.stderr
    return home


def test_from_a_run_to_a_running_file(home: Path, tmp_path: Path) -> None:
    """The README's lines, in their order; nothing names the run or the plan."""
    onnx, pictures = tmp_path / "digits.onnx", tmp_path / "pictures"
    done = superfednas(
        *("search", "--max-macs", "1000000", "--subnets", "10", "--refine", "1", "--json"),
        home=home,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["exact"] and plan["chosen"]["costs"]["macs"] <= 1e6

    first = superfednas("test", "--json", home=home)
    assert first.returncode == 0, first.stderr
    again = superfednas("test", home=home)
    assert "not read again" in again.stdout
    tested = json.loads(first.stdout)
    assert tested["chosen"]["examples"] == 360 and not tested["again"]

    done = superfednas("export", "--out", str(onnx), home=home)
    assert done.returncode == 0, done.stderr
    assert f"{onnx.stat().st_size:,} bytes" in done.stdout
    done = superfednas("pictures", "--out", str(pictures), "--count", "4", home=home)
    assert done.returncode == 0 and len(list(pictures.glob("*.png"))) == 4
    done = superfednas("classify", str(onnx), str(pictures), "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


WRONG = [
    (("search", "--max-macs", "10"), "the least possible is max-macs = 339,840 (asked: 10)"),
    (("search", "--score", "luck"), "score = 'luck': must be one of regression, measured"),
    (("search", "--scores", "nodes"), "the nodes have not scored yet"),
    (("search", "--scores", "none.jsonl"), "does not exist"),
    (("search", "--space", "resnet-tiny", "--score", "regression"), "needs a trained supernet"),
    (("test", "--plan", "none.json"), "there is no such file"),
    (("export", "--arch", "largest", "--format", "tflite"), "executorch, safetensors, elastic"),
    (("export", "--arch", "largest", "--format", "elastic", "--out", "x.pt"), ".safetensors"),
    (("classify", "x.onnx", "pictures", "--max-macs", "5"), "need an elastic file"),
    (("latency", "--batches", "many"), "must be whole numbers, as in 1,16"),
    (("latency", "--space", "nowhere"), "must be one of"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_one_sentence_for_what_is_wrong(
    arguments: tuple[str, ...], sentence: str, home: Path
) -> None:
    before = sorted(home.rglob("*"))
    done = superfednas(*arguments, home=home)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    kept = [path for path in before if "scores" not in path.parts]
    assert set(kept) <= set(home.rglob("*"))
