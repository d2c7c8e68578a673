"""A round's plan, fixed before anyone replies, and the messages that carry it out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from server.assignment import Client
from server.outgoing import Outgoing
from server.replies import Expected
from server.settings import Settings
from supernet import Architecture, State
from supernet.config import flatten
from supernet.slicing import Cut
from supernet.wire import (
    ARRAYS,
    CONFIG,
    SUBNET,
    TrainOrder,
    encode_list,
)


@dataclass(frozen=True)
class RoundPlan:
    """What is fixed before anyone replies: who trains what, and with which weight.

    ``cuts`` has one entry a distinct architecture; ``moved`` are those that lie elsewhere in the
    supernet than usual, so that the ladder's subnets are not inside them.
    """

    round: int
    beta: float | None
    lr: float
    nodes: dict[str, int]
    assignment: dict[str, Architecture]
    cuts: Mapping[Architecture, Cut]
    favoured: list[str]
    weights: dict[str, float]
    clients: dict[str, Client]
    evaluate: list[Architecture]
    bytes_down: dict[str, int]
    moved: frozenset[Architecture] = frozenset()

    def expected(self, index: int, wire_dtype: str) -> Expected:
        """Return what reply number ``index`` must look like."""
        name = list(self.assignment)[index]
        arch, client = self.assignment[name], self.clients[name]
        return Expected(
            name,
            self.round,
            arch,
            self.cuts[arch].shapes,
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
        precision=s.precision,
        space=s.space,
        local=replace(s.local, lr=plan.lr),
        subnets=s.subnets,
        privacy=s.privacy,
    )
    # Copied for every client: Flower looks at each key that is set, which takes longer.
    common = ConfigRecord({**flatten(order), **flatten(s.data)})
    ladder = [candidate.to_json() for candidate in plan.evaluate]
    distinct = list(dict.fromkeys(plan.assignment.values()))
    made = outgoing.records(state, [plan.cuts[arch] for arch in distinct])
    records: dict[Architecture, ArrayRecord] = dict(zip(distinct, made, strict=True))
    messages = []
    for name, arch in plan.assignment.items():
        plan.bytes_down[name] = len(records[arch][SUBNET].data)
        config, text = common.copy(), arch.to_json()
        config["architecture"] = text
        others = [] if arch in plan.moved else ladder
        config["evaluate"] = encode_list([text, *others] if ladder else [])
        messages.append(
            Message(
                RecordDict({ARRAYS: records[arch], CONFIG: config}),
                dst_node_id=plan.nodes[name],
                message_type=MessageType.TRAIN,
                group_id=str(plan.round),
            )
        )
    return messages
