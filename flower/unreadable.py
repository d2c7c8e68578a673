"""Replies that cannot be decoded: each is an error in place of that one reply, whoever pulls it.

Whatever a node pushes, the SuperLink stores: it compares objects with their hashes, not with what
they should hold. Flower decodes them where they are pulled and raises whatever its decoder raises,
so that one node could end a run for all.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
from flwr.app import Array, Error, Message, Metadata

from superfednas.flower.codes import OwnCode

_SAID = 500  # characters of an untrusted text that are repeated
_SUPERLINK = 1  # its node id
# gRPC's words where both sides are well and the one answer is not: it cannot be put together (a
# node chooses the tree of its objects), or be read.
_OF_THE_ANSWER = ("Exception calling application", "Exception deserializing response")

_this_thread = threading.local()


def unreadable(asked: str, why: str) -> Message:
    """Return the error that stands for a reply.

    Parameters
    ----------
    asked
        Id of the message that it was to answer.
    why
        Why it cannot be used; a stranger's text, of which little is kept.
    """
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=_SUPERLINK,
        dst_node_id=_SUPERLINK,
        reply_to_message_id=asked,
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="system",
    )
    error = Error(OwnCode.UNREADABLE, f"the reply cannot be read: {why[:_SAID]}")
    return Message(metadata=metadata, error=error)  # type: ignore[call-overload, no-any-return]


def readable(reply: object, asked: str) -> Message:
    """Return what was pulled if it is a message about ``asked``, else the error in its place.

    The metadata of a reply are its node's own words: it may name another node's message.
    """
    if not isinstance(reply, Message):
        return unreadable(asked, f"it is a {type(reply).__name__}, not a message")
    if reply.metadata.reply_to_message_id != asked:
        return unreadable(asked, "it names another message")
    return reply


def concerns_one_reply(error: Exception) -> bool:
    """Return whether an exception of a pull is about what was pulled, not about the connection."""
    if isinstance(error, grpc.RpcError):
        details = error.details() if isinstance(error, grpc.Call) else ""
        return str(details or "").startswith(_OF_THE_ANSWER)
    return not isinstance(error, OSError)


@contextmanager
def arrays_of_at_most(size: int) -> Iterator[None]:
    """Within, this thread decodes arrays of ``size`` bytes in all, or of what their chunks hold.

    An array lists its chunks by number: a list of a megabyte can name one of 5 MiB half a million
    times, and many arrays can share it. Needs :func:`bound_arrays`.
    """
    _this_thread.bound = _Bound(size)
    try:
        yield
    finally:
        del _this_thread.bound


def bound_arrays() -> str | None:
    """Make Flower's decoder of arrays keep to :func:`arrays_of_at_most`.

    Returns
    -------
    str or None
        If this Flower decodes arrays in another way: what is missing. Nothing is changed then.
    """
    kind: Any = Array
    inflate = getattr(kind, "inflate", None)
    if inflate is None:
        return "this Flower has no Array.inflate"
    if getattr(inflate, "bounded", False):
        return None

    def bounded(
        cls: type[Array], object_content: bytes, children: dict[str, Any] | None = None
    ) -> Array:
        bound = getattr(_this_thread, "bound", None)
        if bound is not None:
            bound.count(object_content, children or {})
        return cast(Array, inflate.__func__(cls, object_content, children))

    bounded.bounded = True  # type: ignore[attr-defined]
    kind.inflate = classmethod(bounded)
    return None


class _Bound:
    """The bytes that the arrays of one message may take."""

    def __init__(self, size: int) -> None:
        self._size, self._taken = size, 0
        self._chunks: dict[str, int] = {}

    def count(self, content: bytes, chunks: dict[str, Any]) -> None:
        """Raise ``ValueError`` where an array takes more than is left."""
        head, _, body = content.partition(b"\0")
        numbered = head.decode().split(" ")[1].split(",")
        self._chunks |= {identifier: len(chunk.data) for identifier, chunk in chunks.items()}
        listed = json.loads(body)["arraychunk_ids"]
        self._taken += sum(self._chunks[numbered[number]] for number in listed)
        if self._taken > max(self._size, sum(self._chunks.values())):
            raise ValueError("its arrays repeat their bytes beyond the size of what was sent")
