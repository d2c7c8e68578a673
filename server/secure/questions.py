"""Questions of secure aggregation, as messages to the clients of a round."""

from collections.abc import Callable, Mapping, Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from superfednas.common.settings import Scalar
from superfednas.server.round.orders import RoundPlan
from superfednas.wire.order import CONFIG, PROTOCOL
from superfednas.wire.secure.parties import SESSION, STAGE


def questions(
    plan: RoundPlan,
    places: Sequence[int],
    session: int,
    stage: str,
    question: Callable[[int], Mapping[str, Scalar]],
) -> list[Message]:
    """Return the messages of one exchange.

    Parameters
    ----------
    plan
        The round's.
    places
        Positions in the plan of those who are asked.
    session, stage
        The round's session, and which of its exchanges this is.
    question
        What a client is asked beside these, by its position.
    """
    common: dict[str, Scalar] = {"protocol": PROTOCOL, STAGE: stage, SESSION: session}
    return [
        Message(
            RecordDict({CONFIG: ConfigRecord({**common, **question(index)})}),
            dst_node_id=plan.orders[index].node,
            message_type=MessageType.QUERY,
            group_id=str(plan.round),
        )
        for index in places
    ]
