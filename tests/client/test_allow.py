"""Pins: what a node's operator allows, held against every message, and nothing else left out."""

import contextlib
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.client.allow import PINS, NotAllowedError, PinError, Pins
from superfednas.client.app import app as client_app
from superfednas.client.data import within_reach
from superfednas.client.problems import without_paths
from superfednas.client.worker.handover import FOLDER_VARIABLE
from superfednas.common.settings import Scalar
from superfednas.data import DataSettings
from superfednas.records.refusals import Refusal
from superfednas.wire.order import encode_list
from tests.support.orders import PART, SPACE, ask, query
from tests.support.rows import lines
from tests.support.training import Quiet, node_configs, train

torch.set_num_threads(1)
BY_MESSAGE = {
    "train": (MessageType.TRAIN, {}),
    "score": (MessageType.EVALUATE, {}),
    "personalise": (MessageType.EVALUATE, {"personalise": True, "fine_tune_epochs": 1}),
}


@pytest.fixture
def on_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))


def allowed(pins: str, errand: str = "train", **asked: Any) -> bool:
    values = {"local-epochs": 1, "local-steps": 0, "batch-size": 1, "dp-clip": 0.0, "dp-noise": 0.0}
    values |= {"fine-tune-epochs": 1} | {k.replace("_", "-"): v for k, v in asked.items()}
    try:
        Pins.parse(pins).check(errand, values)
    except NotAllowedError:
        return False
    return True


# What pins mean


@given(
    bound=st.integers(1, 50),
    asked=st.integers(1, 50),
    key=st.sampled_from(["local-epochs", "local-steps", "fine-tune-epochs", "batch-size"]),
    least=st.booleans(),
)
def test_a_pin_of_a_number_is_a_comparison(bound: int, asked: int, key: str, least: bool) -> None:
    least = least and key == "batch-size"
    errand = "personalise" if key == "fine-tune-epochs" else "train"
    sign = ">=" if least else "<="
    fits = asked >= bound if least else asked <= bound
    assert allowed(f"{key}{sign}{bound}", errand, **{key: asked}) == fits


@given(
    clip=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    noise=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    pins=st.sampled_from(["dp-noise>=1", "dp-clip<=0.3", "dp-clip<=0.3 dp-noise>=1"]),
)
def test_privacy_that_is_pinned_is_there(clip: float, noise: float, pins: str) -> None:
    noisy, clipped = clip > 0 and noise >= 1, 0 < clip <= 0.3
    fits = (noisy or "noise" not in pins) and (clipped or "clip" not in pins)
    assert allowed(pins, dp_clip=clip, dp_noise=noise) == fits


def test_work_that_is_pinned_in_one_way_is_not_asked_in_another() -> None:
    assert not allowed("local-epochs<=5", local_steps=1)
    assert not allowed("local-steps<=5")
    assert allowed("local-epochs<=5 local-steps<=5", local_steps=5)
    assert not allowed("local-epochs<=5 local-steps<=5", local_steps=6)
    assert not allowed("local-epochs<=5", "personalise", fine_tune_epochs=1)
    assert allowed("local-epochs<=5 fine-tune-epochs<=1", "personalise", fine_tune_epochs=1)
    assert allowed("local-epochs<=5", "score") and allowed("fine-tune-epochs<=1")


@given(
    some=st.lists(
        st.sampled_from(["train", "score", "personalise"]), min_size=1, max_size=3, unique=True
    )
)
def test_only_errands_that_are_named_are_done(some: list[str]) -> None:
    for errand in BY_MESSAGE:
        assert allowed(f"errands={','.join(some)}", errand) == (errand in some)


SHUFFLED = st.sampled_from(list(PINS)).flatmap(st.permutations).map("".join)


@given(text=st.text(max_size=40) | SHUFFLED)
def test_whatever_is_written_is_pins_or_a_sentence(text: str) -> None:
    with contextlib.suppress(PinError):
        pins = Pins.parse(text)
        assert Pins.parse(shlex.join(map(str, pins.pins))) == pins


# Every message


@pytest.mark.attack
@pytest.mark.parametrize("errand", BY_MESSAGE)
def test_an_errand_that_is_not_named_is_refused_by_name(errand: str) -> None:
    kind, asked = BY_MESSAGE[errand]
    others = ",".join(other for other in BY_MESSAGE if other != errand)
    told = ask(PART | {"allow": f"errands={others}"}, kind, **asked)
    assert told["problem-code"] == "not-allowed" and "flat" not in told
    assert errand in told["problem"] and f"errands={others}" in told["problem"]
    assert set(told) == {"problem", "problem-code"}
    assert "problem" not in ask(PART | {"allow": f"errands={errand}"}, kind, **asked)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("pin", "asked"),
    [
        ("local-steps<=2", {"local-steps": 3}),
        ("local-epochs<=2", {"local-epochs": 3, "local-steps": 0}),
        ("local-epochs<=2", {"local-steps": 3, "local-epochs": 1}),
        ("batch-size<=8", {"batch-size": 9}),
        ("batch-size>=8", {"batch-size": 1}),
        ("dp-clip<=0.3", {"dp-clip": 0.4}),
        ("dp-noise>=1", {"dp-noise": 5.0, "dp-clip": 0.0}),
        ("dataset=cifar10", {"dataset": "digits"}),
    ],
)
def test_an_order_beyond_a_pin_is_refused_whatever_the_query_asked(
    pin: str, asked: dict[str, Any]
) -> None:
    node = PART | {"allow": pin}
    told = ask(node, **{key.replace("-", "_"): value for key, value in asked.items()})
    assert told["problem-code"] == "not-allowed"
    assert pin in told["problem"] and next(iter(asked)) in told["problem"]
    asked_at_once = query(node, errand="train", **asked)
    assert asked_at_once["problem-code"] == "not-allowed"


def test_a_pin_of_the_data_set_is_not_held_against_a_node_with_its_own(tmp_path: Path) -> None:
    node: dict[str, Scalar] = {"name": "a", "data-path": "digits", "allow": "dataset=cifar10"}
    assert "problem" not in query(node, dataset=str(tmp_path))


@pytest.mark.attack
@pytest.mark.parametrize("limit", ["max-macs", "max-params", "max-memory", "max-bytes"])
def test_a_subnet_beyond_the_budget_is_refused_by_the_node(limit: str) -> None:
    told = ask(PART | {limit: 1})
    assert told["problem-code"] == "not-allowed" and limit in told["problem"]
    assert "problem" not in ask(PART | {limit: 10**9})


@pytest.mark.slow
@pytest.mark.parametrize(
    "pin", ["local-epochs<=1", "batch-size<=4", "errands=score", "dataset=cifar10", "dp-noise>=1"]
)
def test_a_run_that_asks_too_much_of_a_node_goes_on_without_it(pin: str) -> None:
    values: dict[str, Scalar] = {
        "rounds": 1,
        "clients-per-round": 2,
        "local-steps": 0,
        "local-epochs": 2,
        "train-images": 120,
        "space": "mobilenetv1-tiny",
    }
    nodes, said = node_configs(3), Journal()
    nodes[2]["allow"] = pin
    strategy = train(values, nodes=nodes, progress=said)
    assert {c["client"] for c in lines(strategy.rows)[0]["clients"] if c["accepted"]} == {"0", "2"}
    (left,) = said.of("left-out")
    assert left["refusal"] == Refusal.NOT_ALLOWED and left["node"] == "'1'"
    assert pin in left["reason"]


class Journal(Quiet):
    """Keep events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.journal = self.events.append

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]


@pytest.mark.slow
def test_a_refusal_in_the_middle_is_one_refused_reply() -> None:
    def greedy(message: Message, context: Context) -> Message:
        order = message.content.config_records["config"]
        if message.metadata.message_type == MessageType.TRAIN and context.node_id == 2:
            order["local-steps"] = 7
        return client_app(message, context)

    nodes = node_configs(3)
    nodes[2]["allow"] = "local-steps<=1"
    strategy = train({"rounds": 1, "space": "mobilenetv1-tiny"}, greedy, nodes=nodes)
    (row,) = lines(strategy.rows)
    found = {client["client"]: client["refusal"] for client in row["clients"]}
    assert found == {"0": None, "1": Refusal.NOT_ALLOWED, "2": None}


# Files of a node


def npz(path: Path) -> str:
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(0, 256, (200, 8, 8), np.uint8), np.arange(200) % 10
    np.savez(path, x_train=rows, y_train=labels, x_test=rows, y_test=labels)
    return str(path)


@pytest.mark.attack
@pytest.mark.usefixtures("on_a_node")
def test_no_order_makes_a_node_read_what_its_operator_has_not_named(tmp_path: Path) -> None:
    there, folder = npz(tmp_path / "diary.npz"), tmp_path / "photos"
    (folder / "train").mkdir(parents=True)
    said = []
    for name in (there, str(folder), f"hf:{folder}", "hf:me/private", str(tmp_path / "no.npz")):
        for told in (query(PART, dataset=name), ask(PART, dataset=name)):
            assert told["problem-code"] == "not-allowed" and "flat" not in told
            said.append(told["problem"].replace(name, ""))
    assert len(set(said)) == 1  # nor whether it is there
    assert "problem" not in query(PART | {"allow": f"dataset=digits,{there}"}, dataset=there)
    assert "problem" not in query(PART)
    own: dict[str, Scalar] = {"name": "a", "data-path": there}
    assert query(own, dataset=str(folder))["examples"] > 0


@pytest.mark.attack
def test_no_run_chooses_where_a_node_puts_downloads(tmp_path: Path) -> None:
    asked = DataSettings(dataset="pathmnist", data_cache=str(tmp_path))

    def cache(node: dict[str, Scalar], *, on_a_node: bool) -> str:
        return within_reach(node, asked, Pins(), on_a_node=on_a_node).data_cache

    assert cache(PART, on_a_node=True) == DataSettings().data_cache
    assert cache(PART | {"data-cache": "/var/own"}, on_a_node=True) == "/var/own"
    assert cache({"name": "a", "data-path": "cifar10"}, on_a_node=True) == DataSettings().data_cache
    assert cache(PART, on_a_node=False) == str(tmp_path)  # a simulation's is its user's


@pytest.mark.usefixtures("on_a_node")
def test_a_module_of_the_run_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, asked = "photos:mine", DataSettings(dataset="photos:mine")
    assert within_reach(PART, asked, Pins(), on_a_node=True).dataset == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(NotAllowedError):
        within_reach(PART, asked, Pins(), on_a_node=True)


# Words of a node

parts = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(folders=st.lists(parts, min_size=1, max_size=4), home=st.booleans(), quoted=st.booleans())
def test_no_path_of_a_node_is_sent(folders: list[str], home: bool, quoted: bool) -> None:
    root = str(Path.home()) if home else "/srv"
    path = "/".join([root, *folders])
    shown = f"'{path}'" if quoted else path
    said = without_paths(f"dataset = {shown}: there is no such file (see {path}).", {})
    assert said.startswith("dataset = ") and ": there is no such file (see " in said
    assert not any(f"/{folder}" in said for folder in folders) and root not in said
    assert os.sep not in said


def test_words_that_are_no_path_stay() -> None:
    for text in ("1/2 of a batch", "https://zenodo.org/records/1", "train/val", "error 5: a:b"):
        assert without_paths(text, {}) == text
    config: dict[str, Scalar] = {"data-path": "/data/my photos", "state-dir": "~/state"}
    text = f"/data/my photos/cat: unreadable; {Path.home()}/state/x is full"
    assert without_paths(text, config) == "(data-path): unreadable; (state-dir) is full"


@pytest.mark.usefixtures("on_a_node")
def test_errors_reach_a_server_without_paths_and_the_operator_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "own.npz")
    node: dict[str, Scalar] = {"name": "a", "data-path": path}
    told = query(node)
    assert "(data-path)" in told["problem"] and path not in told["problem"]
    assert path in capsys.readouterr().err
    with pytest.raises(RuntimeError) as caught:
        ask(node)
    assert path not in str(caught.value) and "DataError" in str(caught.value)


@pytest.mark.usefixtures("on_a_node")
def test_a_node_does_not_say_where_its_code_lies() -> None:
    told = ask(PART, evaluate=encode_list([SPACE.smallest.to_json()]))
    assert "source-root" not in told and told["source"]
    assert all("/" not in str(value) for key, value in told.items() if key != "flat")
