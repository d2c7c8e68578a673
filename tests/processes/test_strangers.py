"""Strangers on a node's own machine: another process asks its ClientAppIo port for messages."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from flwr.common.grpc import create_channel
from flwr.proto.appio_pb2 import ClaimTaskRequest, PullPendingTasksRequest
from flwr.proto.clientappio_pb2_grpc import ClientAppIoStub
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.interceptors import (
    RuntimeVersionClientInterceptor,
    SuperExecAuthClientInterceptor,
)
from flwr.supercore.interceptors.superexec_auth_interceptor import CLIENTAPPIO_SUPEREXEC_METHODS

from tests.support.processes import ROOT, environment, fleet, flwr_run, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.attack]
NODE = (sys.executable, "-m", "superfednas.deploy.fleet.node", "0.5")


@dataclass
class Stranger:
    """Asks a port for whatever it gives, ever again, and notes what it was told."""

    address: str
    secret: bytes = b""
    refused: list[grpc.StatusCode] = field(default_factory=list)
    got: list[object] = field(default_factory=list)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        done = threading.Event()
        working = threading.Thread(target=self._ask, args=[done])
        working.start()
        try:
            yield
        finally:
            done.set()
            working.join(30)

    def _ask(self, done: threading.Event) -> None:
        interceptors = [RuntimeVersionClientInterceptor(component_name="SuperExec")]
        if self.secret:
            signing = SuperExecAuthClientInterceptor(
                master_secret=self.secret, protected_methods=CLIENTAPPIO_SUPEREXEC_METHODS
            )
            interceptors.append(signing)
        with create_channel(self.address, insecure=True, interceptors=interceptors) as channel:
            stub = ClientAppIoStub(channel)
            while not done.is_set():
                for task in self._try(stub.PullPendingTasks, PullPendingTasksRequest()):
                    self._try(stub.ClaimTask, ClaimTaskRequest(task_id=task.task_id))
                    self._try(stub.GetRun, GetRunRequest(run_id=task.run_id))
                self._try(stub.ClaimTask, ClaimTaskRequest(task_id=1))
                self._try(stub.GetRun, GetRunRequest(run_id=1))
                time.sleep(0.01)

    def _try(self, call, request):
        try:
            answer = call(request, timeout=5)
        except grpc.RpcError as error:
            self.refused.append(error.code())
            return []
        self.got.append(answer)
        return getattr(answer, "tasks", [])


def test_other_processes_get_no_message_of_a_node(tmp_path: Path) -> None:
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    settings: dict[str, object] = {
        "rounds": 3,
        "clients-per-round": 1,
        "min-nodes": 1,
        "assignment": "random",
        "local-steps": 1,
        "evaluate-every": 0,
        "run-dir": str(tmp_path / "run"),
    }
    with fleet(tmp_path, env, 1, NODE) as found:
        (option,) = [o for o in found.node_commands[0] if o.startswith("--clientappio")]
        log = tmp_path / "node0.log"
        wait_until(lambda: "SuperNode ID" in log.read_text(), 60, "the node's coming in")
        address = option.partition("=")[2]
        strangers = [Stranger(address), Stranger(address, b"a guess")]
        with strangers[0].at_work(), strangers[1].at_work():
            said = flwr_run(tmp_path, env, settings, 300)
    assert "run folder: " in said, said[-3000:]
    for stranger in strangers:
        assert stranger.got == []
        assert len(stranger.refused) > 100
        assert set(stranger.refused) == {grpc.StatusCode.UNAUTHENTICATED}
