"""Replies: a right one passes, each wrong one is refused with its reason, the queue keeps order."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.records.refusals import Refusal
from superfednas.server.round.check import (
    BadReply,
    Expected,
    check_reply,
    finite,
    is_silence,
    usable,
)
from superfednas.tasks.images import ACCURACY, LOSS
from superfednas.wire.flat import WIRE_DTYPES, numpy_dtype, pack
from tests.support.pictures import right, sent
from tests.support.replies import EXPECTED, LENGTH, ORDER, WRONG, Named, flat, reply

METRICS_READ = (ACCURACY, LOSS)


def refused(message: Message, expected: Expected = EXPECTED) -> str:
    with pytest.raises(BadReply) as caught:
        check_reply(message, expected)
    return str(caught.value)


def npy(header: bytes) -> bytes:
    """Start a .npy file with a header of one's own."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, subnet=flat())
    return content.getvalue()


# A right reply


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_right_reply_passes(dtype: str) -> None:
    scores = sent([[0, 0.5, 1.5], [2, 1.0, 0.0]], 8)
    message = reply(
        flat(dtype), metrics={"evaluation-examples": 8}, texts={"evaluation": json.dumps(scores)}
    )
    found = check_reply(message, replace(EXPECTED, wire_dtype=dtype))
    assert np.array_equal(found.flat, flat(dtype))
    assert found.flat.dtype == numpy_dtype(dtype)
    assert (found.examples, found.loss, found.seconds, found.images) == (11, 0.5, 0.25, 33)
    assert found.evaluation == ((0, right(8, 4, 1.5)), (2, right(8, 8, 0.0)))
    assert usable(found.evaluation, METRICS_READ) == found.evaluation
    assert (found.source, found.source_root) == ("abc", "/app")


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_right_replys_numbers_are_a_view_of_what_came(dtype: str) -> None:
    message = reply(flat(dtype))
    found = check_reply(message, replace(EXPECTED, wire_dtype=dtype)).flat
    came = np.frombuffer(message.content.array_records["arrays"]["subnet"].data, np.uint8)
    assert np.shares_memory(found, came) and not found.flags.writeable


def test_a_reply_that_another_numpy_wrote_passes() -> None:
    content = io.BytesIO()
    np.lib.format.write_array(content, flat(), (2, 0))
    array = Array("float32", (LENGTH,), "numpy.ndarray", content.getvalue())
    assert np.array_equal(check_reply(reply(array), EXPECTED).flat, flat())


def test_a_reply_without_evaluation_passes() -> None:
    found = check_reply(reply(), EXPECTED)
    assert found.evaluation == ()


# Wrong ones


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_reply_is_refused_by_its_code(code: Refusal) -> None:
    with pytest.raises(BadReply) as caught:
        check_reply(WRONG[code], EXPECTED)
    assert caught.value.refused.code == code
    assert caught.value.refused.reason == str(caught.value) != ""


@settings(max_examples=50, deadline=None)
@given(said=st.text(max_size=50))
def test_what_a_node_says_stays_on_one_line(said: str) -> None:
    assert refused(Message(Error(2, said + "\n" + said), reply_to=ORDER)).isprintable()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -1.0, [1.0]])
def test_only_a_loss_that_left_the_numbers_means_divergence(loss: Any) -> None:
    with pytest.raises(BadReply) as caught:
        check_reply(reply(metrics={"loss": loss}), EXPECTED)
    diverged = isinstance(loss, float) and loss != -1.0
    assert caught.value.refused.code == (Refusal.NOT_FINITE if diverged else Refusal.METRIC)


def test_an_error_is_refused_with_its_code_and_reason() -> None:
    said = refused(Message(Error(5, "node gone"), reply_to=ORDER))
    assert "error 5" in said and "node gone" in said
    assert "no reason given" in refused(Message(Error(0), reply_to=ORDER))
    assert "could not load" in refused(Message(Error(1, "ImportError"), reply_to=ORDER))


def test_only_what_the_superlink_says_in_a_nodes_place_is_silence() -> None:
    """A node whose app raised (2), could not be loaded (1) or crashed (8) is there."""
    errors = {code: is_silence(Message(Error(code), reply_to=ORDER)) for code in range(9)}
    assert {code for code, silent in errors.items() if silent} == {3, 4, 5}
    assert is_silence(None) and not is_silence(reply())


@pytest.mark.parametrize("missing", ["arrays", "metrics", "config"])
def test_a_missing_record_is_refused(missing: str) -> None:
    assert f"'{missing}'" in refused(reply(drop=(missing,)))


def test_a_record_of_another_kind_is_refused() -> None:
    assert "'arrays'" in refused(reply(record={"arrays": ConfigRecord({})}))


@pytest.mark.parametrize("found", [[], ["net"], ["subnet", "more"]])
def test_wrong_array_names_are_refused(found: list[str]) -> None:
    arrays = ArrayRecord({name: Array(flat()) for name in found})
    assert "names" in refused(reply(record={"arrays": arrays}))


@pytest.mark.parametrize("stale", [2, 4, -3])
def test_another_round_is_refused(stale: int) -> None:
    said = refused(reply(metrics={"round": stale}))
    assert f"round {stale} in place of 3" in said


def test_no_round_is_refused() -> None:
    assert "round None" in refused(reply(drop=("round",)))


@pytest.mark.parametrize("other", [Named(2).to_json(), "", "{}"])
def test_another_architecture_is_refused(other: str) -> None:
    said = refused(reply(texts={"architecture": other}))
    assert "architecture" in said and Named(1).to_json() in said


def test_no_architecture_is_refused() -> None:
    assert "architecture None" in refused(reply(drop=("architecture",)))


@pytest.mark.parametrize(
    "shape", [(LENGTH - 1,), (LENGTH + 1,), (0,), (1, LENGTH), (LENGTH, 1), ()]
)
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    said = refused(reply(np.zeros(shape, np.float32)))
    assert f"({LENGTH},)" in said and str(shape) in said


NUMBERS = ("float16", "float32", "float64", "int16", "int32", "uint16", "bool", ">f4", "c8", "V2")


@pytest.mark.parametrize(
    ("dtype", "found"),
    [(d, n) for d in WIRE_DTYPES for n in NUMBERS if np.dtype(n) != numpy_dtype(d)],
)
def test_another_dtype_is_refused(dtype: str, found: str) -> None:
    said = refused(reply(np.zeros(LENGTH, found)), replace(EXPECTED, wire_dtype=dtype))
    assert "dtype" in said


def bad_numbers(dtype: str) -> list[np.ndarray]:
    found = []
    for number in (np.nan, np.inf, -np.inf):
        values = np.arange(LENGTH, dtype=np.float32)
        values[4] = number
        if dtype == "bfloat16":
            # The upper half of a float32's bits.
            found.append((values.view(np.uint32) >> 16).astype(np.uint16).view("V2"))
        else:
            found.append(values.astype(dtype).view(numpy_dtype(dtype)))
    return found


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(dtype: str, which: int) -> None:
    said = refused(reply(bad_numbers(dtype)[which]), replace(EXPECTED, wire_dtype=dtype))
    assert "not finite" in said


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
@pytest.mark.parametrize("where", [0, 2**16 - 1, 2**16, 2**16 + 6])
def test_every_number_is_looked_at(dtype: str, where: int) -> None:
    tensor = torch.zeros(2**16 + 7)
    assert finite(pack({"w": tensor}, dtype), dtype)
    tensor[where] = float("-inf")
    assert not finite(pack({"w": tensor}, dtype), dtype)


@settings(max_examples=200, deadline=None)
@given(bits=st.integers(0, 2**16 - 1))
def test_bfloat16_is_finite_where_the_float32_of_its_bits_is(bits: int) -> None:
    value = np.array([bits << 16], np.uint32).view(np.float32)
    sent = np.array([bits], np.uint16).view("V2")
    assert finite(sent, "bfloat16") == bool(np.isfinite(value).all())


SHAPE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x80\x04N.",
        b"PK\x03\x04 no archive",
        archive(),
        npy(SHAPE % b"7"),
        npy(SHAPE % b"-1"),
        npy(SHAPE % b"10000000000000"),
        npy(SHAPE % b"99999999999999999999999"),
        npy(b"{'descr': 'O', 'fortran_order': False, 'shape': (7,), }\n"),
        npy(b"{(((("),
        npy(b"\n  x\n y"),
    ],
    ids=[
        "empty",
        "garbage",
        "pickle",
        "broken-archive",
        "archive",
        "no-data",
        "negative",
        "terabytes",
        "overflow",
        "objects",
        "open-brackets",
        "indents",
    ],
)
def test_bytes_that_are_no_array_are_refused(data: bytes) -> None:
    array = Array(dtype="float32", shape=(LENGTH,), stype="numpy.ndarray", data=data)
    assert "array" in refused(reply(array))


def test_an_array_of_another_serialisation_is_refused() -> None:
    right = Array(flat())
    array = Array(dtype=right.dtype, shape=right.shape, stype="torch", data=right.data)
    assert "dtype" in refused(reply(array))


@pytest.mark.parametrize("key", ["num-examples", "loss", "seconds", "images", "mac-images"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.5, [1, 2]])
def test_metrics_out_of_range_are_refused(key: str, value: Any) -> None:
    assert f"metric {key}" in refused(reply(metrics={key: value}))


@pytest.mark.parametrize("key", ["num-examples", "seconds", "images", "mac-images"])
def test_a_missing_metric_is_refused(key: str) -> None:
    assert f"metric {key} = None" in refused(reply(drop=(key,)))


def test_a_loss_may_stay_on_its_node() -> None:
    assert check_reply(reply(drop=("loss",)), EXPECTED).loss is None


def test_a_node_says_itself_what_it_does_not_do() -> None:
    said = {"problem": "local-epochs = 5\n", "problem-code": "not-allowed"}
    for words, code in ((said, Refusal.NOT_ALLOWED), ({"problem": 7}, Refusal.NODE_PROBLEM)):
        answer = Message(RecordDict({"config": ConfigRecord(words)}), reply_to=ORDER)
        with pytest.raises(BadReply) as caught:
            check_reply(answer, EXPECTED)
        assert caught.value.refused.code == code and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "7",
        "null",
        "{}",
        "[[0]]",
        "[[0, 0.5]]",
        '[["a", {"accuracy": 4, "loss": 8}]]',
        '[[3, {"accuracy": 4, "loss": 8}]]',
        '[[-1, {"accuracy": 4, "loss": 8}]]',
        '[[0, {"accuracy": 8.5, "loss": 8}]]',
        '[[0, {"accuracy": -1, "loss": 8}]]',
        '[[0, {"accuracy": NaN, "loss": 8}]]',
        '[[0, {"accuracy": 4, "loss": Infinity}]]',
        '[[0, {"accuracy": 4, "loss": -1}]]',
        '[[0, {"accuracy": 4}]]',
        '[[0, {"accuracy": "much", "loss": 8}]]',
        '[[NaN, {"accuracy": 4, "loss": 8}]]',
        '[[0, {"accuracy": 4, "loss": 1' + "0" * 400 + "}]]",
        "[" * 100_000,
    ],
    ids=lambda text: text[:40] or "empty",
)
def test_a_bad_evaluation_is_dropped_and_the_weights_are_kept(text: str) -> None:
    message = reply(metrics={"evaluation-examples": 8}, texts={"evaluation": text})
    found = check_reply(message, EXPECTED)
    assert usable(found.evaluation, METRICS_READ) == ()


@pytest.mark.parametrize("count", [0, -3, 2.5, [1]])
def test_with_a_bad_number_of_examples_nothing_was_evaluated(count: Any) -> None:
    texts = {"evaluation": json.dumps(sent([[0, 0.5, 1.5]], 8))}
    message = reply(metrics={"evaluation-examples": count}, texts=texts)
    assert check_reply(message, EXPECTED).evaluation == ()


# Too much


class Sealed(Array):
    """An array that must not be decoded."""

    def numpy(self) -> Any:
        raise AssertionError("decoded")


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_a_reply_ten_times_too_large_is_refused_before_it_is_decoded(dtype: str) -> None:
    expected = replace(EXPECTED, shapes={"w": (1000,)}, wire_dtype=dtype)
    right = Array(flat(dtype, 1000))
    large = Array(flat(dtype, 10_000))
    parts = {"dtype": large.dtype, "shape": large.shape, "stype": large.stype}
    said = refused(reply(Sealed(**parts, data=large.data)), expected)
    item = numpy_dtype(dtype).itemsize
    assert said == f"size {10_000 * item + 128:,} bytes in place of at most {1000 * item + 1024:,}"
    assert len(right.data) == 1000 * item + 128
    assert check_reply(reply(right), expected).flat.size == 1000


def test_as_many_examples_as_declared_pass_and_one_more_is_refused() -> None:
    assert check_reply(reply(metrics={"num-examples": 11}), EXPECTED).examples == 11
    assert refused(reply(metrics={"num-examples": 12})) == (
        "metric num-examples = 12: the node declared 11"
    )
    assert "num-examples = 1e+09" in refused(reply(metrics={"num-examples": 10**9}))


def test_more_validation_images_than_declared_are_refused() -> None:
    assert refused(reply(metrics={"evaluation-examples": 10**9})) == (
        "metric evaluation-examples = 1e+09: the node declared 8"
    )


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([[0, {"loss": 1.0}], [2, {"loss": 2.0}]], 2),
        ([[0, {"loss": 1.0}], [0, {"loss": 2.0}]], 0),  # the same subnet twice
        ([[0, {"loss": 1e101}], [1, {"loss": 1.0}]], 1),
        ([[0, {"loss": float("inf")}], [1, {"loss": float("nan")}]], 0),
    ],
)
def test_a_subnet_is_counted_once_and_with_numbers_that_can_be(rows: list[Any], kept: int) -> None:
    told = {"evaluation-examples": 8}
    found = check_reply(reply(metrics=told, texts={"evaluation": json.dumps(rows)}), EXPECTED)
    assert len(found.evaluation) == kept


def test_an_endless_evaluation_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told, sums = {"evaluation-examples": 8}, {"accuracy": 0.12345678901234568, "loss": -1.79e99}
    rows = json.dumps([[index, sums] for index in range(3)])
    kept = check_reply(reply(metrics=told, texts={"evaluation": rows}), EXPECTED)
    assert len(kept.evaluation) == 3
    monkeypatch.setattr(
        "superfednas.server.round.check.json.loads", lambda text: pytest.fail("read")
    )
    long = reply(metrics=told, texts={"evaluation": json.dumps([[0, sums]] * 1000)})
    assert check_reply(long, EXPECTED).evaluation == ()


@pytest.mark.parametrize(
    "message",
    [
        reply(texts={"architecture": "x" * 10**6}),
        reply(metrics={"round": [7] * 10**6}),
        reply(metrics={"loss": [7] * 10**6}),
        reply(record={"arrays": ArrayRecord({"x" * 10**6: Array(flat())})}),
        Message(Error(5, "x" * 10**6), reply_to=ORDER),
    ],
    ids=["architecture", "round", "loss", "names", "error"],
)
def test_no_stranger_fills_the_log(message: Message) -> None:
    assert len(refused(message)) < 1000


def test_the_source_of_a_reply_is_cut() -> None:
    found = check_reply(reply(texts={"source": "x" * 10**6, "source-root": "/" * 10**6}), EXPECTED)
    assert len(found.source) == len(found.source_root) == 500
