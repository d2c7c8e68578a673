"""Hand a message to the node's worker: what Flower's short-lived ClientApp process does.

Nothing here imports torch or another module of the rooms. A worker (:mod:`client.worker`) serves
one app folder; it is started by the first message to that folder's app, or when the last one has
ended, and listens on a Unix socket in a folder that only this user can enter.

On the socket: an empty line from the worker once it takes the connection; then the request and the
answer, each one line of JSON followed by the bytes of its arrays. Nothing is pickled.
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

# The environment variable in which `superfednas node` names its folder, and the file there that is
# locked for as long as the node lives.
FOLDER_VARIABLE = "SUPERFEDNAS_NODE"
NODE_LOCK = "node.lock"
CLIENT_RAISED = 2  # Flower's code of an error reply for what a ClientApp raises
_ROOT = Path(__file__).resolve().parent.parent
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


class WorkerError(RuntimeError):
    """The node's worker did not start, or ended while it worked."""


def hand_over(message: Message, context: Context, folder: Path) -> Message:
    """Let the node's worker answer a message.

    Parameters
    ----------
    message, context
        As Flower gives them to a ClientApp. Of the context, ids, node config and run config are
        handed over; its state is not.
    folder
        The node's folder.

    Returns
    -------
    Message
        The worker's reply. What its ClientApp raised is the error reply that Flower would make.

    Raises
    ------
    WorkerError
        Where no worker could be started, or it ended before it had answered.
    """
    path = socket_path(folder)
    stream = _greet(path)
    if stream is None:
        _start(path)
        stream = _greet(path)
    if stream is None:
        raise WorkerError("the node's worker could not start; why stands in the node's log")
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
        return Message(Error(CLIENT_RAISED, answer["error"]), reply_to=message)
    return Message(content, reply_to=message)


def socket_path(folder: Path) -> Path:
    """Return where the worker of this app's code listens. Short: Linux allows 107 bytes."""
    return folder / f"{hashlib.sha256(str(_ROOT).encode()).hexdigest()[:8]}.sock"


def message_of(request: Mapping[str, Any], content: RecordDict) -> tuple[Message, Context]:
    """Return the message and the context that a request stands for."""
    message: Message = Message(  # type: ignore[call-overload]
        content=content, metadata=Metadata(**request["metadata"])
    )
    return message, Context(state=RecordDict(), **request["context"])


def write(stream: BufferedIOBase, header: Mapping[str, Any], content: RecordDict) -> None:
    """Write a header and records; arrays keep the bytes that Flower carries."""
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
        Where the other side ended before all was there.
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
    }


def _greet(path: Path) -> BufferedIOBase | None:
    """Connect to the worker and wait until it takes the connection; None where there is none."""
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
    """Start a worker on a socket that takes connections from now on."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        subprocess.Popen(
            # -P: another app's rooms in the folder that the node runs in are not taken.
            [sys.executable, "-P", "-m", "client.worker", str(listener.fileno()), str(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # it outlives this process, and Ctrl-C in the node's terminal
        )
