"""A method with feedback of a user's own: two candidates, two groups of clients, one is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import MessageType

from superfednas.common.settings import Scalar
from superfednas.records.folder import RunFolder
from superfednas.server.round.orders import SUPERNET
from superfednas.supernet import State
from tests.extend.keep_the_better import KeepTheBetter, StillFast, StillSlow
from tests.processes.test_kill import comparable
from tests.support.processes import ROOT, environment, train_command, wait_until
from tests.support.training import Recorder, Row, fold_by_hand, order_of, rounds_of, same, train

pytestmark = pytest.mark.slow

CLIENTS, LR = 4, 0.1
FEEDBACK: dict[str, Scalar] = {
    "rounds": 4,
    "clients-per-round": CLIENTS,
    "evaluate-every": 1,
    "evaluate-on": "clients",
    "lr": LR,
    "local-steps": 12,
    "partition": "iid",  # or what one group learns could be worse than nothing for the other
}


def told(recorder: Recorder, number: int) -> dict[str, float]:
    """Return the learning rate that each client was told in a round."""
    return {
        message.metadata.dst_node_id: config["lr"]
        for message in recorder.orders
        if message.metadata.message_type == MessageType.TRAIN and order_of(message) == number
        for config in [message.content.config_records["config"]]
    }


def group(row: Row, name: str) -> list[Row]:
    return [client for client in row["clients"] if client["target"] == name]


@pytest.mark.parametrize(
    ("kind", "better"), [(StillFast, "slow"), (StillSlow, "fast")], ids=lambda value: str(value)
)
def test_the_better_of_two_candidates_is_kept(kind: type[KeepTheBetter], better: str) -> None:
    recorder = Recorder()
    method = f"{kind.__module__}:{kind.__qualname__}"
    values = FEEDBACK | {"assignment": "fixed", "architecture": "smallest", "method": method}
    strategy = train(values, recorder, clients=CLIENTS)
    assert strategy.method.state() == {"rate": LR, "kept": [better, better]}

    states: dict[str, State] = {SUPERNET: strategy.space.init(3)}
    for row in rounds_of(strategy):
        number = row["round"]
        for name in kind.factors:
            of = group(row, name)
            assert len(of) == CLIENTS / 2 and all(client["accepted"] for client in of)
            for client in of:  # node n has partition n - 1
                rate = told(recorder, number)[int(client["client"]) + 1]
                assert rate == LR * kind.factors[name]
            updates = {c["client"]: recorder.flat(number, c["client"]) for c in of}
            start = states.get(name, states[SUPERNET])
            alike = {"clients": of, "beta": None}
            states[name] = fold_by_hand(strategy.space, start, alike, updates)
        if number % 2 == 0:
            states = {SUPERNET: states[better]}
    assert same(strategy.state, states[SUPERNET]) and set(strategy.states) == {SUPERNET}
    first, second = ({c["client"] for c in group(row, better)} for row in rounds_of(strategy)[:2])
    assert not first & second  # the groups change sides


@pytest.mark.processes
def test_killed_within_a_block_and_resumed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(Path(__file__).with_name("keep_the_better.py"), mine / "my_method.py")
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    env = environment(tmp_path, PYTHONPATH=path)
    settings = FEEDBACK | {"rounds": 5, "local-steps": 6, "method": "my_method:KeepTheBetter"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(train_command(whole, **settings), env=env, cwd=mine, check=True, timeout=300)

    command = train_command(broken, **settings)
    for trained in (1, 3):  # each the first round of a block: the candidates are on the disk alone
        running = subprocess.Popen(
            command, env=env, cwd=mine, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        point = broken / "checkpoints" / f"round-{trained:06d}.safetensors"
        wait_until(point.exists, 200, f"the checkpoint of round {trained}")
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not (broken / "supernet.safetensors").exists(), "killed too late to show anything"
        command = [sys.executable, "-m", "superfednas.cli", "train", f"--resume={broken}"]
    subprocess.run(command, env=env, cwd=mine, check=True, timeout=300)

    log = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [row["round"] for row in log if row["event"] == "resumed"] == [1, 3]
    ended, unbroken = RunFolder.open(broken).latest(), RunFolder.open(whole).latest()
    assert same(ended.state, unbroken.state) and ended.memory == unbroken.memory
    assert (
        set(ended.beside) == set(KeepTheBetter.factors) and len(ended.memory["method"]["kept"]) == 2
    )
    assert all(same(ended.beside[name], unbroken.beside[name]) for name in ended.beside)
    assert comparable(whole) == comparable(broken)


def test_secure_aggregation_refuses_its_states_beside_the_supernet() -> None:
    values = FEEDBACK | {
        "secure-aggregation": True,
        "method": f"{KeepTheBetter.__module__}:KeepTheBetter",
    }
    with pytest.raises(ValueError, match="secure-aggregation"):
        train(values, clients=CLIENTS)
