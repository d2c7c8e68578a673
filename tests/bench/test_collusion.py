"""The benchmark of collusion: z as in the paper, and what colluding clients send."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from benchmarks.collusion import ATTACKERS, FALSE, Collusion, their_z
from superfednas.client.app import app as client_app
from superfednas.common.settings import Scalar
from superfednas.server.strategy import SupernetStrategy
from superfednas.supernet.boxes import extract
from superfednas.wire.flat import unpack
from tests.support.training import Quiet, node_configs, ready, rounds_of, same


def test_z_by_hand() -> None:
    # The paper's own example: 24 of 50 need two more, so Φ(z) = 48/50.
    assert their_z(50, 24) == pytest.approx(1.7507, abs=1e-4)
    # Two of ten need four more: Φ(z) = 6/10.
    assert their_z(10, 2) == pytest.approx(0.2533, abs=1e-4)


class Keeping(Collusion):
    """Keep what leaves the grid, by the client's name."""

    replies: dict[str, np.ndarray]

    def pull_messages(self, message_ids: Any) -> Any:
        found: list[Message] = list(super().pull_messages(message_ids))
        for reply in found:
            if reply.metadata.message_type == "train":
                flat = reply.content.array_records["arrays"]["subnet"].numpy()
                self.replies[str(reply.metadata.src_node_id - 1)] = flat
        return found


@pytest.mark.slow
@pytest.mark.attack
def test_colluding_clients_send_mean_less_deviation_and_are_within_the_rules() -> None:
    prepared = ready({"rounds": 1, "clients-per-round": 4})
    trained: dict[str, np.ndarray] = {}

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "train":
            flat = reply.content.array_records["arrays"]["subnet"].numpy()
            trained[str(context.node_config["partition-id"])] = flat.copy()
        return reply

    strategy = SupernetStrategy(prepared.settings, data=prepared.data, progress=Quiet())
    grid = Keeping(app, node_configs(4), {}, 1)
    grid.replies = {}
    grid.attack("alie", strategy.space)
    state = {name: tensor.clone() for name, tensor in prepared.state.items()}
    try:
        strategy.train(grid, prepared.state)
    finally:
        grid.close()
    (row,) = rounds_of(strategy)
    assert all(client["accepted"] for client in row["clients"])
    # The honest changes as arrays of the supernet's shapes, NaN where a subnet has nothing.
    honest, where = {}, {}
    for client in row["clients"]:
        arch = strategy.space.parse(client["architecture"])
        who, boxes = client["client"], strategy.space.boxes(arch)
        found = unpack(trained[who], strategy.space.shapes(arch))
        where[who] = (arch, boxes)
        honest[who] = {name: torch.full(t.shape, torch.nan).double() for name, t in state.items()}
        before = extract(state, boxes)
        for name, view in extract(honest[who], boxes).items():
            view.copy_(found[name].double() - before[name].double())
    for who, (arch, boxes) in where.items():
        sent = unpack(grid.replies[who], strategy.space.shapes(arch))
        before = extract(state, boxes)
        if who not in ATTACKERS:
            assert same(sent, unpack(trained[who], strategy.space.shapes(arch)))
            continue
        for name, tensor in sent.items():
            stack = torch.stack([changes[name] for changes in honest.values()]).numpy()
            false = torch.tensor(np.nanmean(stack, 0) - their_z(10, 2) * np.nanstd(stack, 0))
            expected = before[name].double() + extract({name: false}, {name: boxes[name]})[name]
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_every_false_change_is_what_its_name_says() -> None:
    own, mean, sd = torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([4.0])
    found = {name: float(make(own, mean, sd)) for name, make in FALSE.items()}
    assert found.pop("alie") == pytest.approx(2 - their_z(10, 2) * 4)
    assert found == {"alie-strong": -4.0, "ipm": -2.0, "turned": -3.0, "tenfold": 30.0}


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize(("averaging", "named"), [("history", {"0", "1"}), ("trimmed-mean", set())])
def test_two_that_send_minus_the_mean_are_named_by_their_histories(
    averaging: str, named: set[str]
) -> None:
    values: dict[str, Scalar] = {"averaging": averaging, "clients-per-round": 6, "local-steps": 4}
    prepared = ready(values)
    strategy = SupernetStrategy(prepared.settings, data=prepared.data, progress=Quiet())
    grid = Collusion(client_app, node_configs(6), {}, 1)
    grid.attack("ipm", strategy.space)
    try:
        strategy.train(grid, prepared.state)
    finally:
        grid.close()
    for row in rounds_of(strategy):
        assert all(client["accepted"] for client in row["clients"])
        left_out = {client["client"] for client in row["clients"] if client["verdict"]}
        assert left_out & set(ATTACKERS) == named, row["round"]
        assert averaging != "history" or left_out == named
