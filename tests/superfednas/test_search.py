"""Search, test and export from Python, over a run that was really trained."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import superfednas
import superfednas.nas.score.measured
import superfednas.records.trained
from superfednas import cli
from superfednas.common.digest import digest
from superfednas.common.settings import SettingsError
from superfednas.data import DataSettings, load_dataset
from superfednas.deploy.device.elastic import ElasticModel
from superfednas.deploy.device.runtime import model as runtime
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.nas.cost.costs import NothingFits
from superfednas.nas.pipeline import Request
from superfednas.nas.plan import Plan, PlanError
from superfednas.nas.score.measured import ScoreBook, ScoreBookError
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.plans import find_plan
from superfednas.records.tensors import read_tensors, write_tensors
from superfednas.records.trained import Trained
from superfednas.server.journal.progress import Progress
from superfednas.server.settings import check_settings
from superfednas.supernet import load_space
from superfednas.supernet.ladder import ladder
from superfednas.tasks.images import ACCURACY, LOSS
from tests.support.pictures import accuracy, normalise, pictured, read, right
from tests.support.training import full_run

pytestmark = pytest.mark.slow

LIMITS = {"macs": 1_000_000}
FEW = Request(subnets=10, refine=1, winners=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with one run of two rounds in it; read only."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        superfednas.train(rounds=2, clients=3, clients_per_round=3, local_steps=4)
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run, the latest of a home of its own."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (found,) = (tmp_path / "home/.superfednas/runs").iterdir()
    return found


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no data set be loaded."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("images were loaded")

    monkeypatch.setattr(superfednas.records.trained, "load_dataset", refuse)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note every subnet that is scored for a search, by its parameters."""
    seen: list[int] = []
    score = superfednas.nas.score.measured.score

    def noting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(sum(p.numel() for p in module.parameters()))
        return score(module, *args, **kwargs)

    monkeypatch.setattr(superfednas.nas.score.measured, "score", noting)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    """Return all files under a folder with what is in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def other_weights(run: Path) -> None:
    """Change one number of a run's supernet."""
    state, about = read_tensors(run / "supernet.safetensors")
    state["head.bias"][0] += 1
    write_tensors(run / "supernet.safetensors", state, about)


def set_in(run: Path, **settings: Any) -> None:
    """Change settings of a run."""
    info = json.loads((run / "run.json").read_text())
    info["settings"] |= {key.replace("_", "-"): value for key, value in settings.items()}
    (run / "run.json").write_text(json.dumps(info))


# Search


def test_a_search_writes_a_plan(run: Path) -> None:
    before = set(files(run))
    plan, path = superfednas.search(run, LIMITS, request=FEW)
    assert path == run / "plans/plan-001.json"
    assert Plan.load(path) == plan
    state, rounds = RunFolder.open(run).weights()
    assert (plan.run, plan.weights, plan.rounds) == (
        str(run),
        digest(state),
        rounds,
    ) and rounds == 2
    space = load_space(plan.space["space"], **{k: v for k, v in plan.space.items() if k != "space"})
    assert space.parse(plan.chosen.text) and plan.chosen.costs["macs"] <= 1_000_000
    validation = load_dataset(DataSettings()).validation
    assert plan.data == {
        "name": "digits",
        "split": "validation",
        "images": len(validation),
        "digest": validation.digest(),
    }
    assert [entry.name for entry in plan.ladder] == list(ladder(space))
    assert {entry.text: entry.name for entry in plan.ladder} == {
        arch.to_json(): name for name, arch in ladder(space).items()
    }
    assert plan.latency == {} and plan.limits == LIMITS
    (scores,) = set(files(run)) - before - {"plans/plan-001.json"}
    assert len(ScoreBook.open(run / scores)) == len(plan.measured) >= 10


def test_measured_scores_are_those_of_evaluate(run: Path) -> None:
    plan, _ = superfednas.search(run, LIMITS, request=FEW)
    for entry in plan.measured[:3]:
        assert entry.measured == superfednas.evaluate(run, entry.text).row((ACCURACY, LOSS))


def test_scores_are_kept_between_searches(run: Path, measured: list[int]) -> None:
    first, _ = superfednas.search(run, LIMITS, request=FEW)
    count = len(measured)
    assert count == len(first.measured)
    again, _ = superfednas.search(run, LIMITS, request=FEW)
    assert len(measured) == count
    assert again.measured == first.measured and again.chosen == first.chosen


def test_plans_are_numbered(run: Path, no_images: None) -> None:
    request = Request(score="macs")
    for number in (1, 2):
        assert superfednas.search(run, LIMITS, request=request)[1].name == f"plan-00{number}.json"
    folder = run / "plans"
    for name in ("plan-007.json", "plan-9.test.json", "plan-x3.json", "plan-1x2.json", "other-8"):
        (folder / name).write_text("{}")
    assert superfednas.search(run, LIMITS, request=request)[1].name == "plan-008.json"
    (folder / "plan-001.json").unlink()
    assert superfednas.search(run, LIMITS, request=request)[1].name == "plan-009.json"


def test_a_plan_may_lie_elsewhere(run: Path, tmp_path: Path, no_images: None) -> None:
    request = Request(score="macs")
    for out in (tmp_path / "new/folder/mine.json", "~/mine.json"):
        _, path = superfednas.search(run, LIMITS, request=request, out=out)
        assert path == Path(out).expanduser() and Plan.load(path).chosen
    assert not (run / "plans").exists()


def test_an_existing_file_is_refused_before_anything_is_done(
    run: Path, tmp_path: Path, no_images: None
) -> None:
    out = tmp_path / "plan.json"
    out.write_text("mine")
    before = files(tmp_path)
    with pytest.raises(PlanError, match="exists already, and nothing is overwritten") as caught:
        superfednas.search(run, LIMITS, out=out)
    assert str(out) in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("limits", "asked", "error", "said"),
    [
        ({"macs": 10}, {}, NothingFits, "no subnet of resnet-tiny is that small: the least"),
        ({"flops": 10}, {}, ValueError, "cost 'flops': must be one of"),
        ({"macs": -1}, {}, ValueError, "max-macs = -1: must be above 0"),
        (LIMITS, {"scores": "nodes"}, ScoreBookError, "the nodes have not scored yet"),
        (LIMITS, {"scores": "missing.jsonl"}, ScoreBookError, "'missing.jsonl' does not exist"),
        (
            LIMITS,
            {"scores": "nodes", "request": Request(score="macs")},
            ValueError,
            "scores = 'nodes' are for score = 'regression'; asked is 'macs'",
        ),
    ],
)
def test_nothing_is_loaded_or_written_for_a_wrong_search(
    run: Path,
    no_images: None,
    limits: dict[str, float],
    asked: dict[str, Any],
    error: type[ValueError],
    said: str,
) -> None:
    before = files(run)
    with pytest.raises(error, match=said):
        superfednas.search(run, limits, **asked)
    assert files(run) == before


def test_limits_are_added_to_a_requests(run: Path, no_images: None) -> None:
    request = Request({"macs": 1e6, "params": 5e5}, score="macs")
    plan, _ = superfednas.search(run, {"macs": 9e5}, request=request)
    assert plan.limits == {"macs": 9e5, "params": 5e5}
    assert request.limits == {"macs": 1e6, "params": 5e5}


def test_the_latest_run(run: Path, no_images: None) -> None:
    plan, path = superfednas.search(limits=LIMITS, request=Request(score="macs"))
    assert plan.run == str(run) and path.parent == run / "plans"
    assert find_plan() == path
    superfednas.search(limits=LIMITS, request=Request(score="macs"))
    assert find_plan("latest") == run / "plans/plan-002.json"


def test_a_run_that_is_named_gives_its_own_newest_plan(
    run: Path, no_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = run.with_name("newer")
    shutil.copytree(run, newer)
    info = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(info | {"started": "9999"}))
    request = Request(score="macs")
    for _ in range(2):
        _, older_plan = superfednas.search(run, LIMITS, request=request)
    _, newer_plan = superfednas.search(newer, LIMITS, request=request)
    assert find_plan() == find_plan(run=newer) == newer_plan
    assert find_plan("latest", run) == older_plan == run / "plans/plan-002.json"
    assert find_plan(older_plan, run) == find_plan(older_plan) == older_plan
    monkeypatch.chdir(run.parent)
    assert find_plan(older_plan, run.name) == older_plan  # the same run, named otherwise
    with pytest.raises(PlanError) as refusal:
        find_plan(older_plan, newer)
    assert str(refusal.value) == (
        f"{str(older_plan)!r} is a plan of {str(run)!r}, not of {str(newer)!r}: leave out --run, "
        "or --plan for that run's newest plan"
    )


def test_the_verbs_take_the_run_that_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = run.with_name("newer")
    shutil.copytree(run, newer)
    info = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps(info | {"started": "9999"}))
    plan, _ = superfednas.search(run, LIMITS, request=Request(score="macs"))
    export = ["export", "--format", "safetensors", "--out", str(tmp_path / "subnet.safetensors")]
    for arguments in (["test"], export):
        with pytest.raises(PlanError, match="newer' has no plan yet: search first"):
            cli.app(arguments, standalone_mode=False)
    capsys.readouterr()
    cli.app(["test", "--run", str(run), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["architecture"] == plan.chosen.architecture
    assert (run / "plans/plan-001.test.json").exists()
    cli.app([*export, "--run", str(run)], standalone_mode=False)
    assert f"{run}/plans/plan-001.json: " in capsys.readouterr().out
    both = ["--run", str(newer), "--plan", str(run / "plans/plan-001.json")]
    for arguments in (["test"], export):
        with pytest.raises(PlanError, match="leave out --run, or --plan"):
            cli.app([*arguments, *both], standalone_mode=False)


def test_no_run_and_no_plan(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="has no plan yet: search first"):
        superfednas.test()
    with pytest.raises(PlanError, match=rf"search first \(superfednas search --run {run}\)"):
        superfednas.test(run_dir=run)
    with pytest.raises(RunFolderError, match="is no run folder"):
        superfednas.search(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    with pytest.raises(RunFolderError, match="there is no run folder in"):
        superfednas.search()


def test_part_of_the_validation_images(run: Path, measured: list[int]) -> None:
    part = load_dataset(DataSettings()).validation.take(np.arange(40))
    plan, _ = superfednas.search(run, LIMITS, request=FEW, split=part)
    assert plan.data["images"] == 40 and plan.data["digest"] == part.digest()
    assert plan.data["split"] == "part of validation"
    assert all(entry.measured and entry.measured["examples"] == 40 for entry in plan.measured)
    count = len(measured)
    superfednas.search(run, LIMITS, request=FEW)  # other images: measured anew
    assert len(measured) > count
    with pytest.raises(ValueError, match="has no examples"):
        superfednas.search(run, LIMITS, request=FEW, split=part.take(np.arange(0)))


@pytest.mark.parametrize("method", ["maxnet", "heterofl"])
def test_a_run_says_what_it_trained_and_an_older_one_is_worked_out(
    method: str, tmp_path: Path, no_images: None
) -> None:
    folder = full_run(tmp_path / "run", {"method": method, "rounds": 1}).path
    new, settings = Trained.open(folder), check_settings(RunFolder.open(folder).settings)
    assert new.rungs == settings.rungs(new.space)
    assert new.only_levels == settings.only_levels == (method == "heterofl")
    said, file = superfednas.search(folder, LIMITS, request=Request(score="macs"))
    info = json.loads((folder / "run.json").read_text())
    del info["ladder"], info["only-levels"]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(RunFolderError, match="of an earlier version"):
        _ = Trained.open(folder).rungs
    worked_out, _ = superfednas.search(
        folder, LIMITS, request=Request(score="macs"), out=tmp_path / "plan.json"
    )
    assert worked_out.ladder == said.ladder and file.exists()


def test_scores_of_another_run_are_refused(run: Path, no_images: None, tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    book = ScoreBook(scores, weights="f" * 64, data="d" * 64)
    space = Trained.open(run).space
    for seed in range(10):
        book.put(space.parse(f"random:{seed}"), right(10, seed, 1.0))
    before = files(run)
    with pytest.raises(ScoreBookError, match="holds scores of another supernet") as caught:
        superfednas.search(run, LIMITS, scores=str(scores))
    assert str(scores) in str(caught.value) and str(run) in str(caught.value)
    assert files(run) == before


def test_scores_that_are_there_need_no_images(run: Path, no_images: None, tmp_path: Path) -> None:
    trained, scores = Trained.open(run), tmp_path / "scores.jsonl"
    book = ScoreBook(scores, weights=trained.weights, data="d" * 64)
    for seed in range(20):
        arch = trained.space.parse(f"random:{seed}")
        accuracy = trained.space.macs(arch) // 10_000
        book.put(arch, right(1000, accuracy, 1.0))
    plan, _ = superfednas.search(run, LIMITS, scores=str(scores))
    assert plan.data == {"name": str(scores), "digest": "d" * 64}
    assert len(plan.measured) == plan.scorer["measured"] == 20
    assert plan.chosen.costs["macs"] > 900_000


def test_kept_scores_answer_the_next_limit_without_measuring(
    run: Path, measured: list[int]
) -> None:
    with pytest.raises(ScoreBookError, match="no search has measured subnets of this run"):
        superfednas.search(run, LIMITS, scores="kept")
    first, _ = superfednas.search(run, LIMITS, request=FEW)
    second, _ = superfednas.search(run, {"macs": 700_000}, request=FEW)
    there = len(measured)
    third, _ = superfednas.search(run, {"macs": 600_000}, scores="kept")
    assert len(measured) == there == third.scorer["measured"]
    assert there > max(first.scorer["measured"], second.scorer["measured"])  # of both together
    assert third.chosen.costs["macs"] <= 600_000


def test_a_run_that_goes_on_is_searched_with_a_word_and_its_plan_explains_itself(
    run: Path, no_images: None
) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": "running", "round": 1}))
    said: list[str] = []

    class Listener:
        def measuring(self, done: int, todo: int, why: str) -> None:
            pass

        def note(self, text: str) -> None:
            said.append(text)

    request = Request(score="macs")
    _, path = superfednas.search(run, LIMITS, request=request, progress=Listener())
    assert any("has not finished: round 1 of 2, running" in line for line in said)
    other_weights(run)
    with pytest.raises(PlanError, match="round 1 of 2, running; search again when it has ended"):
        superfednas.test(path)


def test_scores_of_the_nodes(run: Path) -> None:
    book = superfednas.score_nodes(run, score_subnets=8)
    assert len(book) == 8
    plan, _ = superfednas.search(run, LIMITS, scores="nodes")
    assert plan.data == {"name": "nodes", "digest": "nodes"}
    assert plan.scorer["measured"] == 8


def test_a_run_whose_server_had_no_data(run: Path) -> None:
    set_in(run, dataset="none")
    with pytest.raises(SettingsError, match="the run's server had no data: name a data set"):
        superfednas.search(run, LIMITS, request=FEW)
    plan, path = superfednas.search(run, LIMITS, request=FEW, dataset="digits")
    assert plan.data["name"] == "digits"
    with pytest.raises(SettingsError, match="the run's server had no data"):
        superfednas.test(path)
    assert superfednas.test(path, dataset="digits")["chosen"]["accuracy"] > 0


def test_images_of_another_size_are_refused(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {
        f"{kind}_{part}": value
        for part in ("train", "test")
        for kind, value in (
            ("x", rng.integers(0, 255, (60, 12, 12), dtype=np.uint8)),
            ("y", np.arange(60) % 10),
        )
    }
    np.savez(tmp_path / "wide.npz", **images)
    with pytest.raises(ValueError, match="has 12, the space has 8"):
        superfednas.search(run, LIMITS, dataset=str(tmp_path / "wide.npz"))


def test_an_unfinished_run_counts_by_its_newest_checkpoint(run: Path, no_images: None) -> None:
    whole, _ = superfednas.search(run, LIMITS, request=Request(score="macs"))
    (run / "supernet.safetensors").unlink()
    part, _ = superfednas.search(run, LIMITS, request=Request(score="macs"))
    assert (part.weights, part.rounds) == (whole.weights, 2)
    for path in sorted((run / "checkpoints").glob("round-*2.safetensors")):
        path.unlink()
    part, _ = superfednas.search(run, LIMITS, request=Request(score="macs"))
    assert part.rounds == 1 and part.weights != whole.weights


# The test split


def test_test_reads_the_test_split_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, path = superfednas.search(run, LIMITS, request=FEW)
    before = files(run)
    found = superfednas.test(path)
    kept = path.with_name("plan-001.test.json")
    assert set(files(run)) - set(before) == {"plans/plan-001.test.json"}

    test = load_dataset(DataSettings()).test
    assert found["data"] == {
        "name": "digits",
        "split": "test",
        "images": len(test),
        "digest": test.digest(),
    }
    assert (found["plan"], found["weights"]) == ("plan-001.json", plan.weights)
    assert not found["again"]
    assert list(found["ladder"]) == [entry.name for entry in plan.ladder]
    for entry, row in (
        (plan.chosen, found["chosen"]),
        (plan.ladder[0], found["ladder"]["smallest"]),
    ):
        score = superfednas.evaluate(run, entry.text, split="test")
        assert row == score.row((ACCURACY, LOSS)) | {
            key: row[key] for key in ("standard_error", "macs")
        }
        p = accuracy(score)
        assert row["standard_error"] == pytest.approx((p * (1 - p) / len(test)) ** 0.5)

    # Once more, with neither images nor the run to be had.
    monkeypatch.setattr(
        superfednas.records.trained, "load_dataset", lambda *_: pytest.fail("images were read")
    )
    monkeypatch.setattr(Trained, "open", lambda *_: pytest.fail("the run was opened"))
    content = kept.read_bytes()
    assert "macs" not in json.loads(content)["chosen"]  # the plan says what subnets cost
    assert found["chosen"]["macs"] == plan.chosen.costs["macs"]
    assert found["ladder"]["smallest"]["macs"] == plan.ladder[0].costs["macs"]
    assert superfednas.test(path) == {**found, "again": True}
    assert superfednas.test() == {**found, "again": True}
    assert kept.read_bytes() == content


@pytest.mark.slow
def test_a_search_reads_no_test_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned into noise, they change nothing."""
    plan, _ = superfednas.search(run, LIMITS, request=FEW)
    shutil.rmtree(run / "scores", ignore_errors=True)

    def spoilt(settings: DataSettings) -> Any:
        data = load_dataset(settings)
        noise = pictured(data.test.fields["images"], data.test.targets["labels"].flip(0))
        return dataclasses.replace(data, test=noise)

    monkeypatch.setattr(superfednas.records.trained, "load_dataset", spoilt)
    again, path = superfednas.search(run, LIMITS, request=FEW)
    assert again.measured == plan.measured and again.chosen == plan.chosen
    found = superfednas.test(path)
    assert found["chosen"]["accuracy"] < 0.3  # these are the spoilt ones


def test_a_plan_of_other_weights_is_not_tested(run: Path, no_images: None) -> None:
    _, path = superfednas.search(run, LIMITS, request=Request(score="macs"))
    other_weights(run)
    before = files(run)
    with pytest.raises(PlanError, match="search again") as caught:
        superfednas.test(path)
    assert str(caught.value).startswith(f"{str(run)!r} has other weights (round 2) than when")
    assert files(run) == before


def test_a_plan_of_nothing_trained_is_not_tested(run: Path, no_images: None) -> None:
    plan, path = superfednas.search(run, LIMITS, request=Request(score="macs"))
    bare = path.with_name("bare.json")
    dataclasses.replace(plan, run="", weights="", rounds=0).save(bare)
    with pytest.raises(PlanError, match="not trained: there are no weights"):
        superfednas.test(bare)


def test_a_test_result_of_another_plan_is_refused(run: Path) -> None:
    """Where a plan is removed, the next may take its number."""
    _, path = superfednas.search(run, LIMITS, request=Request(score="macs"))
    superfednas.test(path)
    path.unlink()
    tighter = {"macs": 500_000}
    assert superfednas.search(run, tighter, request=Request(score="macs"))[1] == path
    with pytest.raises(PlanError, match="is the test result of another plan"):
        superfednas.test(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weights": 1}', "null"])
def test_a_damaged_test_result_is_named(run: Path, no_images: None, content: str) -> None:
    _, path = superfednas.search(run, LIMITS, request=Request(score="macs"))
    kept = path.with_name("plan-001.test.json")
    kept.write_text(content)
    with pytest.raises(PlanError, match="is damaged") as caught:
        superfednas.test(path)
    assert str(kept) in str(caught.value)


def test_the_progress_of_a_test(run: Path) -> None:
    plan, path = superfednas.search(run, LIMITS, request=Request(score="macs"))
    said: list[tuple[int, int, str]] = []

    class Listener:
        def measuring(self, done: int, todo: int, why: str) -> None:
            said.append((done, todo, why))

        def note(self, text: str) -> None:
            raise AssertionError(text)

    superfednas.test(path, progress=Listener())
    count = 1 + len(plan.ladder)
    assert said == [(done, count, "test split") for done in range(1, count + 1)]


# Subnets and files


def test_evaluate_keeps_validation_scores_alone(run: Path, measured: list[int]) -> None:
    first = superfednas.evaluate(run, "random:3")
    assert superfednas.evaluate(run, "random:3") == first and len(measured) == 1
    before = files(run)
    superfednas.evaluate(run, "random:3", split="test")
    assert files(run) == before
    with pytest.raises(ValueError, match="split = 'train': must be validation or test"):
        superfednas.evaluate(run, "largest", split="train")


def test_a_subnet_is_ready_to_run(run: Path, no_images: None) -> None:
    module = superfednas.subnet(run, "random:1")
    data = load_dataset(DataSettings())
    with torch.inference_mode():
        logits = module(read(data, data.validation))
    share = (logits.argmax(dim=1) == data.validation.targets["labels"]).float().mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superfednas.records.trained, "load_dataset", load_dataset)
        assert accuracy(superfednas.evaluate(run, "random:1")) == pytest.approx(float(share))


@pytest.mark.slow
def test_static_batch_norm_from_training_to_test(tmp_path: Path) -> None:
    """Its statistics are measured on training images, wherever a subnet is run."""
    path = tmp_path / "run"
    superfednas.train(
        rounds=1,
        clients=2,
        clients_per_round=2,
        local_steps=1,
        ladder=2,
        norm="batch",
        run_dir=str(path),
    )
    _, plan = superfednas.search(path, LIMITS, request=Request(score="macs"))
    found = superfednas.test(plan)["ladder"]["smallest"]
    score = superfednas.evaluate(path, "smallest", split="test")
    assert (found["accuracy"], found["loss"]) == (score.value(ACCURACY), score.value(LOSS))
    data = load_dataset(DataSettings())
    with torch.inference_mode():
        logits = superfednas.subnet(path, "smallest")(read(data, data.test))
    correct = int((logits.argmax(dim=1) == data.test.targets["labels"]).sum())
    assert accuracy(score) == correct / len(data.test)


def test_export_writes_what_runs(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    exported = superfednas.export(run, "random:2", out, format="safetensors")
    assert exported.path == out and exported.examples == 64
    model = runtime.load(out)
    trained = Trained.open(run)
    arch = trained.space.parse("random:2")
    card = model.card
    assert card.architecture == arch.to_json() and card.space == trained.about_space()
    assert (card.macs, card.params) == (trained.space.macs(arch), trained.space.params(arch))
    assert card.outputs["logits"].names == trained.data.task.classes
    assert card.source["weights"] == trained.weights and card.source["run"] == run.name

    images = trained.data.test.fields["images"][:20]
    with torch.inference_mode():
        read = normalise(images, trained.data.task.mean, trained.data.task.std)
        expected = superfednas.subnet(run, "random:2")(read)
    found = model.run({"images": images.numpy()})["logits"]
    assert found == pytest.approx(expected.numpy(), abs=1e-5)

    before = out.read_bytes()
    with pytest.raises(DeployError, match="exists already"):
        superfednas.export(run, "smallest", out, format="safetensors")
    assert out.read_bytes() == before
    superfednas.export(run, "smallest", out, format="safetensors", overwrite=True)
    assert out.stat().st_size < len(before)


def test_an_elastic_file_holds_the_plans_ladder_and_front(run: Path, tmp_path: Path) -> None:
    request = dataclasses.replace(FEW, against="macs")
    plan, _ = superfednas.search(run, LIMITS, request=request)
    out = superfednas.export_elastic(run, tmp_path / "front.safetensors", plan=plan)
    menu = ElasticModel.load(out).card.menu
    listed = {entry["architecture"]: entry["score"] for entry in menu}
    assert len(listed) == len(menu)
    assert listed == {e.text: e.score for e in (*plan.ladder, *plan.front, plan.chosen)}

    out = superfednas.export_elastic(run, tmp_path / "ladder.safetensors")
    rungs = ladder(Trained.open(run).space, 3)
    info = json.loads((run / "run.json").read_text())
    info["ladder"] = {name: arch.to_json() for name, arch in rungs.items()}
    (run / "run.json").write_text(json.dumps(info))
    out = superfednas.export_elastic(run, out, overwrite=True)
    texts = [entry["architecture"] for entry in ElasticModel.load(out).card.menu]
    assert texts == [arch.to_json() for arch in rungs.values()]


def test_an_elastic_file_of_another_runs_plan_is_refused(run: Path, tmp_path: Path) -> None:
    plan, _ = superfednas.search(run, LIMITS, request=Request(score="macs"))
    other_weights(run)
    out = tmp_path / "front.safetensors"
    with pytest.raises(PlanError, match="the plan is of other weights than those of"):
        superfednas.export_elastic(run, out, plan=plan)
    assert not out.exists()


@pytest.mark.slow
def test_who_asks_for_bfloat16_on_the_cpu_is_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Told(Progress):
        def write(self, text: str) -> None:
            said.append(text)

    given = {"rounds": 1, "clients": 2, "clients_per_round": 1, "local_steps": 1, "device": "cpu"}
    for precision in ("float32", "bfloat16"):
        run_dir = str(tmp_path / precision)
        superfednas.train(progress=Told(), precision=precision, run_dir=run_dir, **given)
    found = [text for text in said if "precision" in text]
    assert found == ["precision = 'bfloat16': on the CPU clients train in float32"]
