"""Trust in modules: refused before they run, remembered by digest, asked for again when changed."""

import importlib._bootstrap_external as compiled
import json
import py_compile
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superfednas.common import imports, trust
from superfednas.common.imports import NotImportableError, import_from, import_object
from superfednas.common.trust import (
    IMPORTED,
    UntrustedCodeError,
    check_code,
    give,
    references,
    remember,
    source_digest,
    source_files,
    trust_folder,
    trusting,
)
from superfednas.records.refusals import Refusal, code_of

pytestmark = pytest.mark.attack

NAMES = st.text("ab.:", max_size=8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a current folder with `evil.py`, which leaves a mark, in a process that trusts none."""
    monkeypatch.setattr(trust, "_given", set())
    monkeypatch.setattr(trust, "_folders", [])
    monkeypatch.setattr(trust, "_FILE", tmp_path / "home" / "trusted.json")
    monkeypatch.setattr(imports, "_COMPILED", tmp_path / "home" / "compiled")
    monkeypatch.setattr(imports, "_here", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    here = tmp_path / "here"
    here.mkdir()
    (here / "evil.py").write_text("open(__file__ + '.mark', 'w').close()\nclass Space: ...\n")
    (here / "evil_package").mkdir()
    (here / "evil_package" / "__init__.py").write_text("open(__file__ + '.mark', 'w').close()\n")
    (here / "evil_package" / "inner.py").write_text("class Space: ...\n")
    import_from(here)
    yield here
    for name in ("evil", "evil_package", "evil_package.inner"):
        sys.modules.pop(name, None)


def marks(folder: Path) -> list[Path]:
    return list(folder.rglob("*.mark"))


@pytest.mark.parametrize("name", ["evil:Space", "evil_package:Space", "evil_package.inner:Space"])
@pytest.mark.parametrize("key", IMPORTED)
def test_what_a_file_names_is_refused_by_name_before_it_runs(
    folder: Path, key: str, name: str
) -> None:
    with pytest.raises(UntrustedCodeError) as refused:
        check_code({key: name}, "run.json")
    assert code_of(refused.value) == Refusal.UNTRUSTED_CODE
    runs = str(source_files(name.partition(":")[0])[-1])
    assert all(part in str(refused.value) for part in ("run.json", name, runs, "--trust-code"))
    assert not marks(folder)
    check_code({key: name}, "run.json", trust_code=True)
    assert not marks(folder)  # trusted, not imported


@given(values=st.dictionaries(st.sampled_from(["space", "task", "method", "lr"]), NAMES))
def test_references_are_all_that_import_would_take(values: dict[str, str]) -> None:
    expected = {text for key, text in values.items() if key != "lr" and ":" in text}
    assert set(references(values)) == expected


@pytest.mark.parametrize("data", ["hf:mnist", "a:b.npz", "digits", ""])
def test_data_sets_that_are_no_code_are_not_asked_about(data: str) -> None:
    check_code({"dataset": data, "space": "resnet-tiny", "task": "images"}, "run.json")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(versions=st.lists(st.binary(max_size=20), min_size=1, max_size=4))
def test_a_digest_is_trusted_and_no_other(folder: Path, versions: list[bytes]) -> None:
    trust._FILE.unlink(missing_ok=True)
    source = folder / "own.py"
    source.write_bytes(versions[0])
    remember(["own:Space"])
    for version in versions:
        source.write_bytes(version)
        trust._given.clear()  # another process
        if version == versions[0]:
            check_code({"space": "own:Other"}, "run.json")
        else:
            with pytest.raises(UntrustedCodeError):
                check_code({"space": "own:Space"}, "run.json")
    assert json.loads(trust._FILE.read_text()).keys() == {"own"}


def test_a_changed_package_is_asked_for_again(folder: Path) -> None:
    before = source_digest("evil_package.inner")
    assert [file.name for file in source_files("evil_package.inner")] == ["__init__.py", "inner.py"]
    (folder / "evil_package" / "__init__.py").write_text("")
    assert source_digest("evil_package.inner") != before
    assert not source_digest("evil_package.none") and not source_digest("evil.inner")
    assert not marks(folder)


def test_what_was_given_in_this_process_needs_no_further_word(folder: Path) -> None:
    give(["evil:Space", 3, "plain"])
    check_code({"space": "evil:Space"}, "run.json")
    with pytest.raises(UntrustedCodeError):
        check_code({"space": "evil:Other"}, "run.json")


def test_trust_ends_with_its_block_where_nothing_can_be_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trusting():
        check_code({"space": "evil:Space"}, "run.json")
    trust._given.clear()
    check_code({"space": "evil:Space"}, "run.json")  # remembered
    trust._FILE.write_text('{"evil": 3}')
    with trusting(False), pytest.raises(UntrustedCodeError):
        check_code({"space": "evil:Space"}, "run.json")


def test_the_current_folder_comes_last_and_only_for_a_module_that_lies_there_alone(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "json.py").write_text((folder / "evil.py").read_text())
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "evil").mkdir(parents=True)  # a folder of that name is no module
    (elsewhere / "own.py").write_text("Space = 'own'\n")
    sys.path.append(str(elsewhere))
    before = sys.path.copy()
    assert source_files("json") != [folder / "json.py"]
    for name in ("json:Missing", "own:Missing", "no_such:Space", ":Space", "own:", "__main__:No"):
        with pytest.raises(NotImportableError):
            import_object(name, "space")
    assert sys.path == before
    with pytest.raises(NotImportableError, match="evil:Missing"):
        import_object("evil:Missing", "space")
    assert sys.path == [*before, str(folder)]
    del sys.modules["own"]


@pytest.mark.parametrize("name", ["evil", "evil_package.inner"])
def test_the_same_module_in_another_folder_is_asked_for(
    folder: Path, tmp_path: Path, name: str
) -> None:
    remember([f"{name}:Space"])
    trust._given.clear()
    check_code({"space": f"{name}:Space"}, "run.json")
    away = tmp_path / "away"  # where what it imports may be another's
    shutil.copytree(folder, away)
    import_from(away)
    with pytest.raises(UntrustedCodeError, match="away"):
        check_code({"space": f"{name}:Space"}, "run.json")
    # Nor does a file of trust that came with it count.
    shutil.copy(trust._FILE, away)
    with pytest.raises(UntrustedCodeError):
        check_code({"space": f"{name}:Space"}, "run.json")


@pytest.mark.parametrize("name", ["no_such:Space", "evil.inner:Space", "evil_package.none:Space"])
def test_a_module_that_is_not_here_is_not_asked_for(folder: Path, name: str) -> None:
    with pytest.raises(NotImportableError, match=f"{name}.*current folder"):
        check_code({"space": name}, "run.json")
    for there in ("sys:Space", "os:Space", "__main__:Space", "superfednas.cli:Space"):
        with pytest.raises(UntrustedCodeError):
            check_code({"space": there}, "run.json")
    assert not marks(folder)


def test_the_app_that_a_process_runs_has_its_modules_trusted(folder: Path) -> None:
    downloaded = folder / "runs" / "evil.py"
    downloaded.parent.mkdir()
    downloaded.write_text((folder / "evil.py").read_text())
    trust_folder(folder)
    check_code({"space": "evil:Space", "task": "evil_package.inner:Task"}, "run.json")
    for name in ("runs.evil:Space", "os:system", "json:loads"):
        with pytest.raises(UntrustedCodeError):
            check_code({"space": name}, "run.json")
    assert not marks(folder)


def test_compiled_code_that_lies_beside_a_trusted_source_does_not_run(folder: Path) -> None:
    source = folder / "own.py"
    source.write_text("open(__file__ + '.mark', 'w').close()\nSpace = 'other'\n")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH  # never compared with the source
    py_compile.compile(str(source), invalidation_mode=unchecked)
    assert Path(compiled.cache_from_source(str(source))).exists()
    source.write_text("Space = 'own'\n")
    remember(["own:Space"])
    assert import_object("own:Space", "space") == "own"
    assert not marks(folder)
    del sys.modules["own"]
