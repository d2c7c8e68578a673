"""A Flower grid in one process: messages go straight to a ClientApp, without Ray or gRPC.

For ``superfednas train``, tests and debugging. The ClientApp is the same as in simulation and
deployment, and messages hold the same serialised arrays.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from superfednas.common.settings import Scalar
from superfednas.flower.codes import ErrorCode
from superfednas.flower.unreadable import readable

_PULL_SECONDS = 0.1


class LocalGrid(Grid):
    """Serve nodes from a thread pool.

    Parameters
    ----------
    app
        The ClientApp: called with a message and the node's context.
    node_configs
        Node id to node config.
    run_config
        The run's settings, which every node sees.
    workers
        Nodes served at the same time.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        node_configs: Mapping[int, Mapping[str, Scalar]],
        run_config: Mapping[str, Scalar],
        workers: int = 1,
    ) -> None:
        self._app = app
        self._run: Any = None
        self._number = itertools.count(1)
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config=dict(config),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node, config in node_configs.items()
        }
        self._locks = {node: threading.Lock() for node in node_configs}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="client")
        self._pending: dict[str, Future[Message]] = {}

    def set_run(self, run: Any) -> None:
        """Keep Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: they are always online."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the pool and return their ids, in order."""
        pushed = []
        for message in messages:
            given, identifier = message.metadata, f"local-{next(self._number)}"
            metadata = Metadata(
                run_id=1,
                message_id=identifier,
                src_node_id=1,
                dst_node_id=given.dst_node_id,
                reply_to_message_id="",
                group_id=given.group_id,
                created_at=given.created_at,
                ttl=given.ttl,
                message_type=given.message_type,
            )
            numbered = Message(content=message.content, metadata=metadata)  # type: ignore[call-overload]
            self._pending[identifier] = self._pool.submit(self._serve, numbered)
            pushed.append(identifier)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, after waiting a moment for the first."""
        asked = {i: self._pending[i] for i in message_ids if i in self._pending}
        done, _ = wait(asked.values(), timeout=_PULL_SECONDS, return_when=FIRST_COMPLETED)
        ready = [identifier for identifier, future in asked.items() if future in done]
        return [self._pending.pop(identifier).result() for identifier in ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return all replies that arrive within ``timeout`` seconds."""
        pushed = list(self.push_messages(messages))
        wait([self._pending[identifier] for identifier in pushed], timeout)
        return self.pull_messages(pushed)

    def close(self) -> None:
        """Stop the pool's threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self, message: Message) -> Message:
        """Call the ClientApp; an exception becomes an error reply, as in Flower."""
        node = message.metadata.dst_node_id
        try:
            with self._locks[node]:
                reply = self._app(message, self._contexts[node])
        except Exception as error:  # noqa: BLE001 (a client may raise anything)
            return Message(Error(ErrorCode.RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)
        return readable(reply, message.metadata.message_id)
