"""Damaged files: every verb that reads one answers with one sentence, or as if nothing were."""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import superfednas
from superfednas import cli
from superfednas.nas.cost.latency import BatchTable, LatencyTable, Network, Timing, space_options
from superfednas.nas.pipeline import Request
from superfednas.records.trained import Trained
from tests.support.damage import damaged
from tests.support.hostile import assert_harmless

pytestmark = [pytest.mark.slow, pytest.mark.attack]

RUN = ("run.json", "supernet.safetensors")
# A verb's arguments ({}: the folder), and the files that it reads.
VERBS = {
    "search": ("search --run {}/run --score macs --max-macs 1e6 --out {}/new.json", RUN),
    "search kept": (
        "search --run {}/run --scores kept --max-macs 1e6 --out {}/new.json",
        (*RUN, "scores/*.jsonl"),
    ),
    "search latency": (
        "search --run {}/run --score macs --latency-table {}/table.json --max-latency 1e9 "
        "--out {}/new.json",
        ("../table.json",),
    ),
    "test": ("test --run {}/run", (*RUN, "plans/plan-001.json")),
    "test again": (
        "test --run {}/run --plan {}/run/plans/plan-002.json",
        ("plans/plan-002.json", "plans/plan-002.test.json"),
    ),
    "evaluate": ("evaluate --run {}/run --arch smallest", (*RUN, "scores/*.jsonl")),
    "export": (
        "export --run {}/run --plan {}/run/plans/plan-001.json --format safetensors "
        "--out {}/new.safetensors",
        (*RUN, "plans/plan-001.json"),
    ),
    "export elastic": (
        "export --run {}/run --plan {}/run/plans/plan-001.json --format elastic "
        "--out {}/new.safetensors",
        ("run.json", "plans/plan-001.json"),
    ),
    "export personal": (
        "export --state-dir {}/state/0 --format safetensors --out {}/new.safetensors",
        ("../state/0/personal/*/*.safetensors",),
    ),
    "report": (
        "report --run {}/run",
        (
            *("run.json", "metrics.jsonl", "personal/personal-001.json"),
            *("plans/plan-002.json", "plans/plan-002.test.json"),
        ),
    ),
    "compare": ("compare {}/run", ("run.json", "metrics.jsonl")),
    "score": ("score --run {}/run --subnets 8", RUN),
    "personalise": ("personalise --run {}/run --subnets 1 --epochs 1", RUN),
    "classify onnx": ("classify {}/subnet.onnx {}/picture.png", ("../subnet.onnx",)),
    "classify": ("classify {}/subnet.safetensors {}/picture.png", ("../subnet.safetensors",)),
    "classify elastic": (
        "classify {}/elastic.safetensors {}/picture.png --max-macs 1e6",
        ("../elastic.safetensors",),
    ),
    "doctor": ("doctor --run {}/run", ("run.json", "metrics.jsonl", "log.jsonl")),
    "doctor log": ("doctor --log {}/run/log.jsonl", ("log.jsonl",)),
    "resume": (
        "train --resume {}/cut",
        ("../cut/run.json", "../cut/metrics.jsonl", "../cut/checkpoints/round-000002.safetensors"),
    ),
    "keep-going": (
        "train --keep-going --run-dir {}/cut",
        ("../cut/run.json", "../cut/metrics.jsonl", "../cut/checkpoints/*.safetensors"),
    ),
}
_SLOW = ("score", "personalise", "classify onnx")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every file that a verb reads."""
    home = tmp_path_factory.mktemp("whole")
    run = home / "run"
    settings = {"rounds": 2, "clients": 3, "clients_per_round": 2, "local_steps": 1}
    with contextlib.redirect_stdout(io.StringIO()):
        superfednas.train(run_dir=str(run), **settings, evaluate_every=1)  # type: ignore[arg-type]
        shutil.copytree(run, home / "cut")
        superfednas.personalise(
            run, personal_subnets="ladder", fine_tune_epochs=1, state_dir=home / "state"
        )
        superfednas.evaluate(run, "largest")
        macs = Request(score="macs", against="macs")
        superfednas.search(run, {"macs": 1e6}, request=macs)
        _, plan = superfednas.search(
            run, {"macs": 1e6}, request=Request(score="measured", subnets=8, engine="evolution")
        )
        superfednas.test(plan)
        superfednas.export(run, "smallest", home / "subnet.safetensors", format="safetensors")
        superfednas.export_elastic(run, home / "elastic.safetensors")
        command("pictures", "--run", str(run), "--out", str(home / "pictures"), "--count", "1")
    next((home / "pictures").glob("*.png")).rename(home / "picture.png")
    a_table(Trained.open(run)).save(home / "table.json")
    cut = home / "cut"
    info = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    (cut / "supernet.safetensors").unlink()
    return home


def a_table(trained: Trained) -> LatencyTable:
    """Return a latency table in which everything takes a millisecond."""
    space, timing = trained.space, Timing(1.0, 1.0, 0.0, 3)
    assert space.chain is not None
    networks = (Network(space.largest.to_json(), timing, 1.0),)
    blocks = {block.name: timing for block in space.chain.inventory.blocks}
    part = BatchTable(blocks, 1.0, 1.0, networks, networks)
    return LatencyTable(space_options(space), {"torch": "2"}, 1, "wall", {1: part}, 1.0)


def command(*arguments: str) -> tuple[object, str, str]:
    """Run the command in this process; return its exit status and what it prints."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    given = sys.argv, list(sys.path)
    sys.argv = ["superfednas", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    finally:
        sys.argv, sys.path[:] = given
    return status, out.getvalue(), err.getvalue()


def cases(count: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """Yield verbs and the files to damage for them, each with a seed."""
    every = [(verb, file) for verb, (_, files) in VERBS.items() for file in files]
    for number in range(count):
        for verb, file in every:
            yield verb, file, seed * 1_000_003 + number


def check(
    whole: Path, scratch: Path, verb: str, file: str, seed: int, content: bytes | None = None
) -> None:
    """Damage a file and let the verb read it."""
    if verb == "classify onnx" and not (whole / "subnet.onnx").exists():
        superfednas.export(whole / "run", "smallest", whole / "subnet.onnx")
    home = scratch / "home"
    shutil.copytree(whole, home)
    root = home / ("" if file.startswith("../") else "run")
    pattern = file.removeprefix("../")
    chance = random.Random(f"{verb} {file} {seed}")
    path = chance.choice(sorted(root.glob(pattern)))
    path.write_bytes(damaged(path, chance) if content is None else content)
    line = [word.replace("{}", str(home)) for word in VERBS[verb][0].split()]
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            status, out, err = command(*line)
    finally:
        torch.set_num_threads(threads)
    assert status in (0, 1), (status, err)
    if status:
        assert "error: " in err or (verb.startswith("doctor") and "fault" in out), (out, err)
    assert_harmless(out + err)
    for each in err.splitlines():
        assert "Traceback" not in each
    shutil.rmtree(home)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in _SLOW])
def test_a_damaged_file_is_told_in_one_sentence(whole: Path, tmp_path: Path, verb: str) -> None:
    seed = list(VERBS).index(verb)
    files = VERBS[verb][1]
    check(whole, tmp_path, verb, files[seed % len(files)], seed)
    for file in files:
        if file.endswith((".json", ".jsonl")):
            check(whole, tmp_path, verb, file, seed, b"[" * 10_000)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_damage_of_every_kind_to_every_file(whole: Path, tmp_path: Path) -> None:
    """``DAMAGE_SEED`` and ``DAMAGE_CASES`` choose others, or more."""
    seed = int(os.environ.get("DAMAGE_SEED", "0"))
    failed = []
    for verb, file, number in cases(int(os.environ.get("DAMAGE_CASES", "20")), seed):
        try:
            check(whole, tmp_path, verb, file, number)
        except BaseException as error:  # noqa: BLE001
            shutil.rmtree(tmp_path / "home", ignore_errors=True)
            failed.append(f"{verb} | {file} | {number}: {type(error).__name__}: {error!s:.300}")
    if failed:
        pytest.fail("\n".join([f"{len(failed)} have failed", *failed]), pytrace=False)
