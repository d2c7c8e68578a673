"""Measured scores: kept on disk, never measured twice, and never of something else."""

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import superfednas.nas.score.measured
from superfednas.data import Dataset
from superfednas.nas.score.measured import Measured, ScoreBook, ScoreBookError
from superfednas.nas.score.tallies import calibrated, prepare, score, subnet_module
from superfednas.supernet import Architecture, SearchSpace
from superfednas.supernet.norms import StaticBatchNorm2d
from superfednas.tasks import Tally
from tests.support.pictures import accuracy, picture_set, pictured, right
from tests.support.strategies import noisy_state, norms, small_dataset, small_split, space


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def archs(count: int) -> list[Architecture]:
    return [space().parse(f"random:{seed}") for seed in range(count)]


def book(path: Path | None, weights: str = "w" * 64, data: str = "d" * 64) -> ScoreBook:
    return ScoreBook(path, weights=weights, data=data)


def filled(path: Path, count: int = 3) -> ScoreBook:
    found = book(path)
    for number, arch in enumerate(archs(count)):
        found.put(arch, right(7, number, number / 3))
    return found


def measurer(
    of: SearchSpace | None = None, data: Dataset | None = None, kept: ScoreBook | None = None
) -> Measured:
    of = of or space()
    data = data or small_dataset()
    return Measured(of, noisy_state(of), data, data.validation, book=kept)


# Scores on disk


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2**31),
            st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
            st.floats(0, 1e6),
        ),
        max_size=6,
    )
)
def test_scores_come_back(
    rows: list[tuple[int, tuple[int, int], float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("book") / "deep" / "scores.jsonl"
    first = book(path)
    assert not path.parent.exists()
    for seed, (correct, examples), loss in rows:
        first.put(space().parse(f"random:{seed}"), right(examples, correct, loss))
    again = book(path)
    assert dict(again.items()) == dict(first.items())
    assert list(again.items()) == list(first.items())
    assert len(again) == len(first) and path.exists() == bool(rows)
    for arch, found in first.items():
        assert arch in again and again[arch] == found
    assert (space().largest in again) == (space().largest in first)
    if rows:
        opened = ScoreBook.open(path)
        assert (opened.weights, opened.data) == ("w" * 64, "d" * 64)
        assert dict(opened.items()) == dict(first.items())


def test_a_book_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    filled(path, 2)
    again = book(path)
    again.put(archs(3)[2], right(7, 5, 0.5))
    assert [arch for arch, _ in book(path).items()] == archs(3)
    assert len(path.read_text().splitlines()) == 1 + 3


def test_a_book_in_memory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = book(None)
    kept.put(space().smallest, right(2, 1, 0.5))
    assert accuracy(kept[space().smallest]) == 0.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "scores.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-cut])
    torn = book(path)
    assert [arch for arch, _ in torn.items()] == archs(2)
    torn.put(archs(3)[2], right(7, 4, 0.25))
    again = book(path)
    assert [arch for arch, _ in again.items()] == archs(3)
    assert again[archs(3)[2]] == right(7, 4, 0.25)


def test_a_kill_at_any_byte_of_the_first_lines(tmp_path: Path) -> None:
    """What is left is gone on with, or refused by name; no later score is lost."""
    path = tmp_path / "scores.jsonl"
    filled(path, 1)
    content = path.read_bytes()
    header = content.index(b"\n")
    for kept in range(1, header):
        path.write_bytes(content[:kept])
        with pytest.raises(ScoreBookError) as caught:
            book(path)
        assert str(path) in str(caught.value)
    for kept in (0, *range(header, len(content) + 1)):
        path.write_bytes(content[:kept])
        torn = book(path)
        assert len(torn) == (kept == len(content))
        torn.put(space().largest, right(2, 1, 1.0))
        assert space().largest in book(path)


def spoil(path: Path, line: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")


GOOD_ROW = {"correct": 1, "loss": 0.5, "examples": 2}


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[]",
        "3",
        "null",
        json.dumps(GOOD_ROW),
        json.dumps(GOOD_ROW | {"architecture": {"depth": [1]}}),
        json.dumps(GOOD_ROW | {"architecture": "largest"}),
        json.dumps({"architecture": json.loads(space().largest.to_json())}),
        json.dumps(
            GOOD_ROW | {"architecture": json.loads(space().largest.to_json()), "examples": 0}
        ),
        json.dumps(
            GOOD_ROW | {"architecture": json.loads(space().largest.to_json()), "correct": "all"}
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "scores.jsonl"
    filled(path)
    spoil(path, 2, row)
    with pytest.raises(ScoreBookError, match="line 3") as caught:
        book(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("sums", [{"loss": 1.0}, {"accuracy": 9.0, "loss": 1.0}, {}, [1.0], 7])
def test_so_is_one_that_the_task_cannot_be_read_from(tmp_path: Path, sums: object) -> None:
    path = tmp_path / "scores.jsonl"
    filled(path)
    arch = json.loads(space().largest.to_json())
    spoil(path, 2, json.dumps({"architecture": arch, "examples": 2, "sums": sums}))
    with pytest.raises(ScoreBookError, match="line 3"):
        ScoreBook.open(path, space().task.metrics)


@pytest.mark.parametrize("rows", [1, 200])
def test_bytes_that_are_no_text_are_damage(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "scores.jsonl"
    filled(path, rows)
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(ScoreBookError) as caught:
        book(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"accuracy,arch\n.9,1\n",
        b"\x89PNG\r\n\x1a\n",
        b"[]\n",
        b"7\n",
        b'"text"\n',
        b'{"format": 3, "weights": "w", "data": "d"}\n',
        b'{"format": 1, "weights": "w"}\n',
        b'{"format": 1, "weights": 5, "data": null}\n',
        b'{"weights": "w", "data": "d"}\n',
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    for read in (lambda: book(path), lambda: ScoreBook.open(path)):
        with pytest.raises(ScoreBookError, match="holds no scores of") as caught:
            read()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_folder_and_a_missing_file_are_no_scores(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(ScoreBookError, match="holds no scores of this project"):
            ScoreBook.open(path)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"weights": "x" * 64}, "scores of another supernet"), ({"data": "x" * 64}, "other images")],
)
def test_scores_of_something_else_are_refused(
    tmp_path: Path, other: dict[str, str], said: str
) -> None:
    path = tmp_path / "scores.jsonl"
    filled(path)
    before = path.read_bytes()
    with pytest.raises(ScoreBookError, match=said) as caught:
        book(path, **other)
    assert str(path) in str(caught.value) and "xxxxxxxxxxxx)" in str(caught.value)
    assert path.read_bytes() == before


# Measuring


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Note every module that is scored."""
    seen: list[nn.Module] = []

    def noting(module: nn.Module, *args: Any, **kwargs: Any) -> Tally:
        seen.append(module)
        return score(module, *args, **kwargs)

    monkeypatch.setattr(superfednas.nas.score.measured, "score", noting)
    return seen


def test_nothing_is_measured_twice(tmp_path: Path, runs: list[nn.Module]) -> None:
    path = tmp_path / "scores.jsonl"
    wanted = archs(4)
    said: list[tuple[int, int]] = []
    first = measurer(kept=book(path))
    found = first.measure([*wanted[:3], wanted[0]], lambda done, todo: said.append((done, todo)))
    assert len(runs) == 3 and said == [(1, 3), (2, 3), (3, 3)]
    assert len(found) == 4 and found[3] == found[0]
    assert first.measure(wanted[:3]) == found[:3] and len(runs) == 3

    said.clear()
    again = measurer(kept=book(path))
    assert again.measure(wanted[::-1], lambda *n: said.append(n))[1:] == found[2::-1]
    assert len(runs) == 4 and said == [(1, 1)]
    assert again.measure([]) == []


def test_an_interrupted_measurement_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[nn.Module]
) -> None:
    path = tmp_path / "scores.jsonl"

    def stop(done: int, todo: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measurer(kept=book(path)).measure(archs(4), stop)
    assert len(runs) == 2
    found = measurer(kept=book(path)).measure(archs(4))
    assert len(runs) == 4
    assert found == measurer().measure(archs(4))


@settings(max_examples=12, deadline=None)
@given(norm=norms, seed=st.integers(0, 1000))
def test_measured_is_the_score_of_the_subnet(norm: str, seed: int) -> None:
    of, data = space(norm=norm), small_dataset(train=20, validation=11)
    arch = of.parse(f"random:{seed}")
    module = subnet_module(of, noisy_state(of), arch)
    expected = score(module, data, data.validation)
    measured = measurer(of, data)
    assert measured.measure([arch]) == [expected]
    assert list(measured([arch, arch])) == [accuracy(expected)] * 2
    assert measured.name == "measured" and measured([]).shape == (0,)


def test_static_batch_norm_is_calibrated_on_training_images() -> None:
    of, data = space(norm="batch"), small_dataset(train=20)
    other = replace(data, train=small_split(20, 9))
    assert measurer(of, data).measure([of.largest]) != measurer(of, other).measure([of.largest])
    group = space(norm="group")
    assert measurer(group, data).measure([group.largest]) == measurer(group, other).measure(
        [group.largest]
    )


def test_an_empty_split_is_refused() -> None:
    data = small_dataset(validation=0)
    with pytest.raises(ValueError, match="validation split of 'small' has no examples: set valid"):
        measurer(data=data)


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_the_supernet_is_only_read(norm: str) -> None:
    of, data = space(norm=norm), small_dataset()
    state = noisy_state(of)
    before = {name: tensor.clone() for name, tensor in state.items()}
    storage = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    Measured(of, state, data, data.validation).measure([of.largest, of.smallest])
    module = calibrated(of, state, of.largest, data)
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.untyped_storage().data_ptr() not in storage
            parameter.zero_()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in state.values())


@pytest.fixture
def _only_new_objects() -> Iterator[None]:
    """Let the collector look at nothing that was there before the test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.usefixtures("_only_new_objects")
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_no_module_outlives_its_measurement(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, data = space(norm=norm), small_dataset(train=20)
    measured = measurer(of, data)
    modules: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def noting(*args: Any) -> nn.Module:
        module = subnet_module(*args)
        modules.append(weakref.ref(module))
        return module

    def count(done: int, todo: int) -> None:
        gc.collect()
        alive.append(sum(module() is not None for module in modules))

    monkeypatch.setattr(superfednas.nas.score.measured, "subnet_module", noting)
    measured.measure([of.largest])  # whatever torch keeps for good
    before = tensors_alive()
    measured.measure([of.parse(f"random:{seed}") for seed in range(6)], count)
    assert max(alive) <= 1  # the one at hand
    assert tensors_alive() <= before
    assert len(modules) == 7 and not any(module() for module in modules)


@pytest.mark.usefixtures("_only_new_objects")
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_calibrated_subnet_leaves_nothing_behind(norm: str) -> None:
    of, data = space(norm=norm), small_dataset(train=20)
    state = noisy_state(of)

    def run(arch: Architecture) -> torch.Tensor:
        module = calibrated(of, state, arch, data)
        assert not module.training
        with torch.inference_mode():
            logits: torch.Tensor = module(torch.zeros(1, 1, 8, 8))
        return logits

    first = run(of.largest)
    before = tensors_alive()
    for seed in range(5):
        run(of.parse(f"random:{seed}"))
    assert tensors_alive() <= before
    assert torch.equal(run(of.largest), first)  # no call changes another


def test_calibration_without_images_is_refused() -> None:
    of = space(norm="batch")
    with pytest.raises(ValueError, match="static batch norm needs training examples"):
        calibrated(of, noisy_state(of), of.smallest)
    group = space(norm="group")
    assert calibrated(group, noisy_state(group), group.smallest)


def test_scores_are_of_the_images_given() -> None:
    of, data = space(), small_dataset(validation=30)
    part = data.validation.take(np.arange(9))
    found = Measured(of, noisy_state(of), data, part).measure([of.largest])[0]
    assert found.examples == 9
    assert part.digest() != data.validation.digest()


def test_calibration_sees_the_whole_file() -> None:
    """Files are often sorted by class: the first images alone would be one class."""
    dark = torch.zeros(3_000, 1, 8, 8, dtype=torch.uint8)
    both = torch.cat([dark, dark + 255])
    images = pictured(both, torch.zeros(len(both), dtype=torch.int64))
    none = images.first(0)
    norm = StaticBatchNorm2d(8)
    conv = nn.Conv2d(1, 8, 1, bias=False)
    nn.init.ones_(conv.weight)
    prepare(nn.Sequential(conv, norm), picture_set("s", images, none, none, ("a",), (0.0,), (1.0,)))
    assert norm.mean is not None
    assert torch.allclose(norm.mean, torch.full((8,), 0.5), atol=1e-3)
