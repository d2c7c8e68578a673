"""A round's plan, fixed before anyone replies, and the messages that carry it out."""

from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from server.assignment import Client
from server.outgoing import Outgoing
from server.replies import Expected
from server.settings import Settings
from supernet import Architecture, SearchSpace, State
from supernet.config import flatten
from supernet.wire import (
    ARRAYS,
    CONFIG,
    SUBNET,
    TrainOrder,
    encode_list,
)


@dataclass(frozen=True)
class RoundPlan:
    """What is fixed before anyone replies: who trains what, and with which weight."""

    round: int
    beta: float | None
    lr: float
    nodes: dict[str, int]
    assignment: dict[str, Architecture]
    favoured: list[str]
    weights: dict[str, float]
    clients: dict[str, Client]
    evaluate: list[Architecture]
    bytes_down: dict[str, int]

    def expected(self, index: int, space: SearchSpace, wire_dtype: str) -> Expected:
        """Return what reply number ``index`` must look like."""
        name = list(self.assignment)[index]
        arch, client = self.assignment[name], self.clients[name]
        return Expected(
            name,
            self.round,
            arch,
            space.shapes(arch),
            wire_dtype,
            1 + len(self.evaluate),
            client.examples or 0,
            client.validation or 0,
        )


def train_messages(plan: RoundPlan, state: State, outgoing: Outgoing, s: Settings) -> list[Message]:
    """Return one message a client: its subnet's weights, serialised once a distinct subnet.

    ``plan.bytes_down`` is filled with the bytes of each client's array.
    """
    order = TrainOrder(
        round=plan.round,
        seed=s.seed,
        wire_dtype=s.wire_dtype,
        torch_threads=s.torch_threads,
        device=s.device,
        space=s.space,
        local=replace(s.local, lr=plan.lr),
        privacy=s.privacy,
    )
    data = flatten(s.data)
    records: dict[Architecture, ArrayRecord] = {}
    messages = []
    for name, arch in plan.assignment.items():
        if arch not in records:
            records[arch] = outgoing.record(state, arch)
        plan.bytes_down[name] = len(records[arch][SUBNET].data)
        evaluate = [arch, *plan.evaluate] if plan.evaluate else []
        mine = replace(
            order,
            architecture=arch.to_json(),
            evaluate=encode_list([candidate.to_json() for candidate in evaluate]),
        )
        config = ConfigRecord({**flatten(mine), **data})
        messages.append(
            Message(
                RecordDict({ARRAYS: records[arch], CONFIG: config}),
                dst_node_id=plan.nodes[name],
                message_type=MessageType.TRAIN,
                group_id=str(plan.round),
            )
        )
    return messages
