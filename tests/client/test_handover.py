"""Messages between the ClientApp process and the node's worker."""

import fcntl
import io
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import superfednas.app
from superfednas.client.app import app
from superfednas.client.worker import handover, serve
from superfednas.client.worker.handover import (
    FOLDER_VARIABLE,
    NODE_LOCK,
    WorkerError,
    hand_over,
    read,
    socket_path,
    write,
)
from superfednas.common.settings import flatten
from superfednas.data import DataSettings
from superfednas.flower.codes import ErrorCode
from tests.support.processes import ROOT, wait_until
from tests.support.training import same
from tests.support.training import train as run

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
numbers = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False))


def context(**node: int | str) -> Context:
    return Context(run_id=7, node_id=3, node_config=dict(node), state=RecordDict(), run_config={})


def message(kind: str = MessageType.QUERY, **order: object) -> Message:
    config = {**flatten(DataSettings()), "seed": 0, "device-classes": "", **order}
    content = RecordDict({"config": ConfigRecord(config)})
    return Message(content, dst_node_id=3, message_type=kind)


@settings(max_examples=60, deadline=None)
@given(
    values=arrays.arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    metrics=st.dictionaries(names, numbers, max_size=3),
    config=st.dictionaries(names, st.one_of(numbers, st.text(), st.booleans()), max_size=3),
)
def test_records_come_back_as_they_went(values, metrics, config) -> None:
    content = RecordDict({"a": ArrayRecord({"x": Array(values), "y": Array(values)})})
    content["m"], content["c"] = MetricRecord(metrics), ConfigRecord(config)
    stream = io.BytesIO()
    write(stream, {"seven": 7}, content)
    stream.seek(0)
    header, found = read(stream)
    assert header == {"seven": 7}
    assert found == content
    assert not stream.read()
    for length in {0, 1, len(stream.getvalue()) - values.nbytes - 1, len(stream.getvalue()) - 1}:
        with pytest.raises(EOFError):
            read(io.BytesIO(stream.getvalue()[:length]))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a node's folder; a pytest folder's name is too long for a socket."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def in_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[serve.Worker]]:
    """Start workers in a thread, when one is asked for."""
    started: list[serve.Worker] = []
    threads = []

    def start(path: Path) -> None:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        started.append(serve.Worker(listener.detach(), path, 0.2))
        threads.append(threading.Thread(target=started[-1].serve))
        threads[-1].start()

    monkeypatch.setattr(handover, "_start", start)
    yield started
    for thread in threads:
        thread.join()


def test_the_worker_answers_as_the_client_app_does(folder, in_thread) -> None:
    asked, where = message(), {"partition-id": 1, "num-partitions": 4}
    reply = hand_over(asked, context(**where), folder)
    assert reply.content == app(asked, context(**where)).content
    assert reply.content["config"]["examples"] > 0
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert hand_over(asked, context(**where), folder).content == reply.content
    assert len(in_thread) == 1


def test_what_a_client_remembers_comes_back_from_the_worker(folder, in_thread) -> None:
    memory, node = RecordDict(), {"partition-id": 1, "num-partitions": 4}
    where = context(**node)
    for session, accepted in ((5, True), (5, False), (4, False), (6, True)):
        asked = message(**{"secure-stage": "keys", "secure-session": session})
        reply = hand_over(asked, where, folder)
        assert reply.has_error() is not accepted
        if accepted:
            assert where.state != memory
            memory = RecordDict(dict(where.state))
        assert where.state == memory


def test_what_a_mod_remembers_stays_in_its_process(folder, in_thread) -> None:
    """Its bytes and lists are no JSON of ours, and no reason to fail."""
    where = context(**{"partition-id": 1, "num-partitions": 4})
    where.state["mod"] = ConfigRecord({"raw": b"\xff", "many": [1, 2]})
    where.state["weights"] = ArrayRecord({"a": Array(np.zeros(3, np.float32))})
    before = RecordDict(dict(where.state))
    reply = hand_over(message(**{"secure-stage": "keys", "secure-session": 5}), where, folder)
    assert not reply.has_error()
    assert {key: where.state[key] for key in before} == dict(before)
    assert len(where.state) == len(before) + 1


def test_a_worker_gets_the_whole_message_and_context(folder, in_thread, monkeypatch) -> None:
    seen = []
    echo = ClientApp()

    @echo.train()
    def train(message: Message, context: Context) -> Message:
        seen.append((message.metadata, context))
        return Message(message.content, reply_to=message)

    monkeypatch.setattr(serve, "app", echo)
    asked = message(MessageType.TRAIN)
    asked.content["arrays"] = ArrayRecord({"subnet": Array(np.arange(5, dtype=np.float32))})
    assert hand_over(asked, context(name="kitchen"), folder).content == asked.content
    assert seen == [(asked.metadata, context(name="kitchen"))]


def test_clipping_and_a_mod_around_the_hand_over_are_the_same(folder, in_thread, monkeypatch):
    """The order's bound is kept in the worker, the mod works in the process that hands on."""
    values, around = {"rounds": 1, "dp-clip": 0.01}, ClientApp()
    around.query()(superfednas.app.query)
    around.train(mods=[LocalDpMod(0.005, 0.0, 0.5, 1e-5)])(superfednas.app.train)
    alone = [run(values, app) for app in (superfednas.app.client_app, around)]
    assert not in_thread
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    handed = [run(values, app) for app in (superfednas.app.client_app, around)]
    assert in_thread
    assert [same(a.state, b.state) for a, b in zip(alone, handed, strict=True)] == [True, True]
    assert not same(alone[0].state, alone[1].state)
    assert not same(alone[0].state, run({"rounds": 1}).state)


def test_what_a_client_raises_is_told_as_flower_tells_it(folder, in_thread) -> None:
    reply = hand_over(message(), context(), folder)
    with pytest.raises(Exception, match="this node has no name") as raised:
        app(message(), context())
    assert reply.has_error()
    assert reply.error.code == ErrorCode.RAISED
    assert reply.error.reason == f"{type(raised.value)}:<'{raised.value}'>"


def test_an_idle_worker_ends_and_the_next_message_starts_another(folder, in_thread) -> None:
    where = {"partition-id": 0, "num-partitions": 2}
    first = hand_over(message(), context(**where), folder)
    wait_until(lambda: not socket_path(folder).exists(), 20, "the idle worker's end")
    assert hand_over(message(), context(**where), folder).content == first.content
    assert len(in_thread) == 2


def test_a_stale_socket_is_replaced(folder, in_thread) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path(folder)))
    reply = hand_over(message(), context(**{"partition-id": 0, "num-partitions": 2}), folder)
    assert not reply.has_error()
    assert len(in_thread) == 1


def test_a_worker_that_cannot_start_is_an_error(folder, monkeypatch) -> None:
    monkeypatch.setattr(handover, "_start", lambda path: None)
    with pytest.raises(WorkerError, match="could not start"):
        hand_over(message(), context(), folder)


@pytest.mark.processes
def test_a_worker_outlives_messages_but_neither_its_death_nor_its_node(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos._exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    where = {"partition-id": 0, "num-partitions": 2}
    deadly = message(MessageType.TRAIN, space="deadly:Space")
    deadly.content["arrays"] = ArrayRecord({"subnet": Array(np.zeros(1, np.float32))})

    def workers() -> list[psutil.Process]:
        return [
            each
            for each in psutil.process_iter(["cmdline"])
            if str(socket_path(folder)) in (each.info["cmdline"] or [])
        ]

    with (folder / NODE_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = hand_over(message(), context(**where), folder)
        (before,) = workers()
        assert Path(before.environ()["PYTHONPATH"].split(os.pathsep)[0]) == ROOT
        with pytest.raises(WorkerError, match="ended while it worked"):
            hand_over(deadly, context(**where), folder)
        wait_until(lambda: before not in workers(), 20, "the worker's death")
        assert hand_over(message(), context(**where), folder).content == first.content
        (after,) = workers()
        assert before != after
    wait_until(lambda: after not in workers(), 20, "the worker's end with its node")
    wait_until(lambda: not folder.exists(), 20, "the end of the node's folder")
