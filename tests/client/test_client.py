"""The client: batches, one subnet's training against a hand-written loop, and every refusal."""

import dataclasses
import json
import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from superfednas.client import subnet_client as client_module
from superfednas.client.app import app
from superfednas.client.data import device_class, node_data
from superfednas.client.device import choose_device, own_stream, resident, usable_precision
from superfednas.client.node_config import NodeConfigError, node_name
from superfednas.client.subnet_client import SubnetClient
from superfednas.client.training import TrainingResult, batch_indices, train
from superfednas.common.settings import Scalar, flatten
from superfednas.common.streams import Purpose, torch_stream
from superfednas.data import DataError, Dataset, DataSettings, load_dataset
from superfednas.nas.score.tallies import check_fit, score, subnet_module
from superfednas.supernet import Architecture, SearchSpace, extract
from superfednas.tasks.images import Augment
from superfednas.wire.flat import pack, unpack
from superfednas.wire.order import (
    PRECISIONS,
    PROTOCOL,
    LocalTraining,
    SpaceOptions,
    TrainOrder,
    encode_list,
)
from superfednas.wire.source import source_fingerprint
from tests.support.pictures import normalise
from tests.support.strategies import noisy_state, norms, seeds, small_dataset, small_split, space


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(
    examples: int, local: LocalTraining, seed: int = 0, merge_single: bool = False
) -> list[list[int]]:
    found = batch_indices(examples, local, seeded(seed), merge_single=merge_single)
    return [rows.tolist() for rows in found]


# Batches


@settings(max_examples=60, deadline=None)
@given(
    examples=st.integers(1, 40),
    batch=st.integers(1, 20),
    epochs=st.integers(1, 3),
    seed=seeds,
    merge=st.booleans(),
)
def test_every_epoch_is_a_permutation(
    examples: int, batch: int, epochs: int, seed: int, merge: bool
) -> None:
    found = steps(examples, LocalTraining(local_epochs=epochs, batch_size=batch), seed, merge)
    assert len(found) % epochs == 0
    each = len(found) // epochs
    for epoch in range(epochs):
        rows = found[epoch * each : (epoch + 1) * each]
        assert sorted(chain.from_iterable(rows)) == list(range(examples))
        sizes = [len(r) for r in rows]
        expected = [batch] * (examples // batch) + [examples % batch] * bool(examples % batch)
        if merge and len(expected) > 1 and expected[-1] == 1:
            expected[-2:] = [expected[-2] + 1]
        assert sizes == expected


@settings(max_examples=60, deadline=None)
@given(
    examples=st.integers(1, 20),
    batch=st.integers(1, 9),
    count=st.integers(1, 30),
    epochs=st.integers(1, 3),
    seed=seeds,
)
def test_steps_are_exact_and_lead_the_epochs(
    examples: int, batch: int, count: int, epochs: int, seed: int
) -> None:
    local = LocalTraining(local_steps=count, local_epochs=epochs, batch_size=batch)
    found = steps(examples, local, seed)
    assert len(found) == count
    many = LocalTraining(local_epochs=count, batch_size=batch)  # at least one step an epoch
    assert found == steps(examples, many, seed)[:count]


def test_a_last_single_image_joins_the_batch_before() -> None:
    local = LocalTraining(local_epochs=1, batch_size=4)
    assert [len(rows) for rows in steps(9, local)] == [4, 4, 1]
    assert [len(rows) for rows in steps(9, local, merge_single=True)] == [4, 5]
    assert [len(rows) for rows in steps(10, local, merge_single=True)] == [4, 4, 2]
    assert [len(rows) for rows in steps(1, local, merge_single=True)] == [1]
    merged = steps(9, local, merge_single=True)
    assert list(chain(*steps(9, local))) == list(chain(*merged))


def test_epochs_differ_in_order() -> None:
    first, second = steps(30, LocalTraining(local_epochs=2, batch_size=30))
    assert first != second and sorted(first) == sorted(second)


# Training


def order(arch: Architecture, **changes: Any) -> dict[str, Scalar]:
    """Flatten the order of a round for 8×8 grey images."""
    names = {field.name for field in dataclasses.fields(LocalTraining)}
    local = LocalTraining(**{"local_steps": 3, "batch_size": 4} | _part(changes, names, True))
    norm = changes.pop("norm", "group")
    options = SpaceOptions(norm=norm, num_classes=3, in_channels=1, image_size=8)
    return flatten(
        TrainOrder(
            **{"round": 1, "architecture": arch.to_json(), "device": "cpu"}
            | _part(changes, names, False),
            space=options,
            local=local,
        )
    )


def _part(changes: dict[str, Any], names: set[str], inside: bool) -> dict[str, Any]:
    return {k: v for k, v in changes.items() if (k in names) == inside and k != "norm"}


def client(name: str = "kitchen", data: Dataset | None = None, **augment: Any) -> SubnetClient:
    data = data or small_dataset()
    task = replace(data.task, augment=Augment(**augment))
    return SubnetClient(name, replace(data, task=task))


def sent(of: SearchSpace, arch: Architecture, wire: str = "float32") -> np.ndarray:
    return pack(extract(noisy_state(of), arch), wire)


def by_hand(
    of: SearchSpace, arch: Architecture, data: Dataset, local: LocalTraining, name: str
) -> tuple[np.ndarray, float]:
    """SGD written out: batches, gradients, clipping, decay, momentum, step."""
    module = subnet_module(of, noisy_state(of), arch).train()
    weights = list(module.parameters())
    velocity: list[torch.Tensor] = []
    draws = torch_stream(0, Purpose.LOCAL_ORDER, round=1, name=name)
    rows, losses = [], []
    while len(rows) < local.local_steps:
        permutation = torch.randperm(len(data.train), generator=draws)
        rows += list(permutation.split(local.batch_size))
    for chosen in rows[: local.local_steps]:
        images = normalise(data.train.fields["images"][chosen], data.task.mean, data.task.std)
        loss = functional.cross_entropy(module(images), data.train.targets["labels"][chosen])
        losses.append(loss.item())
        gradients = list(torch.autograd.grad(loss, weights))
        if local.clip_norm:
            norm = torch.stack([g.norm() for g in gradients]).norm()
            gradients = [g * (local.clip_norm / (norm + 1e-6)).clamp(max=1) for g in gradients]
        with torch.no_grad():
            if local.weight_decay:
                gradients = [
                    g.add(w, alpha=local.weight_decay)
                    for g, w in zip(gradients, weights, strict=True)
                ]
            if not velocity:
                velocity = [torch.zeros_like(g) for g in gradients]
            velocity = [local.momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
            for weight, step in zip(weights, velocity, strict=True):
                weight.add_(step, alpha=-local.lr)
    return pack(module.state_dict()), sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("which", ["smallest", "random:3", "largest"])
def test_steps_are_the_hand_written_loop_to_the_bit(norm: str, which: str) -> None:
    of, data = space(norm=norm), small_dataset()
    arch = of.parse(which)
    local = LocalTraining(local_steps=4, batch_size=4, clip_norm=0.5)
    expected, loss = by_hand(of, arch, data, local, "kitchen")
    config = order(arch, norm=norm, local_steps=4, clip_norm=0.5)
    (found,), examples, metrics = client().fit([sent(of, arch)], config)
    assert found.tobytes() == expected.tobytes()
    assert examples == 10 and metrics["images"] == 4 + 4 + 2 + 4
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.01},
        {"clip_norm": 0.0, "lr": 0.01},
        {"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.1, "lr": 0.03},
    ],
)
def test_momentum_decay_and_clipping_are_what_they_are_called(changes: dict[str, float]) -> None:
    of, data = space(), small_dataset()
    local = LocalTraining(**{"local_steps": 3, "batch_size": 4} | changes)  # type: ignore[arg-type]
    expected, _ = by_hand(of, of.smallest, data, local, "kitchen")
    (found,), _, _ = client().fit([sent(of, of.smallest)], order(of.smallest, **changes))
    torch.testing.assert_close(
        torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-5, atol=1e-7
    )


@settings(max_examples=5, deadline=None)
@given(seed=seeds, norm=norms)
def test_same_seed_round_and_name_give_the_same_weights(seed: int, norm: str) -> None:
    of = space(norm=norm)
    weights = sent(of, of.smallest)

    def fit(name: str = "kitchen", **changes: Any) -> bytes:
        config = order(of.smallest, **{"seed": seed, "norm": norm} | changes)
        return client(name, crop=2, flip=True).fit([weights.copy()], config)[0][0].tobytes()

    first = fit()
    torch.manual_seed(seed % 7)  # the global generator has no say
    assert fit() == first
    for other in (fit("hall"), fit(round=2), fit(seed=seed + 1)):
        assert other != first


def test_fit_leaves_what_it_was_sent_and_the_data() -> None:
    of, data = space(), small_dataset()
    weights, images = sent(of, of.smallest), data.train.fields["images"].clone()
    kept = weights.copy()
    (found,), _, _ = client(data=data, crop=2).fit([weights], order(of.smallest))
    assert weights.tobytes() == kept.tobytes() and torch.equal(data.train.fields["images"], images)
    assert not np.shares_memory(found, weights) and not np.array_equal(found, kept)


def test_fit_reports_what_it_did() -> None:
    of = space()
    arch = of.parse("random:2")
    arrays, examples, metrics = client().fit([sent(of, arch)], order(arch, round=7))
    assert [a.shape for a in arrays] == [(of.params(arch),)] and arrays[0].dtype == np.float32
    assert examples == 10
    assert metrics["round"] == 7 and metrics["architecture"] == arch.to_json()
    assert metrics["source"] == source_fingerprint()
    assert metrics["seconds"] > 0 and math.isfinite(metrics["loss"])
    assert "evaluation" not in metrics
    assert all(isinstance(value, int | float | str) for value in metrics.values())


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_fit_at_half_precision_returns_what_changed(wire: str) -> None:
    of = space()
    config = order(of.smallest, wire_dtype=wire)
    (found,), _, _ = client().fit([sent(of, of.smallest, wire)], config)
    rounded = unpack(sent(of, of.smallest, wire), of.shapes(of.smallest), wire)
    full = pack({name: tensor.float() for name, tensor in rounded.items()})
    (exact,), _, _ = client().fit([full], order(of.smallest))
    trained = unpack(exact, of.shapes(of.smallest))
    expected = pack({n: tensor - rounded[n].float() for n, tensor in trained.items()}, wire)
    assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def test_training_lowers_the_loss() -> None:
    of = space()
    config = order(of.largest, local_steps=30, batch_size=10)
    weights, _, first = client().fit([sent(of, of.largest)], config)
    _, _, second = client().fit(weights, config)
    assert second["loss"] < first["loss"]


def test_thread_count_is_the_order_s(monkeypatch: pytest.MonkeyPatch) -> None:
    of, called = space(), list[int]()
    monkeypatch.setattr(torch, "set_num_threads", called.append)
    for threads in (2, 1):
        client().fit([sent(of, of.smallest)], order(of.smallest, torch_threads=threads))
    assert called == [2]  # it is one already


def test_training_is_in_training_mode_whatever_was_before() -> None:
    of = space(norm="batch")
    module = subnet_module(of, of.init(0), of.smallest).eval()
    local = LocalTraining(local_epochs=2, batch_size=9)
    result = train(module, small_dataset(), local, seed=0, round=1, name="a")
    assert module.training and result.images == 2 * 10 and math.isfinite(result.loss)


def test_no_training_images() -> None:
    of, data = space(), small_dataset()
    object.__setattr__(data, "train", small_split(0))
    module = subnet_module(of, of.init(0), of.smallest)
    with pytest.raises(ValueError, match="this client has no training images"):
        train(module, data, LocalTraining(), seed=0, round=1, name="a")


# Evaluation


def test_evaluation_has_a_row_for_each_nested_subnet() -> None:
    of, data = space(), small_dataset()
    middle = of.parse('{"depth":[0,1,0,1],"expand":[[0.67],[0.67,1],[1],[0.67,0.33]]}')
    wanted = [of.largest, of.smallest, middle]
    config = order(middle, evaluate=encode_list([arch.to_json() for arch in wanted]))
    _, _, metrics = client(data=data).fit([sent(of, middle)], config)
    rows = json.loads(metrics["evaluation"])
    assert [row[0] for row in rows] == [1, 2] and metrics["evaluation-examples"] == 6
    for index, sums in rows:  # as received, not as trained
        module = subnet_module(of, noisy_state(of), wanted[index])
        assert sums == score(module, data, data.validation).sums


def test_evaluation_calibrates_batch_norm_on_training_images() -> None:
    of, data = space(norm="batch"), small_dataset()
    config = order(of.smallest, norm="batch", evaluate=encode_list(["smallest"]))
    _, _, metrics = client(data=data).fit([sent(of, of.smallest)], config)
    module = subnet_module(of, noisy_state(of), of.smallest)
    expected = score(module, data, data.validation)
    assert json.loads(metrics["evaluation"]) == [[0, expected.sums]]


def test_evaluation_does_not_change_training() -> None:
    of = space()
    plain, asked = (
        client().fit([sent(of, of.smallest)], order(of.smallest, evaluate=encode_list(texts)))[0][0]
        for texts in ([], ["smallest", "largest"])
    )
    assert plain.tobytes() == asked.tobytes()


def test_no_validation_images_no_rows() -> None:
    of = space()
    config = order(of.smallest, evaluate=encode_list(["smallest"]))
    _, _, metrics = client(data=small_dataset(validation=0)).fit([sent(of, of.smallest)], config)
    assert not {"evaluation", "evaluation-examples"} & set(metrics)


def test_scoring_alone_says_what_training_says_beside_its_weights() -> None:
    of = space()
    middle = of.parse('{"depth":[0,1,0,1],"expand":[[0.67],[0.67,1],[1],[0.67,0.33]]}')
    wanted = [of.largest, of.smallest, middle]
    config = order(middle, evaluate=encode_list([arch.to_json() for arch in wanted]))
    weights = sent(of, middle)
    kept = weights.copy()
    _, _, beside = client().fit([weights], config)
    _, examples, metrics = client().evaluate([weights], config)
    keys = ("architecture", "evaluation", "evaluation-examples")
    assert metrics == {key: beside[key] for key in keys}
    assert examples == 6
    assert weights.tobytes() == kept.tobytes()


def test_scoring_at_half_precision_on_the_wire() -> None:
    of, data = space(), small_dataset()
    config = order(of.smallest, wire_dtype="bfloat16", evaluate=encode_list(["smallest"]))
    _, _, metrics = client(data=data).evaluate([sent(of, of.smallest, "bfloat16")], config)
    module = of.build(of.smallest)
    module.load_state_dict(
        unpack(sent(of, of.smallest, "bfloat16"), of.shapes(of.smallest), "bfloat16")
    )
    expected = score(module, data, data.validation)
    assert json.loads(metrics["evaluation"]) == [[0, expected.sums]]


def test_nothing_to_score_or_to_score_on() -> None:
    of = space()
    weights, config = [sent(of, of.smallest)], order(of.smallest, evaluate='["smallest"]')
    empty = client(data=small_dataset(validation=0)).evaluate(weights, config)
    assert empty == (0.0, 0, {"architecture": of.smallest.to_json()})
    nothing = client().evaluate(weights, order(of.smallest))
    assert nothing == (0.0, 6, {"architecture": of.smallest.to_json()})
    larger = client().evaluate(weights, order(of.smallest, evaluate='["largest"]'))
    assert larger[0] == 0.0 and json.loads(larger[2]["evaluation"]) == []


# Refusals


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, -1])
def test_another_protocol(protocol: int) -> None:
    of = space()
    config = order(of.smallest, protocol=protocol)
    for call in (client().fit, client().evaluate):
        with pytest.raises(ValueError, match=f"protocol {protocol}: this client speaks {PROTOCOL}"):
            call([sent(of, of.smallest)], config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 4}, "classes: the data set 'small' has 3, the space has 4"),
        ({"in_channels": 3}, "image channels: the data set 'small' has 1, the space has 3"),
        ({"image_size": 32}, "image size: the data set 'small' has 8, the space has 32"),
    ],
)
def test_data_that_do_not_fit_the_space(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_fit(space(**options), small_dataset())
    of = space(**options)
    config = order(of.smallest) | {key.replace("_", "-"): v for key, v in options.items()}
    for call in (client().fit, client().evaluate):
        with pytest.raises(ValueError, match=sentence):
            call([sent(of, of.smallest)], config)


def test_data_that_fit_the_space() -> None:
    assert check_fit(space(), small_dataset()) is None


def test_bad_orders() -> None:
    of = space()
    weights, config = sent(of, of.smallest), order(of.smallest)
    for changes, sentence in (
        ({"architecture": "medium"}, "'medium': must be largest, smallest"),
        ({"architecture": "largest"}, "shape .* in place of"),
        ({"lr": 0.0}, "lr = 0.0: lr must be a number above 0"),
        ({"wire-dtype": "float16"}, r"dtype float32 in place of \|V2"),
        ({"norm": "layer"}, "norm = 'layer'"),
        ({"device": "tpu"}, "device = 'tpu'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            client().fit([weights], config | changes)


def test_bfloat16_computes_in_it_and_keeps_float32_weights() -> None:
    """As on a GPU; oneDNN is left out (see :func:`superfednas.client.device.usable_precision`)."""
    of, formats, layouts = space(), set(), set()

    def look(part: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        formats.add(output.dtype)
        layouts.add(inputs[0].is_contiguous(memory_format=torch.channels_last))

    def trained(precision: str) -> dict[str, torch.Tensor]:
        module = subnet_module(of, of.init(0), of.largest)
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.register_forward_hook(look)
        local = LocalTraining(local_steps=3, batch_size=4, lr=0.01)
        given = {"seed": 0, "round": 1, "name": "a", "precision": precision}
        with torch.backends.mkldnn.flags(enabled=False):
            result = train(module, small_dataset(), local, **given)
        assert math.isfinite(result.loss)
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    exact = trained("float32")
    assert formats == {torch.float32}
    formats.clear()
    layouts.clear()
    rounded = trained("bfloat16")
    assert formats == {torch.bfloat16} and layouts == {True}
    moved = 0.0
    for name, tensor in exact.items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], tensor, rtol=0.02, atol=0.005)
        moved = max(moved, float((rounded[name] - tensor).abs().max()))
    assert moved > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_a_gpu_trains_in_bfloat16(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, told = space(), list[str]()
    real = client_module.train

    def watched(*values: Any, **named: Any) -> TrainingResult:
        told.append(named["precision"])
        return real(*values, **named)

    monkeypatch.setattr(client_module, "train", watched)
    client().fit([sent(of, of.smallest)], order(of.smallest, precision=precision))
    assert told == ["float32"]
    assert usable_precision(precision, torch.device("cuda")) == precision


def test_images_are_moved_to_a_device_once_and_only_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = small_split(6)
    assert resident(split, torch.device("cpu")) is split
    moved = resident(split, torch.device("meta"))
    assert moved.fields["images"].device.type == moved.targets["labels"].device.type == "meta"
    assert moved.fields["images"].shape == split.fields["images"].shape
    assert resident(split, torch.device("meta")) is moved
    free = 4 * split.nbytes - 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert resident(split, torch.device("cuda")) is split


def test_the_cpu_has_no_streams() -> None:
    with own_stream(torch.device("cpu")) as stream:
        assert stream is None


def test_choose_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


# Nodes


def test_node_name() -> None:
    assert node_name({"name": "kitchen", "partition-id": 3}) == "kitchen"
    assert node_name({"partition-id": 3}) == "3"
    with pytest.raises(NodeConfigError, match=r"this node has no name: .*--node-config"):
        node_name({"data-path": "x.npz"})


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ({}, r"this node has no data: .*data-path, or partition-id and num-partitions"),
        ({"partition-id": 0}, "this node has no data"),
        ({"num-partitions": 3}, "this node has no data"),
        ({"partition-id": 3, "num-partitions": 3}, "partition-id = 3: must be from 0 to 2"),
        ({"partition-id": -1, "num-partitions": 3}, "partition-id = -1: must be from 0 to 2"),
        ({"partition-id": "a", "num-partitions": 3}, "partition-id"),
        ({"partition-id": 0, "num-partitions": "b"}, "num-partitions"),
    ],
)
def test_nodes_without_data(node: dict[str, Scalar], sentence: str) -> None:
    with pytest.raises(NodeConfigError, match=sentence):
        node_data(node, DataSettings(), 0)


def test_partitions_share_out_the_data_set() -> None:
    chosen = DataSettings(partition="iid")
    whole, config = load_dataset(chosen), {"num-partitions": 4}
    parts = [node_data({"partition-id": k} | config, chosen, 0) for k in range(4)]
    assert sum(len(part.train) for part in parts) == len(whole.train)
    assert sum(len(part.validation) for part in parts) == len(whole.validation)
    assert sum(len(part.test) for part in parts) == len(whole.test)
    assert all(part.ids is None for part in parts)
    again = node_data({"partition-id": "1", "num-partitions": "4"}, chosen, 0)
    assert torch.equal(again.train.fields["images"], parts[1].train.fields["images"])
    assert torch.equal(again.validation.targets["labels"], parts[1].validation.targets["labels"])
    other = node_data({"partition-id": 1} | config, chosen, 1)
    assert not torch.equal(other.train.fields["images"], parts[1].train.fields["images"])


def test_a_node_s_own_file_is_all_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = {
        "x_train": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 3,
        "x_test": rng.integers(0, 256, (9, 8, 8), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }
    path = tmp_path / "own.npz"
    np.savez(path, **content)  # type: ignore[arg-type]
    node: dict[str, Scalar] = {"data-path": str(path), "partition-id": 9, "num-partitions": 3}
    own = node_data(node, DataSettings(train_images=5, pixel_mean="0.3"), 0)
    assert len(own.train) + len(own.validation) == 40 and len(own.test) == 9
    assert len(own.train) == 36 and own.task.mean == (0.3,)  # the run's other settings hold
    assert check_fit(space(), own) is None
    (found,), examples, _ = client(data=own).fit(
        [sent(space(), space().smallest)], order(space().smallest)
    )
    assert examples == 36 and np.isfinite(found).all()


def asked(**node: Scalar) -> dict[str, Any]:
    """Ask a node of the digits who it is, through the ClientApp."""
    config = ConfigRecord({**flatten(DataSettings()), "seed": 0, "device-classes": ""})
    question = Message(
        RecordDict({"config": config}), dst_node_id=1, message_type="query", group_id="roster"
    )
    context = Context(1, 1, {"partition-id": 1, "num-partitions": 3, **node}, RecordDict(), {})
    return dict(app(question, context).content.config_records["config"])


def test_a_node_tells_its_classes_only_where_it_is_allowed_to() -> None:
    told = asked(**{"tell-classes": True})
    own = node_data({"partition-id": 1, "num-partitions": 3}, DataSettings(), 0)
    assert told["class-counts"] == [
        int((own.train.targets["labels"] == k).sum()) for k in range(10)
    ]
    for quiet in (asked(), asked(**{"tell-classes": False})):
        assert "class-counts" not in quiet and quiet["examples"] == told["examples"]
    wrong = asked(**{"tell-classes": "yes"})
    assert wrong["problem"] == "tell-classes = 'yes' in the node config: must be true or false"


def test_a_key_of_another_app_is_said_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(**{"max-mac": 5})
    assert "problem" not in told and told["examples"] > 0
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "unknown key 'max-mac' (= 5)" in sentence and "did you mean max-macs?" in sentence
    asked()
    assert not capsys.readouterr().err


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz"):
        node_data({"data-path": "/nowhere.npz"}, DataSettings(), 0)


def test_device_class() -> None:
    classes = ("phone", "laptop")
    assert device_class({"device-class": "tv", "partition-id": 1}, classes) == "tv"
    assert [device_class({"partition-id": k}, classes) for k in range(3)] == [
        "phone",
        "laptop",
        "phone",
    ]
    assert device_class({"partition-id": 1}, ()) == device_class({"name": "a"}, classes) == ""
