"""Nothing that a node pushes is more than one reply that cannot be used."""

import json
import threading
import zlib
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from flwr.app import Array, Error, Message, MessageType, Metadata, RecordDict
from flwr.common.typing import RunNotRunningException
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from flwr.supercore.inflatable.inflatable_utils import ObjectIdNotPreregisteredError
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.flower.codes import OwnCode
from superfednas.flower.local_grid import LocalGrid
from superfednas.flower.prompt_grid import PromptGrid
from superfednas.flower.unreadable import arrays_of_at_most, bound_arrays
from superfednas.records.refusals import Refusal, of_flower
from tests.server.test_fuzz import spoilt
from tests.support.processes import wait_until
from tests.support.superlink import Link, grid_on, objects_of, order, right

pytestmark = pytest.mark.attack

KINDS = ("ArrayChunk", "Array", "ArrayRecord", "ConfigRecord", "MetricRecord", "RecordDict")
BODIES = st.sampled_from(
    [
        *(b"", b"[]", b"{}", b"null", b"\xff", b'{"a": 5}', b"[" * 5000, b"\x0a\x02\x0a\x00"),
        b'{"dtype": 5, "shape": 7, "stype": [], "arraychunk_ids": [-1]}',
        b'{"dtype": "f4", "shape": [], "stype": "", "arraychunk_ids": [99]}',
        b'{"dtype": "f4", "shape": [], "stype": "", "arraychunk_ids": [true, 0.5, null]}',
    ]
)


@st.composite
def contents(draw: st.DrawFn, ids: list[str], content: bytes) -> bytes:
    """Draw an object in place of one: another kind, other children, another body, or spoilt."""
    if draw(st.booleans()):
        return draw(spoilt(content))
    head, _, body = content.partition(b"\0")
    kind, children, _ = head.decode().split(" ")
    kind = draw(st.sampled_from([kind, kind, "Message", "Nothing", "", *KINDS]))
    children = draw(st.sampled_from([children, children, "", ids[-1], ",".join(ids), "abc"]))
    body = draw(st.one_of(st.just(body), BODIES, spoilt(body)))
    return f"{kind} {children} {len(body)}".encode() + b"\0" + body


def pulled(grid: PromptGrid, ids: Iterable[str]) -> dict[str, Message]:
    """Pull until every message is answered, and that each only once."""
    waiting, found = set(ids), dict[str, Message]()

    def look() -> bool:
        for reply in grid.pull_messages(sorted(waiting)):
            answered = reply.metadata.reply_to_message_id
            waiting.remove(answered)
            found[answered] = reply
        return not waiting

    wait_until(look, 20, "the replies")
    return found


@given(data=st.data())
@settings(max_examples=300, deadline=None)
@pytest.mark.slow
def test_whatever_is_pushed_is_one_reply_to_what_was_asked_and_harms_no_other(
    data: st.DataObject,
) -> None:
    link = Link()
    grid = PromptGrid(grid_on(link))
    victim, other = order(1), order(2)
    asked, others = grid.push_messages([victim, other])
    reply = right(victim)
    objects = objects_of(reply)
    ids = sorted(objects)
    spoils = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=2, unique=True))
    changed = {i: data.draw(contents(ids, objects[i])) for i in spoils}
    link.answer(victim, reply, changed)
    link.answer(other, right(other, 2))
    if data.draw(st.integers(0, 9)) == 0:
        del link.objects[data.draw(st.sampled_from(spoils))]
    found = pulled(grid, [asked, others])
    assert found.keys() == {asked, others}
    mine = found[asked]
    assert mine.has_error() or isinstance(mine.content, RecordDict)
    assert found[others].content == right(other, 2).content
    if mine.has_error() and mine.error.code == OwnCode.UNREADABLE:
        assert of_flower(mine.error.code) == Refusal.UNREADABLE
        assert len(mine.error.reason) < 600


def test_a_reply_that_names_anothers_message_answers_nothing_but_its_own() -> None:
    """The metadata of a decoded reply are its node's own words."""
    link = Link()
    grid = PromptGrid(grid_on(link))
    mine, theirs = order(1), order(2)
    asked, others = grid.push_messages([mine, theirs])
    link.answer(mine, right(theirs))
    link.answer(theirs, right(theirs))
    found = pulled(grid, [asked, others])
    assert found[asked].error.code == OwnCode.UNREADABLE
    assert not found[others].has_error()


def bomb(arrays: int, repeats: int) -> tuple[Message, dict[str, bytes]]:
    """Return a reply of few bytes, and those of its objects that blow it up."""
    asked = order(1)
    reply = right(asked)
    for name in range(arrays):
        reply.content.array_records["arrays"][f"a{name}"] = Array(
            "uint8", (name,), "numpy.ndarray", bytes(4096)
        )
    changed = {}
    for identifier, content in objects_of(reply).items():
        head, _, body = content.partition(b"\0")
        if head.startswith(b"Array "):
            about = json.loads(body)
            about["arraychunk_ids"] *= repeats
            longer = json.dumps(about).encode()
            kind, children, _ = head.decode().split(" ")
            changed[identifier] = f"{kind} {children} {len(longer)}\0".encode() + longer
    return reply, changed


@pytest.mark.parametrize(("arrays", "repeats"), [(1, 20_000), (2000, 1)])
def test_an_array_that_repeats_itself_is_not_decoded(arrays: int, repeats: int) -> None:
    assert bound_arrays() is None
    link = Link()
    grid = PromptGrid(grid_on(link))
    asked = order(1, 1 << 20)
    (identifier,) = grid.push_messages([asked])
    link.answer(asked, *bomb(arrays, repeats))
    (reply,) = pulled(grid, [identifier]).values()
    assert reply.error.code == OwnCode.UNREADABLE and "repeat" in reply.error.reason


def test_an_array_of_many_equal_chunks_is_decoded_if_it_is_no_larger_than_what_was_sent() -> None:
    assert bound_arrays() is None
    link = Link()
    grid = PromptGrid(grid_on(link))
    size = 25 << 20  # five chunks, all of zeros
    asked = order(1, size)
    (identifier,) = grid.push_messages([asked])
    link.answer(asked, Message(RecordDict(dict(asked.content)), reply_to=asked))
    (reply,) = pulled(grid, [identifier]).values()
    assert len(reply.content.array_records["arrays"]["subnet"].data) == size


class Rpc(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """What a stub raises."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


Rpc.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
OF_ONE = [
    *(ValueError("x"), KeyError("Nonsense"), TypeError("x"), IndexError("x"), AttributeError("x")),
    *(DecodeError("x"), zlib.error("x"), RecursionError("x"), MemoryError(), AssertionError()),
    *(UnexpectedObjectContentError("a", "b"), ObjectIdNotPreregisteredError("a")),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    json.JSONDecodeError("x", "y", 0),
    Rpc(grpc.StatusCode.INTERNAL, "Exception deserializing response!"),
    Rpc(grpc.StatusCode.UNKNOWN, "Exception calling application: maximum recursion depth"),
]
OF_ALL = [
    *(ConnectionError("x"), TimeoutError("x"), OSError("x"), RunNotRunningException()),
    *(KeyboardInterrupt(), SystemExit(1), grpc.RpcError("x")),
    Rpc(grpc.StatusCode.UNAVAILABLE, "Connection refused"),
    Rpc(grpc.StatusCode.UNKNOWN, "Stream removed"),
    Rpc(grpc.StatusCode.PERMISSION_DENIED, ""),
]


class Raising:
    """A grid that raises where one message is pulled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def pull_messages(self, ids: list[str]) -> list[Message]:
        if ids == ["bad"]:
            raise self.error
        about = Metadata(1, "", 2, 1, ids[0], "", 0.0, 1.0, MessageType.TRAIN)
        return [Message(metadata=about, content=RecordDict())]  # type: ignore[call-overload]


@pytest.mark.parametrize("error", OF_ONE, ids=lambda e: type(e).__name__)
def test_what_a_decoder_raises_is_an_error_of_that_message(error: Exception) -> None:
    grid: Any = Raising(error)
    found = pulled(PromptGrid(grid), ["good", "bad"])
    assert found["bad"].error.code == OwnCode.UNREADABLE
    assert not found["good"].has_error()


@pytest.mark.parametrize("error", OF_ALL, ids=lambda e: type(e).__name__)
def test_what_the_connection_raises_is_raised(error: BaseException) -> None:
    grid: Any = Raising(error)
    with pytest.raises(type(error)):
        pulled(PromptGrid(grid), ["good", "bad"])


@pytest.mark.parametrize("answer", [None, 5, RecordDict(), "another's"])
def test_in_process_too_an_answer_is_a_message_about_what_was_asked(answer: Any) -> None:
    def app(message: Message, context: Any) -> Any:
        if answer == "another's":
            about = Metadata(1, "", 2, 1, "local-2", "", 0.0, 1.0, MessageType.TRAIN)
            return Message(metadata=about, content=RecordDict())  # type: ignore[call-overload]
        return answer

    grid = LocalGrid(app, {1: {}}, {})
    try:
        (identifier,) = grid.push_messages([order(1)])
        (reply,) = grid.pull_messages([identifier])
    finally:
        grid.close()
    assert reply.metadata.reply_to_message_id == identifier
    assert reply.error.code == OwnCode.UNREADABLE


def test_an_error_in_place_of_a_reply_stays_what_it_is() -> None:
    def app(message: Message, context: Any) -> Message:
        return Message(Error(6, "no"), reply_to=message)

    grid = LocalGrid(app, {1: {}}, {})
    try:
        (reply,) = PromptGrid(grid).send_and_receive([order(1)], timeout=5)
    finally:
        grid.close()
    assert (reply.error.code, reply.error.reason) == (6, "no")


def test_the_bound_is_of_the_thread_that_pulls() -> None:
    assert bound_arrays() is None
    reply, changed = bomb(0, 3000)
    (content,) = changed.values()
    whole = reply.content.array_records["arrays"]["subnet"]
    chunks = dict(whole.slice_array())
    assert len(Array.inflate(content, chunks).data) == 3000 * len(whole.data)
    with arrays_of_at_most(2 * len(whole.data)), pytest.raises(ValueError, match="repeat"):
        Array.inflate(content, chunks)
    found: list[int] = []

    def decode() -> None:
        found.append(len(Array.inflate(content, chunks).data))

    with arrays_of_at_most(0):
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
    assert found == [3000 * len(whole.data)]
