"""The verbs after training, as typed: from a run to a file that classifies pictures."""

import json
from pathlib import Path

import pytest

from superfednas.cli.searching import _remarks
from superfednas.tasks.images import ACCURACY
from tests.cli.test_cli import superfednas

pytestmark = pytest.mark.slow


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


def files(folder: Path) -> dict[Path, bytes]:
    """Return all files under a folder with what is in them."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    before = files(home / ".superfednas")
    done = superfednas(*arguments, home=home)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert files(home / ".superfednas") == before


def test_a_device_times_its_blocks_and_a_search_uses_the_table(home: Path, tmp_path: Path) -> None:
    table = tmp_path / "device.json"
    latency = ("latency", "--batches", "2", "--networks", "3", "--holdout", "1", "--seconds", "0")
    done = superfednas(*latency, "--name", "bench", "--out", str(table), home=home)
    assert done.returncode == 0, done.stderr
    assert "unseen" in done.stdout and done.stdout.endswith(f"table: {table}\n")
    kept = table.read_bytes()
    again = superfednas(*latency, "--out", str(table), home=home)
    assert again.returncode == 1 and "exists already" in again.stderr
    assert table.read_bytes() == kept

    plan = tmp_path / "plan.json"
    search = ("search", "--score", "macs", "--latency-table", str(table), "--out", str(plan))
    done = superfednas(*search, home=home)
    assert done.returncode == 1
    assert "batch = 1: the latency table was measured for 2" in done.stderr
    assert not plan.exists()
    done = superfednas(*search, "--batch", "2", "--max-latency", "1e9", "--json", home=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["limits"] == {"latency": 1e9} and found["latency"]["name"] == "bench"
    assert found["chosen"]["costs"]["latency"] > 0


def test_the_whole_supernet_in_one_file(home: Path, tmp_path: Path) -> None:
    file, pictures = tmp_path / "all.safetensors", tmp_path / "pictures"
    done = superfednas(
        *("export", "--arch", "largest", "--format", "elastic", "--out", str(file)), home=home
    )
    assert done.returncode == 0, done.stderr
    assert f"{file.stat().st_size:,} bytes, the whole supernet" in done.stdout
    done = superfednas("pictures", "--out", str(pictures), "--count", "3", home=home)
    assert done.returncode == 0, done.stderr
    answers = {}
    for budget in ("400000", "9000000"):
        done = superfednas(
            *("classify", str(file), str(pictures), "--max-macs", budget, "--json"), home=home
        )
        assert done.returncode == 0, done.stderr
        answers[budget] = done.stdout
        assert len(done.stdout.splitlines()) == 3
    assert answers["400000"] != answers["9000000"]  # two subnets answered
    done = superfednas("classify", str(file), str(pictures), "--max-macs", "10", home=home)
    assert done.returncode == 1
    assert "no subnet of the menu keeps max_macs = 10" in done.stderr


def test_a_search_before_anything_is_trained(home: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    search = (
        *("search", "--space", "resnet-tiny", "--score", "zero-cost", "--max-params", "600000"),
        *("--out", str(plan), "--json"),
    )
    done = superfednas(*search, home=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(plan.read_text())
    assert found["chosen"]["costs"]["params"] <= 600_000 and not found["run"]
    assert found["space"]["space"] == "resnet-tiny"
    kept = plan.read_bytes()
    again = superfednas(*search, home=home)
    assert again.returncode == 1 and "nothing is overwritten" in again.stderr
    assert plan.read_bytes() == kept
    done = superfednas("test", "--plan", str(plan), home=home)
    assert done.returncode == 1 and "was not trained: there are no weights" in done.stderr


def rung(accuracy: float, macs: int) -> dict[str, float]:
    return {"accuracy": accuracy, "standard_error": 0.01, "macs": macs, "examples": 360}


@pytest.mark.parametrize(
    ("accuracy", "macs", "named"),
    [(0.95, 5, True), (0.945, 5, True), (0.93, 5, False), (0.99, 20, False)],
)
def test_a_cheaper_subnet_that_does_as_well_is_named(
    accuracy: float, macs: int, named: bool
) -> None:
    result = {"chosen": rung(0.95, 10), "ladder": {"smallest": rung(accuracy, macs)}}
    remarks = _remarks(result, ACCURACY)
    assert len(remarks) == named
    if named:
        assert all(word in remarks[0] for word in ("360", "± 1.0%", "smallest"))
