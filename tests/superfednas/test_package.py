"""The one name: what is imported, installed and bundled is ``superfednas`` and nothing else."""

import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

import superfednas.app
from superfednas.wire.source import ROOMS as FINGERPRINTED
from superfednas.wire.source import source_fingerprint
from tests.support.processes import ROOT, environment

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"superfednas", "tests"}
DECOYS = ("server", "client", "data", "report", "cli")
# Where a room lies, and the code's fingerprint, as an interpreter sees them.
WHERE = (
    "import json, sys, superfednas, superfednas.server; "
    "from superfednas.wire.source import source_fingerprint; "
    "print(json.dumps([superfednas.__file__, superfednas.server.__file__, source_fingerprint(), "
    "[name for name in sys.modules if name.startswith('superfednas.superfednas')]]))"
)


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """Return a folder of packages with the rooms' names that fail when they are imported."""
    for name in DECOYS:
        (tmp_path / "decoys" / name).mkdir(parents=True)
        (tmp_path / "decoys" / name / "__init__.py").write_text("raise RuntimeError('a decoy')\n")
    return tmp_path / "decoys"


def python(code: str, cwd: Path, *path: Path) -> str:
    env = environment(cwd) | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def where(cwd: Path, *path: Path) -> tuple[Path, Path, str, list[str]]:
    package, room, fingerprint, twice = json.loads(python(WHERE, cwd, *path))
    return Path(package), Path(room), fingerprint, twice


def test_a_wheel_is_one_package_that_neighbours_do_not_disturb(
    tmp_path: Path, decoys: Path
) -> None:
    code = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    wheel, site = tmp_path / built.stdout.split()[-1], tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={site}", str(wheel)],
        check=True,
    )
    packages = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert packages - {"bin"} == {"superfednas"}
    assert {path.name for path in (site / "superfednas").iterdir()} >= ROOMS
    package, room, fingerprint, twice = where(tmp_path, decoys, site)
    assert package == site / "superfednas" / "__init__.py"
    assert room == site / "superfednas" / "server" / "__init__.py"
    assert fingerprint == source_fingerprint()
    assert not twice


def test_an_editable_install_copies_nothing_and_hides_the_bare_names(
    tmp_path: Path, decoys: Path
) -> None:
    (folder,) = PYPROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]
    assert [path.name for path in (ROOT / folder).iterdir()] == ["superfednas"]
    package, room, fingerprint, twice = where(tmp_path, decoys, ROOT / folder)
    assert package.resolve() == ROOT / "superfednas" / "__init__.py"
    assert room == ROOT / "server" / "__init__.py"
    assert fingerprint == source_fingerprint()
    assert not twice
    code = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    assert python(code % (sorted(ROOMS),), tmp_path, ROOT / folder) == "[]"


def bundle(folder: Path) -> Path:
    """Unpack what Flower sends of this project to its nodes."""
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("bundled", [False, True])
def test_a_checkout_or_bundle_finds_the_rooms_beside_the_package(
    bundled: bool, tmp_path: Path, decoys: Path
) -> None:
    root = bundle(tmp_path / "bundle") if bundled else ROOT
    package, room, fingerprint, twice = where(tmp_path, decoys, root)
    assert package == root / "superfednas" / "__init__.py"
    assert room == root / "server" / "__init__.py"
    assert fingerprint == source_fingerprint()
    assert not twice


def test_the_fingerprint_is_of_rooms_that_are_there() -> None:
    assert set(FINGERPRINTED) <= ROOMS and len(set(FINGERPRINTED)) == len(FINGERPRINTED)


def test_every_list_of_rooms_names_the_folders_that_are_there() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) == {*ROOMS, "superfednas"}
    assert wheel["sources"] == {room: f"superfednas/{room}" for room in ROOMS}
    banned = PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) == {*ROOMS, "superfednas.superfednas"}
    checked = PYPROJECT["tool"]["mypy"]["packages"]
    assert set(checked) == {"superfednas", *(f"superfednas.{room}" for room in ROOMS)}
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {*ROOMS, "superfednas"} <= {line[1:] for line in ignored if line.startswith("!")}


def test_the_handlers_that_ray_rebuilds_are_found_by_the_apps_name() -> None:
    for handler in (superfednas.app.query, superfednas.app.train, superfednas.app.evaluate):
        assert handler.__module__ == "superfednas.app"


def test_importing_the_package_loads_neither_torch_nor_flower(tmp_path: Path) -> None:
    code = "import sys, superfednas; print(sorted({'torch', 'flwr', 'ray'} & set(sys.modules)))"
    assert python(code, tmp_path, ROOT) == "[]"


@pytest.mark.slow
def test_one_process_needs_no_ray(tmp_path: Path) -> None:
    code = "import sys, superfednas.api; print('ray' in sys.modules)"
    assert python(code, tmp_path, ROOT) == "False"
