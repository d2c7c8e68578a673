"""Replies: a right one passes, each wrong one is refused with its reason, the queue keeps order."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy import Score
from server.replies import (
    BadReply,
    Expected,
    FoldQueue,
    check_reply,
    check_scores,
    finite,
    is_silence,
)
from supernet import Architecture
from supernet.wire import WIRE_DTYPES, numpy_dtype, pack


@dataclass(frozen=True)
class Named(Architecture):
    """An architecture that is only a number."""

    reply_number: int


ORDER = Message(RecordDict(), dst_node_id=7, message_type="train", group_id="3")
EXPECTED = Expected("5", 3, Named(1), {"w": (2, 2), "b": (3,)}, "float32", 3, 11, 8)
LENGTH = 2 * 2 + 3
METRICS = {
    "num-examples": 11,
    "loss": 0.5,
    "seconds": 0.25,
    "images": 33,
    "mac-images": 330,
    "round": 3,
}
TEXTS = {"architecture": Named(1).to_json(), "source": "abc", "source-root": "/app"}


def flat(dtype: str = "float32", size: int = LENGTH) -> np.ndarray:
    return pack({"w": torch.arange(size)}, dtype)


def reply(
    array: Array | np.ndarray | None = None,
    *,
    metrics: dict[str, Any] | None = None,
    texts: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    record: dict[str, Any] | None = None,
) -> Message:
    """Give a right reply with some parts changed, or left out."""
    array = flat() if array is None else array
    numbers = {k: v for k, v in (METRICS | (metrics or {})).items() if k not in drop}
    words = {k: v for k, v in (TEXTS | (texts or {})).items() if k not in drop}
    parts: dict[str, Any] = {
        "arrays": ArrayRecord({"subnet": array if isinstance(array, Array) else Array(array)}),
        "metrics": MetricRecord(numbers),
        "config": ConfigRecord(words),
    }
    parts = {key: part for key, part in parts.items() if key not in drop} | (record or {})
    return Message(RecordDict(parts), reply_to=ORDER)


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
    scores = [[0, 0.5, 1.5], [2, 1.0, 0.0]]
    message = reply(
        flat(dtype), metrics={"evaluation-examples": 8}, texts={"evaluation": json.dumps(scores)}
    )
    found = check_reply(message, replace(EXPECTED, wire_dtype=dtype))
    assert np.array_equal(found.flat, flat(dtype))
    assert found.flat.dtype == numpy_dtype(dtype)
    assert (found.examples, found.loss, found.seconds, found.images) == (11, 0.5, 0.25, 33)
    assert found.evaluation == ((0, 0.5, 1.5), (2, 1.0, 0.0))
    assert found.evaluation_examples == 8
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
    assert found.evaluation_examples == 0


# Wrong ones


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


@pytest.mark.parametrize("key", ["num-examples", "loss", "seconds", "images", "mac-images"])
def test_a_missing_metric_is_refused(key: str) -> None:
    assert f"metric {key} = None" in refused(reply(drop=(key,)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "7",
        "null",
        "{}",
        "[[0, 0.5]]",
        '[["a", 0.5, 1]]',
        "[[3, 0.5, 1]]",
        "[[-1, 0.5, 1]]",
        "[[0, 1.5, 1]]",
        "[[0, NaN, 1]]",
        "[[0, 0.5, NaN]]",
        "[[NaN, 0.5, 1]]",
        "[[Infinity, 0.5, 1]]",
        "[[0, 0.5, 1" + "0" * 400 + "]]",
        "[" * 100_000,
    ],
    ids=lambda text: text[:16] or "empty",
)
def test_a_bad_evaluation_is_dropped_and_the_weights_are_kept(text: str) -> None:
    found = check_reply(reply(texts={"evaluation": text}), EXPECTED)
    assert found.evaluation == ()


@pytest.mark.parametrize("count", [0, -3, 2.5, [1]])
def test_a_bad_number_of_evaluation_examples_counts_as_none(count: Any) -> None:
    assert (
        check_reply(reply(metrics={"evaluation-examples": count}), EXPECTED).evaluation_examples
        == 0
    )


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
    said = not_counted(scores(examples=9))
    assert said == "metric evaluation-examples = 9: the node declared 8"


def test_an_endless_evaluation_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0, 0.123456789012345678, -1.7976931348623157e308]] * 3
    kept = check_reply(reply(texts={"evaluation": json.dumps(rows)}), EXPECTED)
    assert len(kept.evaluation) == 3
    monkeypatch.setattr("server.replies.json.loads", lambda text: pytest.fail("read"))
    long = json.dumps([[0, 0.5, 1.0]] * 1000)
    assert check_reply(reply(texts={"evaluation": long}), EXPECTED).evaluation == ()


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


# Scores without weights


def scores(
    rows: Any = ((2, 1.0, 0.25), (0, 0.5, 1.5), (1, 0.0, 0.5)),
    examples: Any = 8,
    text: str | None = None,
    **changes: Any,
) -> Message:
    """Give a right reply to an order of three subnets, with some parts changed."""
    told = json.dumps(rows) if text is None else text
    return reply(
        metrics={} if examples is None else {"evaluation-examples": examples},
        texts={"evaluation": told, **changes},
        drop=("arrays", "round", "loss", "seconds", "images", "mac-images", "num-examples"),
    )


def not_counted(message: Message, ordered: int = 3) -> str:
    with pytest.raises(BadReply) as caught:
        check_scores(message, Named(1), ordered, 8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_right_scores_pass_in_any_order() -> None:
    found = check_scores(scores(), Named(1), 3, 8)
    assert found.examples == 8
    assert dict(found.scores) == {
        0: Score.of(4, 1.5, 8),
        1: Score.of(0, 0.5, 8),
        2: Score.of(8, 0.25, 8),
    }


@pytest.mark.parametrize("examples", [0, None])
def test_a_node_without_images_has_no_scores(examples: int | None) -> None:
    found = check_scores(scores((), examples), Named(1), 3, 8)
    assert (found.scores, found.examples) == ((), 0)


@pytest.mark.parametrize("examples", [-3, 2.5, [8], [8.0]])
def test_a_number_of_images_that_is_none_is_refused(examples: Any) -> None:
    assert f"evaluation-examples = {examples}: must be" in not_counted(scores(examples=examples))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0, 0.5, 1], [1, 0.5, 1]], "2 usable scores of 2 subnets"),
        ([[0, 0.5, 1], [1, 0.5, 1], [1, 0.5, 1]], "3 usable scores of 2 subnets"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 0.5, 1], [2, 0.6, 1]], "4 usable scores of 3 subnets"),
        ([[0, 0.5, 1], [1, 0.5, 1], [3, 0.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [-1, 0.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 1.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, -0.5, 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, float("nan"), 1]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 0.5, float("inf")]], "2 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, 0.5]], "0 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], None], "0 usable"),
        ([[0, 0.5, 1], [1, 0.5, 1], [2, "much", 1]], "0 usable"),
        ([], "0 usable"),
        ({"a": 1}, "0 usable"),
        (7, "0 usable"),
    ],
    ids=str,
)
def test_scores_that_are_not_one_for_each_subnet_are_refused(rows: Any, said: str) -> None:
    refusal = not_counted(scores(rows))
    assert said in refusal and "one for each of 3" in refusal


@pytest.mark.parametrize("text", ["", "no json", "[" * 100_000], ids=lambda text: text[:9] or "-")
def test_scores_that_cannot_be_read_are_refused(text: str) -> None:
    assert "0 usable" in not_counted(scores(text=text))


def test_scores_on_another_subnet_s_weights_are_refused() -> None:
    said = not_counted(scores(architecture=Named(2).to_json()))
    assert Named(2).to_json() in said and Named(1).to_json() in said


def test_a_failed_scoring_is_refused_with_its_code_and_reason() -> None:
    said = not_counted(Message(Error(2, "disk full"), reply_to=ORDER))
    assert "error 2" in said and "disk full" in said
    assert "could not load" in not_counted(Message(Error(1, "ImportError"), reply_to=ORDER))


@pytest.mark.parametrize("missing", ["metrics", "config"])
def test_scores_without_a_record_are_refused(missing: str) -> None:
    assert f"'{missing}'" in not_counted(reply(drop=(missing,)))


# The queue


def run_queue(queue: FoldQueue, order: list[int], absent: set[int]) -> list[tuple[int, int]]:
    """Put replies in an order of arrival; reply k holds k + 1 times the number k."""
    out = []
    for index in order:
        sent = None if index in absent else np.full(index + 1, index, np.float32)
        for turn, ready in queue.put(index, sent):
            assert (ready == turn).all()
            out.append((turn, len(ready)))
    return out


@settings(max_examples=150, deadline=None)
@given(
    order=st.integers(0, 8).flatmap(lambda n: st.permutations(range(n))),
    absent=st.sets(st.integers(0, 7)),
    limit=st.sampled_from([0, 4, 30, 10**6]),
    on_disk=st.booleans(),
)
def test_any_arrival_gives_assignment_order(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    absent: set[int],
    limit: int,
    on_disk: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "held"
    folder.mkdir(exist_ok=True)
    queue = FoldQueue(limit, folder if on_disk else None)
    found = run_queue(queue, list(order), absent)
    assert found == [(k, k + 1) for k in range(len(order)) if k not in absent]
    assert queue.held_bytes == 0
    assert not list(folder.iterdir())


def test_a_reply_is_handed_on_as_soon_as_its_turn_has_come() -> None:
    queue = FoldQueue(10**6, None)
    assert run_queue(queue, [2], set()) == []
    assert run_queue(queue, [0], set()) == [(0, 1)]
    assert run_queue(queue, [1], {1}) == [(2, 3)]


def test_beyond_the_limit_replies_wait_on_disk(tmp_path: Path) -> None:
    # Replies 3, 2, 1 have 16, 12, 8 bytes: with a limit of 20, 2 goes to disk and 1 does as well.
    queue = FoldQueue(20, tmp_path)
    held = []
    for index in (3, 2, 1):
        assert run_queue(queue, [index], set()) == []
        held.append((queue.held_bytes, len(list(tmp_path.iterdir()))))
    assert held == [(4 * 4, 0), (4 * 4, 1), (4 * 4, 2)]
    assert run_queue(queue, [0], set()) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert not list(tmp_path.iterdir())
    assert queue.held_bytes == 0


def test_without_a_folder_everything_waits_in_memory() -> None:
    queue = FoldQueue(0, None)
    assert run_queue(queue, [1], set()) == []
    assert queue.held_bytes == 2 * 4


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 1, 2]])
def test_out_of_order_everything_passes_through(tmp_path: Path, order: list[int]) -> None:
    queue = FoldQueue(0, tmp_path, in_order=False)
    found = [run_queue(queue, [index], {1}) for index in order]
    assert found == [[] if index == 1 else [(index, index + 1)] for index in order]
    assert not list(tmp_path.iterdir())


def test_what_waits_on_disk_comes_back_bit_for_bit(tmp_path: Path) -> None:
    values = np.array([np.nan, -0.0, 1e-42, np.inf], np.float32)
    queue = FoldQueue(0, tmp_path)
    assert list(queue.put(1, values)) == []
    ((turn, ready),) = queue.put(0, None)
    assert turn == 1
    assert ready.tobytes() == values.tobytes()
