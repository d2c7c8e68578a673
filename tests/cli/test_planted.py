"""Files planted in the current folder: no verb runs them, in real processes."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.processes import BIN, ROOT, environment

pytestmark = [pytest.mark.processes, pytest.mark.attack]

PLANTED = (
    *("json", "torch", "typing", "rich", "numpy", "flwr", "tomllib", "executorch", "superexec"),
    *("sitecustomize", "usercustomize", "onnxruntime", "PIL", "safetensors", "psutil", "ray"),
    # The rooms of this project, which once were packages of their own.
    *("cli", "client", "common", "deploy", "flower", "nas", "server", "wire"),
)
# What Python itself imports for -m, before anything of ours: only the script and -P keep it away.
PLANTED_FIRST = ("contextlib", "threading", "types", "warnings", "superfednas")
MARK = "open(__file__ + '.mark', 'w').close()\n"
SCRIPT = [str(BIN / "superfednas")]
MODULE = [sys.executable, "-m", "superfednas.cli"]
SAFE = [sys.executable, "-P", "-m", "superfednas.cli"]
WAYS = (
    pytest.param(SCRIPT, id="script"),
    pytest.param(MODULE, id="module"),
    pytest.param(SAFE, id="safe", marks=pytest.mark.slow),
)
VERBS = (
    ["doctor"],
    ["keys", "credentials", "--host", "localhost", "--node", "kitchen"],
    ["node", "--insecure", "--superlink", "127.0.0.1:1", "--node-config", "colour=3"],
    ["search", "--run", "run"],
    ["methods"],
    ["run", "--run-dir", "/nowhere", "--superlink", "127.0.0.1:1", "--patience", "1"],
    ["classify", "model.onnx"],
)
MLP = re.search(
    r"<!-- file: my_space.py -->\n```python\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.S
)


def called(
    command: Sequence[str], folder: Path, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    env = environment(home or folder.parent, PYTHONPATH=str(ROOT))
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )


def plant(folder: Path, names: Sequence[str]) -> Path:
    """Make a folder with these modules, each as a file or, every other, as a package."""
    folder.mkdir()
    for number, name in enumerate(names):
        file = folder / name / "__init__.py" if number % 2 else folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(MARK)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_planted_module_is_not_run(tmp_path: Path, way: list[str], verb: list[str]) -> None:
    folder = plant(tmp_path / "here", PLANTED if way == MODULE else PLANTED + PLANTED_FIRST)
    (folder / "run").mkdir()
    done = called([*way, *verb], folder)
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr
    assert not list(folder.rglob("*.mark"))


@pytest.mark.parametrize(
    "module",
    [
        "superfednas.deploy.doctor.main",
        "superfednas.bench.simulated",
        "superfednas.deploy.fleet.pipeline",
        "superfednas.deploy.device.runtime",
    ],
)
def test_nor_by_the_other_programs(tmp_path: Path, module: str) -> None:
    folder = plant(tmp_path / "here", PLANTED)
    called([sys.executable, "-m", module], folder)
    assert not list(folder.rglob("*.mark"))


def test_nor_by_a_device_that_has_the_runtime_alone(tmp_path: Path) -> None:
    folder = plant(tmp_path / "here", PLANTED)
    shutil.copytree(ROOT / "deploy" / "device" / "runtime", folder / "runtime")
    (folder / "model.onnx").touch()
    env = environment(tmp_path, PYTHONPATH="")
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "model.onnx"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: model.onnx"), done.stderr
    assert not list(folder.rglob("*.mark"))


def test_nor_by_a_worker_of_ray(tmp_path: Path) -> None:
    folder = plant(tmp_path / "here", PLANTED)
    as_ray_starts_it = (
        "import os, sys; sys.path.remove(''); import flwr.clientapp, flwr.serverapp\n"
        "sys.path.insert(0, os.getcwd()); sys.argv[0] = '/ray/default_worker.py'\n"
        "import superfednas.app, torch, superfednas.server.app; print(sys.path[-1])"
    )
    done = called([sys.executable, "-c", as_ray_starts_it], folder)
    assert done.stdout.strip() == str(folder), done.stderr
    assert not list(folder.rglob("*.mark"))


def test_own_modules_are_asked_for_once_and_again_when_they_change(tmp_path: Path) -> None:
    folder, stranger = tmp_path / "here", tmp_path / "stranger"
    folder.mkdir()
    stranger.mkdir()
    assert MLP is not None
    (folder / "my_space.py").write_text(MLP[1] + MARK)
    mark = folder / "my_space.py.mark"
    small = ["--rounds", "1", "--clients", "2", "--clients-per-round", "1", "--local-steps", "1"]
    own = ["--space", "my_space:MLPSpace", "--norm", "none", "--run-dir", "run"]
    done = called([*SCRIPT, "train", *small, *own], folder)
    assert done.returncode == 0, done.stderr
    mark.unlink()
    search = [*SCRIPT, "search", "--score", "macs", "--run", "run"]

    done = called(search, folder)  # who has trained it has trusted it
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    mark.unlink()

    done = called(search, folder, stranger)
    assert done.returncode == 1
    assert "my_space:MLPSpace" in done.stderr and "--trust-code" in done.stderr
    assert done.stderr.count("\n") == 1 and not mark.exists()
    assert called([*search, "--trust-code"], folder, stranger).returncode == 0
    assert called(search, folder, stranger).returncode == 0
    assert json.loads((stranger / ".superfednas/trusted.json").read_text()).keys() == {"my_space"}
    mark.unlink()

    (folder / "my_space.py").write_text(MLP[1] + MARK + "\n")
    done = called(search, folder)
    assert done.returncode == 1 and not mark.exists()

    away = tmp_path / "away"  # another module of that name
    shutil.copytree(folder / "run", away / "run")
    (away / "my_space.py").write_text(MARK)
    done = called(search, away)
    assert done.returncode == 1 and not list(away.glob("*.mark"))
