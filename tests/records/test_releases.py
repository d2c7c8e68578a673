"""Names that an operator releases: the file, whatever it holds, and the verb that adds to it."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superfednas import cli
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.index import FINISHED
from superfednas.records.releases import RELEASES, release, released
from superfednas.records.start import barely_begun


def test_names_come_back_in_order_whoever_adds_them(tmp_path: Path) -> None:
    assert released(tmp_path) == []
    names = [f"kitchen {n} é" for n in range(40)]
    threads = [threading.Thread(target=release, args=(tmp_path, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(released(tmp_path)) == sorted(names)
    release(tmp_path, "last")
    assert released(tmp_path)[-1] == "last"


@given(
    before=st.lists(st.sampled_from("abc"), max_size=3),
    damage=st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" ")),
    after=st.lists(st.sampled_from("abc"), max_size=3),
)
def test_a_damaged_line_counts_and_releases_nothing_else(
    before: list[str], damage: bytes, after: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run remembers how many lines it has obeyed."""
    folder = tmp_path_factory.mktemp("run")
    for name in before:
        release(folder, name)
    with (folder / RELEASES).open("ab") as file:
        file.write(damage + b"\n")
    for name in after:
        release(folder, name)
    found = released(folder)
    assert (found[: len(before)], found[len(before) + 1 :]) == (before, after)


def test_a_line_that_is_being_written_does_not_count_yet(tmp_path: Path) -> None:
    release(tmp_path, "kitchen")
    whole = (tmp_path / RELEASES).read_bytes()
    for cut in range(len(whole)):
        (tmp_path / RELEASES).write_bytes(whole + whole[:cut])
        assert released(tmp_path) == ["kitchen"]


# The verb


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(str(tmp_path / "run"), {"seed": 0}, "resnet-tiny")
    made.log({"event": "joined", "client": "kitchen"})
    return made


def test_the_verb_releases_a_name_that_a_node_has_said(run: RunFolder, capsys) -> None:
    cli.app(["release", str(run.path), "kitchen", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == {"run": str(run.path), "released": "kitchen"}
    cli.app(["release", str(run.path), "kitchen"], standalone_mode=False)
    assert released(run.path) == ["kitchen"] * 2
    assert barely_begun(run.path)  # it can still begin anew


@pytest.mark.parametrize("name", ["kitchn", "", "\x1b[2J"])
def test_the_verb_refuses_a_name_that_no_node_has_said(run: RunFolder, name: str) -> None:
    with pytest.raises(RunFolderError, match="kitchen"):
        cli.app(["release", str(run.path), name], standalone_mode=False)
    assert not (run.path / RELEASES).exists()


def test_a_finished_run_has_no_names_to_release(run: RunFolder) -> None:
    run.info["status"] = FINISHED
    run.save_info()
    with pytest.raises(RunFolderError):
        cli.app(["release", str(run.path), "kitchen"], standalone_mode=False)
    assert not (run.path / RELEASES).exists()
