"""Personalisation: what is fine-tuned, what is told, what stays on a node and becomes a file."""

import json
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn
from typer.testing import CliRunner

import superfednas
from superfednas import cli
from superfednas.client.app import app as client_app
from superfednas.client.data import node_data
from superfednas.client.personalise import Kept, Personal, keep, personalise
from superfednas.common.digest import digest
from superfednas.common.settings import Scalar, SettingsError
from superfednas.data import Dataset, DataSettings, load_dataset
from superfednas.deploy.device.personal import PersonalSubnet, find_personal
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.model import load
from superfednas.flower.local_grid import LocalGrid
from superfednas.nas.score.tallies import score, subnet_module
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.report.personal_plot import personal_section
from superfednas.server.app import main
from superfednas.server.errands.check import check_personal
from superfednas.server.errands.personalise import choose, personal_files, personalise_by_nodes
from superfednas.server.round.check import BadReply
from superfednas.server.settings import Settings
from superfednas.supernet import load_space
from superfednas.supernet.norms import StaticBatchNorm2d
from superfednas.tasks.images import ACCURACY
from superfednas.wire.order import ARRAYS, CONFIG, METRICS, FineTuning, LocalTraining, SpaceOptions
from superfednas.wire.personal_file import personal_files as files_of
from superfednas.wire.personal_file import personal_folder
from tests.server.test_score import Recorder, Said, parts, run_folder
from tests.support.pictures import accuracy, read
from tests.support.strategies import noisy_state

torch.set_num_threads(1)
TINY = load_space("mobilenetv1-tiny", in_channels=1, image_size=8)
FAST: dict[str, Scalar] = {"fine-tune-epochs": 1, "fine-tune-lr": 0.05}


def own_data(number: int = 0, count: int = 6) -> Dataset:
    return node_data({"partition-id": number, "num-partitions": count}, DataSettings(), 0)


def subnet(norm: str = "group", seed: int = 0) -> nn.Module:
    of = load_space("mobilenetv1-tiny", in_channels=1, image_size=8, norm=norm)
    return subnet_module(of, noisy_state(of, seed), of.smallest)


def tuned(part: str, module: nn.Module, **local: Any) -> Any:
    return personalise(
        module,
        TINY,
        own_data(),
        LocalTraining(**local),
        FineTuning(part, 1, 0.05),
        seed=1,
        name="0",
    )


# On the client


@pytest.mark.parametrize("part", ["head", "body", "all"])
def test_only_the_part_that_is_named_changes(part: str) -> None:
    module = subnet()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tuned(part, module)
    changed = {n for n, t in module.state_dict().items() if not torch.equal(t, before[n])}
    head = {name for name in before if name.startswith("head.")}
    assert changed == {"head": head, "body": set(before) - head, "all": set(before)}[part]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_accuracies_are_those_on_the_clients_own_test_images() -> None:
    data, module = own_data(), subnet()
    before = accuracy(score(subnet(), data, data.test))
    found = tuned("all", module)
    assert found.initial == before
    assert found.personalised == accuracy(score(module, data, data.test))
    assert found.validation == accuracy(score(module, data, data.validation))
    assert found.personalised > found.initial  # noise before, one epoch on its own images after


def test_neither_momentum_nor_fedprox_counts_but_clipping_does() -> None:
    """As in the paper's appendix; the run's steps do not either, epochs are what is asked for."""
    plain, other, clipped = subnet(), subnet(), subnet()
    tuned("head", plain)
    tuned("head", other, momentum=0.9, proximal=5.0, local_steps=1, local_epochs=9)
    tuned("head", clipped, clip_norm=0.01)
    assert all(map(torch.equal, plain.state_dict().values(), other.state_dict().values()))
    assert not torch.equal(plain.get_parameter("head.weight"), clipped.get_parameter("head.weight"))


def test_a_client_without_test_images_says_so() -> None:
    data = own_data()
    bare = Dataset(**{**vars(data), "test": data.test.take(np.arange(0))})
    with pytest.raises(ValueError, match="no test images"):
        personalise(subnet(), TINY, bare, LocalTraining(), FineTuning(), seed=0, name="0")


def test_test_images_follow_the_clients_own_labels() -> None:
    settings = DataSettings(partition="shards", shards_per_client=2)
    for number in range(5):
        data = node_data({"partition-id": number, "num-partitions": 5}, settings, 0)
        assert set(data.test.targets["labels"].tolist()) <= set(
            data.train.targets["labels"].tolist()
        )
    assert sum(
        len(node_data({"partition-id": k, "num-partitions": 5}, settings, 0).test) for k in range(5)
    ) == len(load_dataset(settings).test)


# Through the grid


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_folder(tmp_path / "run", space="mobilenetv1-tiny")


def ask(run: RunFolder, said: Said | None = None, **values: Scalar) -> dict[str, Any]:
    given = {key.replace("_", "-"): value for key, value in values.items()}
    path = superfednas.personalise(
        run.path,
        progress=said or Said(),
        **{key.replace("-", "_"): value for key, value in (FAST | given).items()},
    )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_means_and_deviations_are_over_clients_and_the_run_stays_as_it_is(run: RunFolder) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    found = ask(run)
    settings = Settings(clients=3)
    names = list(choose(TINY, settings, "ladder").archs)
    assert [row["name"] for row in found["subnets"]] == names
    for row in found["subnets"]:
        assert sorted(row["clients"]) == ["0", "1", "2"]
        for number, which in enumerate(("initial", "personalised")):
            values = [both[number] for both in row["clients"].values()]
            assert row[which] == {"mean": fmean(values), "sd": pstdev(values)}
    assert found["weights"] == digest(run.weights()[0])
    after = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p not in before}
    assert [path.parent.name for path in after] == ["personal"]
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_no_weights_travel_back(run: RunFolder) -> None:
    replies: list[Message] = []

    def watched(message: Message, context: Context) -> Message:
        replies.append(client_app(message, context))
        return replies[-1]

    recorder = Recorder(watched)
    grid = LocalGrid(recorder, parts(), {})
    try:
        personalise_by_nodes({"personalise-run": str(run.path), **FAST}, grid, Said())
    finally:
        grid.close()
    answers = [reply for reply in replies if CONFIG in reply.content and ARRAYS in reply.content]
    assert len(recorder.asked) == 3 and not answers
    # One message a node: the largest carries the others.
    assert sorted(recorder.nodes()) == [1, 2, 3]
    assert recorder.order()["architecture"] == TINY.largest.to_json()


def test_a_number_of_random_subnets_is_reported_and_not_kept(
    run: RunFolder, tmp_path: Path
) -> None:
    found = ask(run, personal_subnets="3", state_dir=str(tmp_path / "state"))
    assert len(found["subnets"]) == 5
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("widths", ["width 0.25", "width 0.5", "width 0.75", "largest"]),
        ("smallest", ["smallest"]),
        ("random:4", ["random:4"]),
        ("2", ["largest", "smallest", "random 1", "random 2"]),
        ("ladder", ["smallest", "25%", "50%", "75%", "largest", "random:0"]),
    ],
)
def test_which_subnets(wanted: str, names: list[str]) -> None:
    assert list(choose(TINY, Settings(), wanted).archs) == names


@pytest.mark.parametrize("wanted", ["rungs", "0", "-3", ""])
def test_a_wrong_choice_of_subnets_is_one_sentence(wanted: str) -> None:
    with pytest.raises(
        SettingsError, match=f"personal-subnets = '{wanted}': must be ladder, widths"
    ):
        choose(TINY, Settings(), wanted)


def test_training_does_not_swallow_personalise_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="personalise-run = '/a': that is no training"):
        superfednas.train(personalise_run="/a", run_dir=str(tmp_path / "run"))


def test_nothing_reported_is_an_error(run: RunFolder) -> None:
    def broken(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "evaluate":
            raise RuntimeError("no")
        return client_app(message, context)

    grid, said = LocalGrid(broken, parts(), {}), Said()
    try:
        with pytest.raises(RunFolderError, match="no node personalised anything"):
            personalise_by_nodes({"personalise-run": str(run.path), **FAST}, grid, said)
    finally:
        grid.close()
    assert ["client 0 refused", "no"] in said and not personal_files(run)


def test_flwr_runs_it_too(run: RunFolder) -> None:
    grid = LocalGrid(client_app, parts(), {})
    context = Context(
        run_id=1,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={"personalise-run": str(run.path), "personal-subnets": "smallest", **FAST},
    )
    try:
        main(grid, context)
    finally:
        grid.close()
    assert [path.name for path in personal_files(run)] == ["personal-001.json"]


# Replies


def reply(rows: Any, examples: Any = 5, **records: Any) -> Message:
    content = RecordDict(
        {
            METRICS: MetricRecord({"personal-examples": examples}),
            CONFIG: ConfigRecord(
                {"architecture": TINY.largest.to_json(), "personal": json.dumps(rows)}
            ),
            **records,
        }
    )
    asked = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    return Message(content, reply_to=asked)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (reply([[0, 0.5, 0.6]]), "1 usable rows in place of one for each of 2"),
        (reply([[0, 0.5, 0.6], [0, 0.5, 0.6]]), "one for each of 2"),
        (reply([[0, 0.5, 0.6], [1, 0.5, 1.6]]), "accuracy from 0 to 1"),
        (reply([[0, 0.5, 0.6], [1, 0.5, 0.6]], 0), "personal-examples = 0"),
        (
            reply([[0, 0.5, 0.6], [1, 0.5, 0.6]], arrays=ArrayRecord([np.zeros(3)])),
            "what is personal stays on the node",
        ),
    ],
)
def test_replies_that_do_not_fit_are_refused(message: Message, reason: str) -> None:
    with pytest.raises(BadReply, match=reason):
        check_personal(message, TINY.largest, 2, ACCURACY)


def test_a_good_reply_is_read() -> None:
    found = check_personal(reply([[1, 0.5, 0.6], [0, 0, 1]]), TINY.largest, 2, ACCURACY)
    assert found.rows == ((1, 0.5, 0.6), (0, 0.0, 1.0)) and found.examples == 5


# On the node, and from there to a file


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_what_is_kept_answers_as_it_did_and_becomes_a_file(norm: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", space="mobilenetv1-tiny", norm=norm)
    state = tmp_path / "state"
    found = ask(run, state_dir=str(state), personal_subnets="widths", fine_tune="all")
    data = node_data({"partition-id": 1, "num-partitions": 3}, DataSettings(), 3)
    for row in found["subnets"]:
        kept = find_personal(state / "1", row["architecture"])
        assert kept.note["personalised"] == row["clients"]["1"][1]
        module = kept.module()
        right = 0
        with torch.inference_mode():
            logits = module(read(data, data.test))
            right = int((logits.argmax(1) == data.test.targets["labels"]).sum())
        assert right / len(data.test) == pytest.approx(row["clients"]["1"][1])
        has_statistics = [m for m in module.modules() if isinstance(m, StaticBatchNorm2d)]
        assert bool(has_statistics) == (norm == "batch")
    # ONNX, with statistics folded in, where there are some: it takes seconds.
    kind = "onnx" if norm == "batch" else "safetensors"
    written = superfednas.export_personal(state / "1", tmp_path / f"mine.{kind}", format=kind)
    best = find_personal(state / "1")
    assert best.note["validation"] == max(
        PersonalSubnet.open(path).note["validation"] for path in files_of(state / "1")
    )
    model = load(str(written.path))
    assert model.card.architecture == best.note["architecture"]
    assert model.card.source["part"] == "all"
    mode = files_of(state / "1")[0].stat().st_mode & 0o777
    assert mode == 0o600


def test_an_empty_state_folder_and_an_unknown_subnet_are_one_sentence(
    run: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(DeployError, match="holds no personalised subnet"):
        find_personal(tmp_path)
    ask(run, state_dir=str(tmp_path / "state"), personal_subnets="smallest")
    with pytest.raises(DeployError, match="holds no largest; there are"):
        find_personal(tmp_path / "state" / "0", "largest")
    damaged = files_of(tmp_path / "state" / "0")[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DeployError, match="it holds no personalised subnet"):
        find_personal(tmp_path / "state" / "0")


def test_a_damaged_report_of_the_nodes_is_named_on_the_page(tmp_path: Path) -> None:
    damaged = tmp_path / "personal-003.json"
    assert personal_section([]) == []
    for content in ("{", "[]", json.dumps({"subnets": [{}]})):
        damaged.write_text(content)
        section = "".join(personal_section([tmp_path / "personal-002.json", damaged]))
        assert "personal-003.json" in section and "Unreadable" in section


def test_one_personalisation_does_not_touch_anothers_subnets(
    run: RunFolder, tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    ask(run, state_dir=state, personal_subnets="widths")
    first = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*.safetensors")}
    ask(run, state_dir=state, personal_subnets="smallest", fine_tune="all")
    assert all(path.read_bytes() == content for path, content in first.items())
    newest = find_personal(tmp_path / "state" / "2")
    assert (newest.note["name"], newest.note["part"]) == ("run-002", "all")
    assert newest.note["architecture"] == TINY.smallest.to_json()
    with pytest.raises(DeployError, match="holds no largest"):  # that is the first one's
        find_personal(tmp_path / "state" / "2", "largest")


def test_a_servers_name_leads_out_of_no_folder(tmp_path: Path) -> None:
    found = Personal(0.1, 0.2, None)
    about = Kept("../../evil", SpaceOptions(), TINY.smallest, FineTuning(), found)
    path = keep(tmp_path / "state", subnet(), own_data(), about)
    assert path.parent == personal_folder(tmp_path / "state") / "______evil"


def test_a_state_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    about = Kept("a", SpaceOptions(), TINY.smallest, FineTuning(), Personal(0.1, 0.2, None))
    with pytest.raises(ValueError, match=r"state-dir = '.*state' cannot be written to"):
        keep(tmp_path / "state", subnet(), own_data(), about)


@pytest.mark.slow
def test_the_verbs(run: RunFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    asked = ["personalise", "--run", str(run.path), "--subnets", "smallest", "--epochs", "1"]
    done = CliRunner().invoke(cli.app, [*asked, "--state-dir", str(state), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [row["name"] for row in said["subnets"]] == ["smallest"]
    assert Path(said["plot"]).read_bytes().startswith(b"\x89PNG")
    (row,) = said["subnets"]
    section = "".join(personal_section(personal_files(run)))
    assert f"{row['initial']['mean']:.2%} ± {row['initial']['sd']:.2%}" in section
    out = str(tmp_path / "mine.pt2")
    exported = ["export", "--state-dir", str(state / "2"), "--format", "torch-export"]
    done = CliRunner().invoke(cli.app, [*exported, "--out", out, "--json"])
    assert done.exit_code == 0 and Path(out).exists(), done.output
    assert TINY.smallest.to_json() in json.loads(done.stdout)["subnet"]
    dropped = [*asked[:3], "--subnets", "3", "--state-dir", str(state)]
    assert "keep none" in str(CliRunner().invoke(cli.app, dropped).exception)
    refused = CliRunner().invoke(cli.app, [*exported, "--run", str(run.path)])
    assert refused.exit_code and "--state-dir: goes with" in str(refused.exception)
