"""Messages of a round: orders with their weights, serialised once per distinct subnet."""

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from superfednas.common.settings import flatten
from superfednas.server.round.encode import Outgoing
from superfednas.server.round.orders import SUPERNET, Order, RoundPlan
from superfednas.server.settings import Settings
from superfednas.supernet import Architecture, State
from superfednas.wire.order import ARRAYS, CONFIG, TrainOrder, encode_list

_Subnet = tuple[str, Architecture, int]  # of a target, and by how much its windows are shifted


def train_messages(
    plan: RoundPlan, states: Mapping[str, State], outgoing: Outgoing, s: Settings
) -> list[Message]:
    """Return one message per order.

    Parameters
    ----------
    plan
        The round's orders.
    states
        The targets; for one that is not among them, the supernet is used.
    outgoing
        Serialises.
    s
        The run's settings.
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
    # Copied for every client: Flower checks each key that is set, which takes longer.
    common = ConfigRecord({**flatten(order), **flatten(s.data)})
    ladder = [candidate.to_json() for candidate in plan.evaluate]
    records = _records(plan, states, outgoing)
    messages = []
    for one in plan.orders:
        config, text = common.copy(), one.arch.to_json()
        for key, value in {**one.local, "architecture": text}.items():
            config[key] = value
        # If windows are shifted, the ladder's subnets do not lie inside them.
        others = [] if one.shift else ladder
        wanted = ladder and one.client.tells_scores
        config["evaluate"] = encode_list([text, *others] if wanted else [])
        messages.append(
            Message(
                RecordDict({ARRAYS: records[_subnet(one)], CONFIG: config}),
                dst_node_id=one.node,
                message_type=MessageType.TRAIN,
                group_id=str(plan.round),
            )
        )
    return messages


def _records(
    plan: RoundPlan, states: Mapping[str, State], outgoing: Outgoing
) -> dict[_Subnet, ArrayRecord]:
    """Serialise every distinct subnet of a round."""
    records: dict[_Subnet, ArrayRecord] = {}
    for target in plan.targets:
        distinct = {_subnet(one): one.cut for one in plan.orders if one.target == target}
        state = states.get(target, states[SUPERNET])
        records |= zip(distinct, outgoing.records(state, distinct.values()), strict=True)
    return records


def _subnet(order: Order) -> _Subnet:
    return order.target, order.arch, order.shift
