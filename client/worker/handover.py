"""The hand-over of a message to the node's worker, by Flower's short-lived ClientApp process.

Nothing here imports torch or another module of the rooms. A worker
(:mod:`superfednas.client.worker.serve`) serves one app folder. It is started by the first message
to that folder's app, or after the last worker has ended, and listens on a Unix socket in a folder
that only this user can enter.

On the socket, the worker sends an empty line once it accepts the connection; then come the request
and the answer, each one line of JSON followed by the bytes of its arrays. Nothing is pickled.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)

from superfednas import ROOT
from superfednas.flower.codes import ErrorCode

# The environment variable in which `superfednas node` names its folder, and the file there that
# stays locked while the node is alive.
FOLDER_VARIABLE = "SUPERFEDNAS_NODE"
NODE_LOCK = "node.lock"
_METADATA = (
    "run_id",
    "message_id",
    "src_node_id",
    "dst_node_id",
    "reply_to_message_id",
    "group_id",
    "created_at",
    "ttl",
    "message_type",
)


def on_a_node() -> bool:
    """Return whether this process answers for a SuperNode, and not in a simulation."""
    return FOLDER_VARIABLE in os.environ or Path(sys.argv[0]).stem == "flwr-clientapp"


class WorkerError(RuntimeError):
    """The node's worker did not start, or ended while working."""


def hand_over(message: Message, context: Context, folder: Path) -> Message:
    """Let the node's worker answer a message.

    Parameters
    ----------
    message, context
        As Flower passes them to a ClientApp. Of the context's state, configs of scalars are handed
        over, and come back.
    folder
        The node's folder.

    Returns
    -------
    Message
        The worker's reply. An exception in its ClientApp becomes the error reply that Flower would
        make.

    Raises
    ------
    WorkerError
        If no worker could be started, or it ended before it answered.
    """
    path = socket_path(folder)
    stream = _greet(path)
    if stream is None:
        _start(path)
        stream = _greet(path)
    if stream is None:
        raise WorkerError("the node's worker could not start; the node's log says why")
    with stream:
        try:
            write(stream, _request(message, context), message.content)
            answer, content = read(stream)
        except (OSError, EOFError):
            raise WorkerError(
                "the node's worker ended while it worked on this message (out of memory?); the "
                "next message starts another"
            ) from None
    if "error" in answer:
        return Message(Error(ErrorCode.RAISED, answer["error"]), reply_to=message)
    restore_state(context.state, answer["state"])
    return Message(content, reply_to=message)


def socket_path(folder: Path) -> Path:
    """Return the socket path of this app's worker; short, because Linux allows 107 bytes."""
    return folder / f"{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}.sock"


def message_of(request: Mapping[str, Any], content: RecordDict) -> tuple[Message, Context]:
    """Return the message and the context of a request."""
    message: Message = Message(  # type: ignore[call-overload]
        content=content, metadata=Metadata(**request["metadata"])
    )
    context = Context(state=RecordDict(), **request["context"])
    restore_state(context.state, request["state"])
    return message, context


def state_of(state: RecordDict) -> dict[str, dict[str, Any]]:
    """Return a context's configs of scalars as JSON values; others' bytes and lists stay here."""
    return {
        name: dict(record)
        for name, record in state.items()
        if isinstance(record, ConfigRecord)
        and all(isinstance(value, bool | int | float | str) for value in record.values())
    }


def restore_state(state: RecordDict, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write configs that :func:`state_of` has returned into a context's state."""
    for name, values in configs.items():
        state[name] = ConfigRecord(dict(values))


def write(stream: BufferedIOBase, header: Mapping[str, Any], content: RecordDict) -> None:
    """Write a header and records; arrays keep the bytes that Flower sends."""
    records: dict[str, dict[str, Any]] = {"arrays": {}, "metrics": {}, "configs": {}}
    blobs = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            records["arrays"][name] = {
                key: [array.dtype, list(array.shape), array.stype, len(array.data)]
                for key, array in record.items()
            }
            blobs += [array.data for array in record.values()]
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "configs"
            records[kind][name] = dict(record)
    stream.write(json.dumps({"header": header, "records": records}).encode() + b"\n")
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read(stream: BufferedIOBase) -> tuple[dict[str, Any], RecordDict]:
    """Read what :func:`write` wrote.

    Raises
    ------
    EOFError
        If the other side ended before everything had arrived.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    found = json.loads(line)
    content = RecordDict()
    for name, entries in found["records"]["arrays"].items():
        arrays = {}
        for key, (dtype, shape, stype, size) in entries.items():
            data = stream.read(size)
            if len(data) != size:
                raise EOFError
            arrays[key] = Array(dtype, tuple(shape), stype, data)
        content[name] = ArrayRecord(arrays)
    for name, values in found["records"]["metrics"].items():
        content[name] = MetricRecord(values)
    for name, values in found["records"]["configs"].items():
        content[name] = ConfigRecord(values)
    return found["header"], content


def _request(message: Message, context: Context) -> dict[str, Any]:
    return {
        "metadata": {key: getattr(message.metadata, key) for key in _METADATA},
        "context": {
            "run_id": context.run_id,
            "node_id": context.node_id,
            "node_config": dict(context.node_config),
            "run_config": dict(context.run_config),
        },
        "state": state_of(context.state),
    }


def _greet(path: Path) -> BufferedIOBase | None:
    """Connect to the worker and wait until it accepts; None if there is no worker."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            stream = connection.makefile("rwb")
            if stream.readline() == b"\n":
                return stream
            stream.close()
        except (FileNotFoundError, ConnectionError):
            return None
    return None


def _start(path: Path) -> None:
    """Start a worker on a socket that accepts connections from now on."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        subprocess.Popen(
            # -P: another checkout of this project in the node's current folder is not used instead.
            [
                sys.executable,
                "-P",
                "-m",
                "superfednas.client.worker.serve",
                str(listener.fileno()),
                str(path),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # it outlives this process, and Ctrl-C in the node's terminal
        )
