"""Nodes score subnets: the sums are what one would count centrally, and nothing bad is counted."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import superfednas
import superfednas.records.trained
from superfednas.client.app import app as client_app
from superfednas.client.data import node_data
from superfednas.common.settings import Scalar, SettingsError, flatten
from superfednas.data import Dataset
from superfednas.flower.local_grid import LocalGrid
from superfednas.nas.cost.costs import Costs
from superfednas.nas.pipeline import Request
from superfednas.nas.score.measured import Measured, ScoreBook, ScoreBookError
from superfednas.nas.score.regression import design
from superfednas.nas.score.tallies import score, subnet_module
from superfednas.records.announcements import Announcement, Event
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.server.app import main, prepare
from superfednas.server.assign.client import Client
from superfednas.server.errands.score import plan_errands, score_by_nodes
from superfednas.server.journal.progress import Progress
from superfednas.server.nodes import RosterError
from superfednas.server.round.encode import Outgoing
from superfednas.server.settings import check_settings
from superfednas.supernet import Architecture, SearchSpace, State, extract
from superfednas.supernet.boxes import Boxes
from superfednas.tasks import Tally
from superfednas.tasks.images import ACCURACY
from superfednas.wire.flat import numpy_dtype, pack
from superfednas.wire.order import decode_list
from tests.support.pictures import accuracy, right, sent
from tests.support.spaces import NARROW
from tests.support.strategies import architectures, noisy_state, space

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
SUBNETS = 8
NODES = 3
App = Callable[[Message, Context], Message]
Nodes = Mapping[int, Mapping[str, Scalar]]


class Said(Progress):
    """Keep what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)

    def __contains__(self, parts: Iterable[str]) -> bool:
        return any(all(part in line for part in parts) for line in self.lines)


class Recorder:
    """A ClientApp that keeps the messages by which nodes are asked for scores."""

    def __init__(self, app: App = client_app) -> None:
        self.app = app
        self.asked: list[Message] = []

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.EVALUATE:
            self.asked.append(message)
        return self.app(message, context)

    def nodes(self) -> list[int]:
        return [message.metadata.dst_node_id for message in self.asked]

    def order(self, index: int = 0) -> ConfigRecord:
        return self.asked[index].content.config_records["config"]


def parts(count: int = NODES) -> dict[int, dict[str, Scalar]]:
    """Give nodes that hold the parts of the run's data set."""
    return {k + 1: {"partition-id": k, "num-partitions": count} for k in range(count)}


def run_folder(path: Path, **values: Scalar) -> RunFolder:
    """Give the folder of a finished run on digits, with noise in place of training."""
    given_values = {key.replace("_", "-"): value for key, value in values.items()}
    prepared = prepare(
        {"clients": NODES, "clients-per-round": 2, "device": "cpu", "seed": 3} | given_values
    )
    run = RunFolder.create(str(path), flatten(prepared.settings), prepared.settings.space.space)
    run.write_supernet(noisy_state(prepared.settings.space.load()), 1)
    run.finish(1)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_folder(tmp_path / "run")


def space_of(run: RunFolder) -> SearchSpace:
    return check_settings(run.settings).space.load()


def ask(
    run: RunFolder,
    app: App = client_app,
    nodes: Nodes | None = None,
    *,
    grid_class: type[LocalGrid] = LocalGrid,
    progress: Progress | None = None,
    **values: Scalar,
) -> ScoreBook:
    """Let nodes score subnets of a run."""
    asked: dict[str, Scalar] = {"score-run": str(run.path), "score-subnets": SUBNETS}
    asked |= {key.replace("_", "-"): value for key, value in values.items()}
    grid = grid_class(app, nodes or parts(), {})
    try:
        return score_by_nodes(asked, grid, progress or Said())
    finally:
        grid.close()


def part_of(run: RunFolder, node: Mapping[str, Scalar]) -> Dataset:
    checked = check_settings(run.settings)
    return node_data(node, checked.data, checked.seed)


def counted(book: ScoreBook) -> dict[Architecture, tuple[int, int]]:
    return {arch: (found.sums[ACCURACY.name], found.examples) for arch, found in book.items()}


def files(run: RunFolder) -> list[Path]:
    return sorted((run.path / "scores").glob("*"))


# What is counted


@pytest.mark.parametrize(("norm", "workers"), [("none", 1), ("group", 3)])
def test_the_sums_are_the_counts_on_the_pooled_images(
    tmp_path: Path, norm: str, workers: int
) -> None:
    run = run_folder(tmp_path / "run", norm=norm)
    book = superfednas.score_nodes(
        run.path, progress=Said(), workers=workers, score_subnets=SUBNETS
    )
    state, _ = run.weights()
    data = prepare(run.settings).data
    assert data is not None
    central = Measured(space_of(run), state, data, data.validation)
    assert len(book) == SUBNETS
    for arch, found in book.items():
        (expected,) = central.measure([arch])
        assert found.examples == expected.examples
        assert found.sums == pytest.approx(expected.sums, rel=1e-5)
        assert accuracy(found) == accuracy(expected)
    assert len(set(counted(book).values())) > 2  # subnets that all score alike would show nothing


@pytest.mark.slow
def test_batch_norm_is_calibrated_on_each_node_s_own_images(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", norm="batch")
    book = ask(run)
    state, _ = run.weights()
    for arch, found in book.items():
        rows = []
        for node in parts().values():
            data = part_of(run, node)
            module = subnet_module(space_of(run), state, arch)
            rows.append(score(module, data, data.validation))
        assert found == Tally.total(rows)
    assert len(set(counted(book).values())) > 2


def test_the_scores_are_kept_beside_the_run_and_read_back(run: RunFolder) -> None:
    said = Said()
    book = ask(run, canned(), progress=said)
    (path,) = files(run)
    assert book.path == path and said.lines[-1] == f"scores: {path}"
    again = ScoreBook.open(path)
    assert list(again.items()) == list(book.items())
    assert again.data == "nodes"
    assert superfednas.records.trained.Trained.open(run.path).score_file("nodes") == path


class Backwards(LocalGrid):
    """Replies come all at once, the last node's first."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wait(self._pending.values())
        return [*super().pull_messages(message_ids)][::-1]


def test_the_order_of_arrival_does_not_count(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random((SUBNETS, NODES)).tolist()

    def change(node: int, reply: dict[str, Any]) -> None:
        reply["rows"] = [[number, 0.5, row[node - 1]] for number, row in enumerate(losses)]

    terms = [[loss * 10 * node for node, loss in enumerate(row, 1)] for row in losses]
    assert any(sum(row) != sum(row[::-1]) for row in terms)  # in the last bit
    books = [
        ask(run_folder(tmp_path / grid.__name__), canned(change), grid_class=grid)
        for grid in (LocalGrid, Backwards)
    ]
    assert list(books[0].items()) == list(books[1].items())


# What is sent


def test_a_node_without_budget_gets_the_whole_supernet_once(run: RunFolder) -> None:
    app, of = Recorder(canned()), space_of(run)
    book = ask(run, app)
    assert sorted(app.nodes()) == [1, 2, 3]
    state, _ = run.weights()
    for index, message in enumerate(app.asked):
        flat = message.content.array_records["arrays"]["subnet"].numpy()
        assert flat.tobytes() == pack(extract(state, of.boxes(of.largest))).tobytes()
        assert app.order(index)["architecture"] == of.largest.to_json()
        sent = {of.parse(text) for text in decode_list(str(app.order(index)["evaluate"]))}
        assert sent == {arch for arch, _ in book.items()}


def test_weights_for_several_nodes_are_packed_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = list[Boxes]()
    record = Outgoing.record

    def counting(outgoing: Outgoing, state: State, boxes: Boxes) -> ArrayRecord:
        cut.append(boxes)
        return record(outgoing, state, boxes)

    monkeypatch.setattr(Outgoing, "record", counting)
    ask(run, canned())
    assert len(cut) == 1


def test_the_run_s_own_settings_count(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", norm="none", seed=5, wire_dtype="bfloat16")
    app = Recorder(canned())
    book = ask(
        run, app, norm="batch", seed=1, wire_dtype="float32", dataset="none", score_subnets=9
    )
    assert [arch for arch, _ in book.items()] == design(space_of(run), 9, 5)
    order = app.order()
    assert (order["norm"], order["seed"], order["wire-dtype"]) == ("none", 5, "bfloat16")
    assert (order["dataset"], order["num-classes"]) == ("digits", 10)
    flat = app.asked[0].content.array_records["arrays"]["subnet"].numpy()
    assert flat.dtype == numpy_dtype("bfloat16")


def held_by(of: SearchSpace, archs: Iterable[Architecture], client: Client) -> list[Architecture]:
    return [
        arch
        for arch in archs
        if all(getattr(of, cost)(arch) <= limit for cost, limit in client.limits.items())
    ]


def fits_inside(of: SearchSpace, inner: Architecture, outer: Architecture) -> bool:
    """Say whether the weights of one can be cut out of the other's."""
    state = {name: torch.empty(shape, device="meta") for name, shape in of.shapes(outer).items()}
    try:
        extract(state, of.shapes(inner))
    except ValueError:
        return False
    return True


@st.composite
def jobs(draw: st.DrawFn) -> tuple[SearchSpace, list[Architecture], Client]:
    of = space(draw(st.sampled_from(["resnet-tiny", NARROW])))
    archs = draw(st.lists(architectures(of), min_size=1, max_size=12, unique=True))

    def budget(cost: Callable[[Architecture], int]) -> int | None:
        exact = st.sampled_from(archs).map(cost)
        return draw(st.none() | exact | exact.map(lambda most: most - 1) | st.just(0))

    limits = {"macs": budget(of.macs), "params": budget(of.params)}
    return of, archs, Client("kitchen", {n: m for n, m in limits.items() if m is not None})


@settings(max_examples=60, deadline=None)
@given(job=jobs())
def test_every_subnet_that_a_node_can_hold_travels_once_inside_another(
    job: tuple[SearchSpace, list[Architecture], Client],
) -> None:
    of, archs, client = job
    errands = plan_errands(of, archs, 7, client)
    held = held_by(of, archs, client)
    sent = [arch for errand in errands for arch in errand.archs]
    assert len(sent) == len(held) and set(sent) == set(held)
    for errand in errands:
        assert (errand.client, errand.node) == ("kitchen", 7)
        assert errand.outer in errand.archs
        assert all(fits_inside(of, arch, errand.outer) for arch in errand.archs)
    for number, errand in enumerate(errands):  # else one message would have done for both
        assert not any(fits_inside(of, errand.outer, e.outer) for e in errands[:number])


@settings(max_examples=20, deadline=None)
@given(archs=st.lists(architectures(space()), max_size=12, unique=True))
def test_without_a_budget_one_message_carries_all(archs: list[Architecture]) -> None:
    of = space()
    archs = [arch for arch in archs if arch != of.largest] + [of.largest]
    (errand,) = plan_errands(of, archs, 1, Client("hall"))
    assert errand.outer == of.largest and set(errand.archs) == set(archs)


@pytest.mark.parametrize("limit", ["macs", "params", "bytes", "memory"])
def test_a_node_that_can_hold_nothing_gets_nothing(limit: str) -> None:
    of = space()
    least = Costs(of).least(limit)
    archs = [of.smallest, of.largest]
    assert plan_errands(of, archs, 1, Client("hall", {limit: least - 1})) == []
    (errand,) = plan_errands(of, archs, 1, Client("hall", {limit: least}))
    assert errand.outer == of.smallest and errand.archs == (of.smallest,)


def test_nodes_with_budgets_score_only_what_they_can_hold(run: RunFolder) -> None:
    of, state = space_of(run), run.weights()[0]
    archs = design(of, SUBNETS, 3)
    macs, params = (sorted(map(cost, archs))[SUBNETS // 2] for cost in (of.macs, of.params))
    nodes = parts()
    nodes[2]["max-macs"], nodes[3]["max-params"] = macs, params
    clients = {1: Client("0"), 2: Client("1", {"macs": macs}), 3: Client("2", {"params": params})}
    app, said = Recorder(), Said()
    book = ask(run, app, nodes, progress=said)
    for index, message in enumerate(app.asked):
        outer = of.parse(str(app.order(index)["architecture"]))
        assert outer in held_by(of, archs, clients[message.metadata.dst_node_id])
        flat = message.content.array_records["arrays"]["subnet"].numpy()
        assert flat.tobytes() == pack(extract(state, of.boxes(outer))).tobytes()
    assert app.nodes().count(1) == 1 and app.nodes().count(2) > 1

    local = {
        number: Measured(of, state, data, data.validation)
        for number, data in ((n, part_of(run, node)) for n, node in nodes.items())
    }
    totals = set()
    for arch in archs:
        able = [number for number in nodes if held_by(of, [arch], clients[number])]
        rows = [local[number].measure([arch])[0] for number in able]
        total = sum(row.examples for row in rows)
        assert counted(book)[arch] == (sum(row.sums[ACCURACY.name] for row in rows), total)
        totals.add(total)
    assert len(totals) > 1
    noted = ["not every node scored every subnet", f"{min(totals):,} to {max(totals):,} examples"]
    assert noted in said
    assert ["not every node"] not in _said_by(run_folder(run.path / "other"))


def _said_by(run: RunFolder) -> Said:
    said = Said()
    ask(run, canned(), progress=said)
    return said


def test_subnets_that_no_node_can_hold_have_no_score(run: RunFolder) -> None:
    of, nodes = space_of(run), parts()
    for node in nodes.values():
        node["max-params"] = of.params(of.largest) - 1
    book = ask(run, canned(), nodes)
    assert len(book) == SUBNETS - 1 and of.largest not in book


def test_a_run_of_one_fixed_subnet_leaves_out_no_node_that_can_score(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", assignment="fixed", architecture="largest")
    of = space_of(run)
    nodes = parts()
    nodes[2]["max-macs"] = of.macs(of.smallest)
    images = {n: len(part_of(run, node).validation) for n, node in nodes.items()}
    book = ask(run, canned(lambda node, reply: reply.update(examples=images[node])), nodes)
    assert book[of.smallest].examples == sum(images.values())
    assert book[of.largest].examples == images[1] + images[3]


# Who is there


class Late(LocalGrid):
    """The last node comes only when the others are asked for the second time."""

    looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return list(super().get_node_ids())[: None if self.looks > 1 else -1]


def test_all_parts_of_a_data_set_are_waited_for(run: RunFolder) -> None:
    book = ask(run, canned(), grid_class=Late, min_nodes=1)
    assert {found.examples for _, found in book.items()} == {10 + 20 + 30}


def test_parts_that_do_not_come_are_said(run: RunFolder) -> None:
    said = Said()
    nodes = {number: node for number, node in parts().items() if number != 2}
    book = ask(run, canned(), nodes, progress=said, min_nodes=1, node_timeout=0.3)
    assert {found.examples for _, found in book.items()} == {10 + 30}
    assert ["2 of 3 nodes"] in said
    assert ["nodes are there"] not in _said_by(run_folder(run.path / "other"))


def test_a_node_that_can_hold_nothing_is_not_waited_for(run: RunFolder) -> None:
    nodes, said, started = parts(), Said(), time.monotonic()
    nodes[2]["max-macs"] = 1
    book = ask(run, canned(), nodes, progress=said, min_nodes=1, node_timeout=60)
    assert time.monotonic() - started < 30
    assert {found.examples for _, found in book.items()} == {10 + 30}
    assert ["node '1' is left out", "max-macs 1"] in said and ["2 of 3 nodes"] in said


def test_too_few_nodes(run: RunFolder) -> None:
    with pytest.raises(RosterError, match="min-nodes = 4: 4 nodes are needed and 3 usable"):
        ask(run, canned(), min_nodes=4)
    assert files(run) == []


# Bad replies

Change = Callable[[int, dict[str, Any]], None]


def canned(change: Change = lambda node, reply: None) -> App:
    """Give a ClientApp that says, unless changed, half of 10 images right (20, 30 for others)."""

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type != MessageType.EVALUATE:
            return client_app(message, context)
        order = message.content.config_records["config"]
        ordered = len(decode_list(str(order["evaluate"])))
        reply = {
            "examples": 10 * context.node_id,
            "rows": [[number, 0.5, 1.5] for number in range(ordered)],
            "architecture": order["architecture"],
        }
        change(context.node_id, reply)
        return Message(
            RecordDict(
                {
                    "metrics": MetricRecord({"evaluation-examples": reply["examples"]}),
                    "config": ConfigRecord(
                        {
                            "architecture": reply["architecture"],
                            "evaluation": json.dumps(sent(reply["rows"], reply["examples"])),
                        }
                    ),
                }
            ),
            reply_to=message,
        )

    return app


def fail(reply: dict[str, Any]) -> None:
    raise RuntimeError("the disk is full")


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "error": (fail, "the disk is full"),
    "architecture": (lambda reply: reply.update(architecture="{}"), "architecture {}"),
    "missing": (lambda reply: reply["rows"].pop(), "7 usable scores of 7 subnets"),
    "twice": (lambda reply: reply["rows"].append([0, 0.5, 1]), "9 usable scores of 8 subnets"),
    "nan": (lambda reply: reply["rows"][3].__setitem__(1, float("nan")), "7 usable"),
    "endless loss": (lambda reply: reply["rows"][3].__setitem__(2, float("nan")), "7 usable"),
    "absurd": (lambda reply: reply["rows"][3].__setitem__(1, 1.01), "7 usable"),
    "negative": (lambda reply: reply["rows"][3].__setitem__(1, -0.1), "7 usable"),
    "no rows": (lambda reply: reply.update(rows="nonsense"), "0 usable"),
    "half images": (lambda reply: reply.update(examples=2.5), "evaluation-examples = 2.5"),
    "negative images": (lambda reply: reply.update(examples=-4), "evaluation-examples = -4"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_reply_is_refused_with_its_reason_and_the_others_count(
    run: RunFolder, bad: str
) -> None:
    change, reason = BAD[bad]
    said = Said()
    book = ask(run, canned(lambda node, reply: node == 2 and change(reply)), progress=said)
    assert ["client 1 refused", reason] in said
    assert len(book) == SUBNETS
    assert all(found == right(10 + 30, 5 + 15, 1.5) for _, found in book.items())
    assert ["client 0: 8 subnets on 10 examples"] in said


class Mute(LocalGrid):
    """Node 2 takes messages and never answers them, queries aside."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [
            reply
            for reply in super().pull_messages(message_ids)
            if reply.metadata.src_node_id != 2 or reply.metadata.message_type == MessageType.QUERY
        ]


def test_a_node_that_does_not_answer_is_waited_for_once(run: RunFolder) -> None:
    nodes = parts()
    nodes[2]["max-params"] = space_of(run).params(space_of(run).largest) - 1  # several messages
    app, said = Recorder(canned()), Said()
    book = ask(run, app, nodes, grid_class=Mute, progress=said, round_timeout=0.5)
    assert ["client 1 refused", "no reply within 0.5 s"] in said
    assert app.nodes().count(2) == 1
    assert all(found == right(40, 20, 1.5) for _, found in book.items())


def test_one_of_several_replies_of_a_node_may_be_bad(run: RunFolder) -> None:
    of, nodes = space_of(run), parts()
    nodes[2]["max-params"] = of.params(of.largest) - 1
    first = list[str]()

    def change(node: int, reply: dict[str, Any]) -> None:
        if node == 2 and not first:
            first.append(reply["architecture"])
            reply["rows"] = []

    app, said = Recorder(canned(change)), Said()
    book = ask(run, app, nodes, progress=said)
    (refused,) = [
        e for e in app.asked if e.content.config_records["config"]["architecture"] in first
    ]
    left_out = {
        of.parse(text)
        for text in decode_list(str(refused.content.config_records["config"]["evaluate"]))
    }
    for arch, found in book.items():
        missing = arch in left_out or arch == of.largest
        assert found.examples == (40 if missing else 60)
    assert app.nodes().count(2) > 1 and ["not every node scored", "40 to 60 examples"] in said


def test_a_node_without_validation_images(tmp_path: Path) -> None:
    # 180 validation images over 300 parts: some get none.
    run, several = run_folder(tmp_path / "run", partition="iid", min_partition_size=1), 300
    everyone = [{"partition-id": k, "num-partitions": several} for k in range(several)]
    images = [len(part_of(run, node).validation) for node in everyone]
    some, none = np.flatnonzero(images)[:2], images.index(0)
    nodes: dict[int, dict[str, Scalar]] = {n: everyone[k] for n, k in enumerate([none, *some], 1)}
    nodes[1]["max-params"] = space_of(run).params(space_of(run).largest) - 1  # several messages
    app, said = Recorder(), Said()
    book = ask(run, app, nodes, progress=said, min_nodes=3, node_timeout=0.3)
    assert {found.examples for _, found in book.items()} == {sum(images[k] for k in some)}
    assert [f"client {none} has no validation examples"] in said
    assert app.nodes().count(1) == 1  # nor is it sent more


def test_where_nobody_scores_nothing_is_written(run: RunFolder) -> None:
    said = Said()
    with pytest.raises(RunFolderError, match=r"^no node scored anything: .* above$"):
        ask(run, canned(lambda node, reply: fail(reply)), progress=said)
    assert sum("the disk is full" in line for line in said.lines) == NODES
    assert not (run.path / "scores").exists()


def test_nodes_without_any_image_are_a_failure_too(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="no node scored anything"):
        ask(run, canned(lambda node, reply: reply.update(examples=0)))
    assert not (run.path / "scores").exists()


# Before anything is sent


class Untouched(LocalGrid):
    """A grid that nobody may use."""

    def get_node_ids(self) -> Iterable[int]:
        raise AssertionError("nodes were looked for")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise AssertionError("something was sent")


def test_scores_that_are_there_are_not_made_again(run: RunFolder) -> None:
    book = ask(run, canned())
    assert book.path is not None
    before = book.path.read_bytes()
    with pytest.raises(RunFolderError, match=r"nodes\.jsonl' exists already: remove it"):
        ask(run, canned(), grid_class=Untouched)
    assert book.path.read_bytes() == before
    book.path.unlink()
    assert counted(ask(run, canned())) == counted(book)


def test_other_weights_have_scores_of_their_own(run: RunFolder) -> None:
    first = ask(run, canned())
    run.write_supernet(noisy_state(space_of(run), seed=1), 2)
    run.finish(2)
    second = ask(run, canned())
    assert first.weights != second.weights and len(files(run)) == 2


def test_no_run_folder(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere' is no run folder"):
        ask(run, score_run=str(tmp_path / "nowhere"), grid_class=Untouched)
    for path in ("run/supernet.safetensors", "run/checkpoints"):
        target = tmp_path / path
        target.unlink() if target.is_file() else target.rmdir()
    with pytest.raises(RunFolderError, match="no checkpoint"):
        ask(run, grid_class=Untouched)


@pytest.mark.parametrize("other", ["resume", "from-run"])
def test_score_run_is_not_given_with_another_run(run: RunFolder, other: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ask(run, grid_class=Untouched, **{other: "/a"})
    said = str(caught.value)
    assert f"{other} = '/a'" in said and f"score-run = {str(run.path)!r}" in said
    assert "only one of them" in said and "\n" not in said


def test_too_few_subnets_to_learn_from(run: RunFolder) -> None:
    with pytest.raises(SettingsError, match=r"score-subnets = 7: .* at least 8"):
        ask(run, grid_class=Untouched, score_subnets=7)


def test_training_does_not_swallow_score_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="score-run = '/a': that is no training"):
        superfednas.train(score_run="/a", run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# As Flower runs it


def flower(run: RunFolder, app: App, **values: Scalar) -> None:
    asked = {"score-run": str(run.path), "score-subnets": SUBNETS, **values}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={**asked})
    grid = LocalGrid(app, parts(), {})
    try:
        main(grid, context)
    finally:
        grid.close()


def test_the_server_app_scores_in_place_of_training(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    flower(run, canned(), rounds=1)
    (path,) = files(run)
    assert capsys.readouterr().out.splitlines()[-1] == f"scores: {path}"
    assert not (run.path / "metrics.jsonl").exists()


def test_a_failure_ends_in_one_sentence_and_a_status(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        flower(run, canned(lambda node, reply: fail(reply)))
    assert caught.value.code == 1
    *_, last, announced = capsys.readouterr().out.splitlines()
    assert last == "error: no node scored anything: the reasons stand above"
    assert Announcement.read(announced) == Announcement(
        Event.ERROR, text=last.removeprefix("error: ")
    )


# What the scores are for


def test_a_search_takes_the_nodes_scores_and_reads_no_image(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = ask(run)

    def no_images(*arguments: Any) -> Dataset:
        raise AssertionError("images were read")

    monkeypatch.setattr(superfednas.records.trained, "load_dataset", no_images)
    plan, file = superfednas.search(
        run.path, {"macs": 1_000_000}, scores="nodes", request=Request(refine=0)
    )
    of = space_of(run)
    assert of.macs(of.parse(plan.chosen.text)) <= 1_000_000
    assert plan.exact and file.exists() and plan.data == {"name": "nodes", "digest": "nodes"}
    measured = {of.parse(entry.text): entry.measured for entry in plan.measured}
    assert measured.keys() == counted(book).keys()
    for arch, row in measured.items():
        assert row is not None
        assert (row["accuracy"], row["examples"]) == (accuracy(book[arch]), book[arch].examples)


def test_a_search_without_the_nodes_scores_says_how_to_get_them(run: RunFolder) -> None:
    with pytest.raises(ScoreBookError) as caught:
        superfednas.search(run.path, {"macs": 1_000_000}, scores="nodes")
    said = str(caught.value)
    assert "the nodes have not scored yet" in said and f"score-run='{run.path}'" in said
    assert "\n" not in said and not (run.path / "plans").exists()
