"""Whatever comes from outside is refused in one way: run-config, architectures, replies, files.

The ordinary suite tries the same few hundred cases every time; ``pytest -m fuzz`` draws 10,000 new
ones.
"""

import json
import math
import struct
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from superfednas.common.settings import SettingsError, flatten, settings_of
from superfednas.records.folder import RunFolderError
from superfednas.records.tensors import read_tensors, write_tensors
from superfednas.server.round.check import BadReply, Expected, check_reply, finite
from superfednas.server.settings import Settings, check_settings
from superfednas.supernet import load_space
from superfednas.wire.flat import numel, numpy_dtype

FEW, MANY = 150, 2500  # of each of the four kinds
KNOWN = settings_of(Settings)
EXPECTED = Expected(
    "kitchen",
    3,
    load_space("resnet-tiny").smallest,
    {"w": (2, 2), "b": (3,)},
    "float32",
    3,
    10**6,
    10**6,
)
ODD_NUMBERS = st.sampled_from(
    [0, -0.0, -1, 1, 2, 1e-320, 1e308, math.nan, math.inf, -math.inf, 2**63, -(2**63), 10**400]
)
ODD_TEXTS = st.sampled_from(
    [
        *("", ":", "a:", ":a", ".:a", "json:dumps", "no_such.module:A", "a:b:c", "latest"),
        *("largest", "random:", "random:-1", "random:٣", "random:" + "9" * 5000),
        *("\0", "\ud800", "{}", "[]"),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | ODD_NUMBERS
    | ODD_TEXTS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def attempt(refusal: type[Exception], call: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a call gives and an empty text, or None and what its refusal says."""
    try:
        return call(), ""
    except refusal as error:
        return None, str(error)


# Settings


def near(key: str) -> st.SearchStrategy[Any]:
    """Draw values about what a key allows, now and then anything."""
    known = KNOWN[key]
    bounds = [b for b in (known.low, known.above, known.high) if b is not None]
    around = [known.kind(b + step) for b in bounds for step in (-1, 0, 1)]
    likely = [st.sampled_from([known.default, *around, *(known.choices or ())])]
    if known.kind is str and not known.choices:
        likely += [ODD_TEXTS, st.text(alphabet="abc:,.0129 \0", max_size=9)]
    elif known.kind in (int, float):
        likely += [ODD_NUMBERS, st.floats() if known.kind is float else st.integers()]
    return st.integers(0, 9).flatmap(lambda often: st.one_of(likely) if often else VALUES)


@st.composite
def run_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a few settings, seldom one that is not known."""
    keys = draw(st.lists(st.sampled_from(sorted(KNOWN)), max_size=4, unique=True))
    values = {key: draw(near(key)) for key in keys}
    if not draw(st.integers(0, 19)):
        values[draw(st.text(max_size=20))] = draw(LEAVES)
    return values


def a_run_config(values: dict[str, Any]) -> None:
    """What is not refused is kept as it was given, and has schedules and perhaps a space."""
    settings, said = attempt(SettingsError, lambda: check_settings(values))
    if settings is None:
        assert len(said.splitlines()) == 1
        return
    kept = flatten(settings)
    # The method's values stand where it was left to the method.
    given_up = {key for key, value in values.items() if value == "auto"}
    given_up |= {"subnets-per-step"} if values.get("subnets-per-step") == 0 else set()
    assert all(kept[key] == values[key] for key in values.keys() - given_up)
    assert check_settings(kept) == settings
    for schedule in (settings.beta(), settings.lr()):
        assert schedule is None or math.isfinite(schedule(0) + schedule(settings.rounds))


# Architectures

SPACES = [
    load_space(name, norm=norm)
    for name, norm in (("resnet-tiny", "group"), ("resnet10-26", "none"))
] + [load_space("resnet10-26-wide")]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Change a JSON value somewhere inside, most often a number of it by little."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 19)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        copy: Any = value.copy()
        action = draw(st.integers(0, 19))
        if action == 0:
            del copy[key]
        elif action == 1 and isinstance(copy, list):
            copy.insert(key, copy[key])
        else:
            copy[key] = draw(changed(value[key]))
        return copy
    if isinstance(value, int | float) and draw(st.booleans()):
        return draw(st.sampled_from([value, value + 1, value - 1, value + 8, float(value)]))
    return draw(VALUES)


@st.composite
def architecture_texts(draw: st.DrawFn) -> tuple[int, str]:
    """Draw a space and a text: nearly an architecture of one, any JSON, or anything."""
    which = draw(st.integers(0, len(SPACES) - 1))
    kind = draw(st.sampled_from(["changed"] * 5 + ["other space", "fields", "json", "cut", "text"]))
    if kind == "text":
        return which, draw(st.text() | ODD_TEXTS)
    space = SPACES[which - 1 if kind == "other space" else which]
    right = json.loads(space.parse(f"random:{draw(st.integers(0, 99))}").to_json())
    if kind == "fields":
        right |= {name: draw(VALUES) for name in draw(st.sets(st.sampled_from(sorted(right))))}
    text = (
        "{" * 20_000 if kind == "json" and draw(st.booleans()) else json.dumps(draw(changed(right)))
    )
    if kind == "cut":
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
    return which, text


def an_architecture(drawn: tuple[int, str]) -> None:
    """What is not refused is a network of the space, and its text is read as itself."""
    which, text = drawn
    space = SPACES[which]
    arch, _ = attempt(ValueError, lambda: space.parse(text))
    if arch is None:
        return
    space.validate(arch)
    assert space.parse(arch.to_json()) == arch
    assert space.macs(space.smallest) <= space.macs(arch) <= space.macs(space.largest)


# Replies

ORDER = Message(RecordDict(), dst_node_id=7, message_type="train", group_id="3")
METRICS = {
    "num-examples": 11,
    "loss": 0.5,
    "seconds": 0.25,
    "images": 33,
    "mac-images": 330,
    "round": 3,
}
TEXTS = {
    "architecture": EXPECTED.arch.to_json(),
    "evaluation": "[[0, 0.5, 1.5]]",
    "source": "abc",
    "source-root": "/app",
}
NUMBERS = (
    st.integers() | st.floats() | ODD_NUMBERS | st.lists(st.integers()) | st.lists(st.floats())
)
EVALUATIONS = VALUES.map(json.dumps) | st.lists(
    st.tuples(st.integers(-1, 4) | ODD_NUMBERS, st.floats() | ODD_NUMBERS, LEAVES), max_size=3
).map(json.dumps)
SCALARS = NUMBERS | st.booleans() | st.text() | st.binary(max_size=20) | ODD_TEXTS


@st.composite
def spoilt(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, flip, exchange, insert or drop bytes."""
    for _ in range(draw(st.integers(1, 3))):
        at, to = sorted(draw(st.integers(0, len(content))) for _ in range(2))
        action = draw(st.sampled_from(["flip"] * 4 + ["cut", "exchange", "insert", "drop"]))
        if action == "cut":
            content = content[:at]
        elif action == "flip" and at < len(content):
            flipped = content[at] ^ 1 << draw(st.integers(0, 7))
            content = content[:at] + bytes([flipped]) + content[at + 1 :]
        elif action == "exchange":
            content = content[to:] + content[at:to] + content[:at]
        elif action == "insert":
            content = content[:at] + draw(st.binary(max_size=9)) + content[at:]
        else:
            content = content[:at] + content[to:]
    return content


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Draw a flat array that is wrong in length, shape, type, numbers or bytes."""
    wrong = draw(st.sampled_from(["length", "shape", "dtype", "number", "bytes", "bytes", "about"]))
    size = draw(st.integers(0, 70)) if wrong == "length" else numel(EXPECTED.shapes)
    dtype = draw(st.sampled_from([">f4", "f8", "f2", "i2", "i4", "?", "U3", "c8"]))
    flat = np.arange(size).astype(dtype if wrong == "dtype" else "<f4")
    if wrong == "shape":
        flat = flat.reshape(draw(st.sampled_from([(1, -1), (-1, 1), (-1,)])))
    if wrong == "number":
        flat[draw(st.integers(0, size - 1))] = draw(st.floats(width=32))
    whole = Array(flat)
    if wrong == "about":
        return Array(
            draw(st.sampled_from([whole.dtype, "float64", "", "bogus"])),
            draw(st.sampled_from([whole.shape, (3,), ()])),
            draw(st.sampled_from([whole.stype, "torch.Tensor", ""])),
            whole.data,
        )
    if wrong == "bytes":
        return Array(whole.dtype, whole.shape, whole.stype, draw(spoilt(whole.data)))
    return whole


@st.composite
def replies(draw: st.DrawFn) -> Message:
    """Draw what a node could send, as far as Flower's records can hold it: a few things wrong."""
    metrics: dict[str, Any] = dict(METRICS)
    texts: dict[str, Any] = dict(TEXTS)
    named = {"subnet": Array(np.arange(7, dtype=np.float32))}
    keys = ["metrics", "config", "arrays"]
    for _ in range(draw(st.integers(1, 3))):
        wrong = draw(
            st.sampled_from(["metric"] * 4 + ["text"] * 3 + ["array"] * 2 + ["names", "records"])
        )
        if wrong == "metric":
            metrics[draw(st.sampled_from(sorted(METRICS)) | st.text(max_size=5))] = draw(NUMBERS)
        elif wrong == "text":
            texts[draw(st.sampled_from(sorted(TEXTS)))] = draw(SCALARS | EVALUATIONS)
        elif wrong == "array":
            named["subnet"] = draw(arrays())
        elif wrong == "names":
            for content in (metrics, texts, named):
                content.pop(draw(st.sampled_from([*sorted(content), "none"])), None)
            named |= draw(st.sampled_from([{}, {"net": Array(np.zeros(7, np.float32))}]))
        else:
            keys = draw(st.permutations(keys)) if draw(st.booleans()) else [*keys[:2], "more"]
    if not draw(st.integers(0, 19)):
        return Message(Error(draw(st.integers(0, 300)), draw(st.text())), reply_to=ORDER)
    try:
        records = (MetricRecord(metrics), ConfigRecord(texts), ArrayRecord(named))
    except (TypeError, ValueError):  # Flower itself refuses it: nobody can send it
        hypothesis.reject()
    return Message(RecordDict(dict(zip(keys, records, strict=True))), reply_to=ORDER)


def a_reply(message: Message) -> None:
    """What is not refused can be folded: its length, its number format, finite, sane metrics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about headers of old files
        found, _ = attempt(BadReply, lambda: check_reply(message, EXPECTED))
    if found is None:
        return
    assert found.flat.shape == (numel(EXPECTED.shapes),)
    assert found.flat.dtype == numpy_dtype("float32")
    assert finite(found.flat, "float32")
    assert min(found.examples, found.images, found.seconds, found.loss) >= 0
    assert found.loss + found.seconds < math.inf
    for index, accuracy, loss in found.evaluation:
        assert 0 <= index < EXPECTED.evaluated and 0 <= accuracy <= 1 and math.isfinite(loss)


# Checkpoints

STATE = {
    "b": torch.tensor([[1.5, -0.0], [float("nan"), 1e-42]]),
    "a": torch.tensor(3.25),
    "empty": torch.empty(0, 4),
    "half": torch.tensor([0.1], dtype=torch.bfloat16),
    "whole": torch.arange(40),
}
MEMORY = {"round": 4, "memory": {"policy": {"largest": {"10": 2, "küche": 1}}}}
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I8", "U16", "BOOL", "C64", "F8_E4M3", "F4", "X", ""]


@cache
def checkpoint() -> bytes:
    """Return the bytes of a real checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "right.safetensors"
        write_tensors(path, STATE, MEMORY)
        return path.read_bytes()


@st.composite
def checkpoints(draw: st.DrawFn) -> bytes:
    """Draw bytes that were a checkpoint: spoilt, or whole with a header that says other things."""
    content = checkpoint()
    if draw(st.booleans()):
        return draw(spoilt(content))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = draw(st.sampled_from(sorted(header)))
    action = draw(st.sampled_from(["dtype", "shape", "note", "note", "entry", "drop", "rename"]))
    if action == "drop":
        del header[name]
    elif action == "rename":
        header[draw(st.text(max_size=5))] = header.pop(name)
    elif action == "note" or name == "__metadata__":
        note = json.loads(header["__metadata__"]["superfednas"])
        changed_note = draw(st.sampled_from(["value", "text", "deep"]))
        texts = {
            "value": json.dumps(draw(changed(note))),
            "text": draw(st.text()),
            "deep": "[" * 20_000,
        }
        header["__metadata__"]["superfednas"] = texts[changed_note]
    elif action == "dtype":
        header[name]["dtype"] = draw(st.sampled_from(DTYPES))
    elif action == "shape":
        header[name]["shape"] = draw(st.lists(st.integers(0, 2**64), max_size=3))
    else:
        header[name] = draw(changed(header[name]))
    text = json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def a_checkpoint(content: bytes) -> None:
    """What is not refused is what was written; whatever is read, no file is touched."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "round-000004.safetensors"
        path.write_bytes(content)
        (folder / "notes.txt").write_text("mine")
        before = (path.stat(), (folder / "notes.txt").stat())
        read, said = attempt(RunFolderError, lambda: read_tensors(path))
        if read is None:
            assert str(path) in said
        else:
            state, about = read
            assert about == MEMORY
            assert state.keys() == STATE.keys()
            for key, tensor in state.items():
                right = STATE[key]
                assert (tensor.dtype, tensor.shape) == (right.dtype, right.shape)
                assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, right)))
        assert sorted(each.name for each in folder.iterdir()) == ["notes.txt", path.name]
        after = (path.stat(), (folder / "notes.txt").stat())
        assert [(s.st_mtime_ns, s.st_ino, s.st_size) for s in before] == [
            (s.st_mtime_ns, s.st_ino, s.st_size) for s in after
        ]
        assert path.read_bytes() == content


KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "run-config": (run_configs(), a_run_config),
    "architecture": (architecture_texts(), an_architecture),
    "reply": (replies(), a_reply),
    "checkpoint": (checkpoints(), a_checkpoint),
}


def fuzz(kind: str, cases: int, *, same: bool) -> None:
    """Check so many cases, and that there were so many."""
    strategy, check = KINDS[kind]
    tried = 0

    def one(case: Any) -> None:
        nonlocal tried
        tried += 1
        check(case)

    chosen = hypothesis.settings(
        max_examples=cases,
        deadline=None,
        derandomize=same,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    chosen(given(strategy)(one))()
    assert tried >= cases


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_wrong_input_gets_past_its_check(kind: str) -> None:
    fuzz(kind, FEW, same=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_no_wrong_input_of_thousands_gets_past_its_check(kind: str) -> None:
    fuzz(kind, MANY, same=False)
