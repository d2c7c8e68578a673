"""Three network namespaces as three machines: a slow line, and a plug that is pulled.

``pytest -n 0 -m faults -s tests/processes/test_namespaces.py``, as root with iproute2.
"""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from superfednas.wire.order import SpaceOptions
from tests.support.faulty import (
    NODE,
    NODES,
    answered,
    lost,
    rows,
    running,
    told,
    wait_for_end,
    wait_for_round,
)
from tests.support.namespaces import Machines, machines, unavailable
from tests.support.processes import BIN, ROOT, Fleet, environment, process, superlink, wait_until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
DEADLINE = 20.0
KBIT = 2000
SPACE = SpaceOptions("resnet-tiny", "group", num_classes=10, in_channels=1, image_size=8).load()
# Each node's max-macs. `assignment='dynamic'` takes the cottage, by its name, from the smallest
# subnet in round 1 to ever larger ones.
BUDGETS = {"watch": 800_000, "phone": 1_250_000, "cottage": SPACE.macs(SPACE.largest)}
NAMES = list(BUDGETS)
COTTAGE = NAMES.index("cottage")
NUMPY_HEADER = 128  # of the one flat array that goes to a client


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def env(home: Path) -> dict[str, str]:
    return environment(home, PYTHONPATH=str(ROOT))


@contextlib.contextmanager
def fleet(home: Path, env: dict[str, str], network: Machines) -> Iterator[Fleet]:
    """Run a SuperLink here and a node in every namespace, each with a home of its own."""
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(superlink(home, env, host=network.host))
        for number, (name, budget) in enumerate(BUDGETS.items()):
            node = [
                *NODE,
                "--insecure",
                f"--superlink={found.address}",
                "--clientappio-api-address=127.0.0.1:9094",
                f'--node-config=name="{name}" max-macs={budget} partition-id={number} '
                f"num-partitions={NODES}",
            ]
            own = home / name
            own.mkdir()
            line = network.command(number, node)
            running_node = process(
                line, environment(own, PYTHONPATH=str(ROOT)), own, own / "node.log"
            )
            found.node_commands.append(line)
            found.nodes.append(stack.enter_context(running_node))
        yield found


def bundle_bytes(home: Path, env: dict[str, str]) -> int:
    """Return the size of the app's file, which every node gets once a run."""
    build = [str(BIN / "flwr"), "build", "--app", str(ROOT)]
    subprocess.run(build, env=env, cwd=home, check=True, timeout=120, capture_output=True)
    (bundle,) = home.glob("*.fab")
    return bundle.stat().st_size


def test_three_machines_of_which_one_has_a_slow_line(home: Path, env: dict[str, str]) -> None:
    values: dict[str, object] = {
        "rounds": 16,
        "assignment": "dynamic",
        "round-timeout": DEADLINE,
        "local-steps": 20,
    }
    with machines(NODES) as network:
        network.rate(COTTAGE, KBIT)
        began = time.monotonic()
        with fleet(home, env, network) as found, running(home, env, found, values) as started:
            done = wait_for_end(home, started)
        seconds = time.monotonic() - began
        wire = [(network.received(number), network.sent(number)) for number in range(NODES)]
    assert len(done) == values["rounds"]
    # The deadline is what closes a round that the slow line is too slow for; nobody else is late.
    missed = [row for row in done if lost([row])]
    assert missed and {name for _, name in lost(done)} == {"cottage"}
    assert answered(done, "cottage")
    for row in missed:
        reasons = [c["reason"] for c in row["clients"] if not c["accepted"]]
        assert reasons == [f"no reply within {DEADLINE:g} s"]
        assert DEADLINE <= row["seconds"] < DEADLINE + 5
    # Bytes are those of the assigned subnets, in the books and on the wire.
    bundle = bundle_bytes(home, env)
    print(
        f"\n{seconds:.0f} s, the app's file {bundle:,} bytes. Node, budget, asked, missed, "
        "parameters; bytes down: recorded, seen; bytes up: recorded, in late replies, seen"
    )
    for number, (name, budget) in enumerate(BUDGETS.items()):
        parts = {
            row["round"]: part for row in done for part in row["clients"] if part["client"] == name
        }
        sizes = {}
        for asked, part in parts.items():
            subnet = SPACE.parse(part["architecture"])
            assert SPACE.macs(subnet) <= budget
            sizes[asked] = 4 * SPACE.params(subnet)
            assert part["bytes_down"] == sizes[asked] + NUMPY_HEADER
            assert part["bytes_up"] == sizes[asked] * part["accepted"]
        down = sum(part["bytes_down"] for part in parts.values())
        up = sum(part["bytes_up"] for part in parts.values())
        late = {entry["round"] for row in done for entry in row["late"] if entry["client"] == name}
        late_up = sum(sizes[asked] for asked in late)
        received, sent = wire[number]
        missed_by = sum(not part["accepted"] for part in parts.values())
        counts = (budget, len(parts), missed_by, sum(sizes.values()) // 4)
        counts += (down, received, up, late_up, sent)
        print(f"| {name} |", " | ".join(f"{each:,}" for each in counts), "|")
        # What was not answered by the end has come or gone in part, if at all.
        whole = [p["bytes_down"] for asked, p in parts.items() if p["accepted"] or asked in late]
        assert sum(whole) + bundle < received < most_on_the_wire(down + bundle, seconds)
        assert up + late_up < sent < most_on_the_wire(sum(sizes.values()), seconds)


def most_on_the_wire(payload: int, seconds: float) -> float:
    """Return what a payload may become: headers and acknowledgements, and Flower's questions."""
    return 1.08 * payload + 5_000 * seconds


@pytest.mark.parametrize(
    ("moment", "away", "rounds"),
    [("at work", 30, 60), ("at work", 75, 100), ("in its reply", 30, 60)],
)
def test_a_node_is_cut_off_and_comes_back(
    home: Path, env: dict[str, str], moment: str, away: float, rounds: int
) -> None:
    """For 30 s, past the deadline, or for 75 s, after which Flower calls it offline."""
    replying = moment == "in its reply"
    values: dict[str, object] = {
        "rounds": rounds,
        "assignment": "fixed",
        "architecture": "smallest",
        "round-timeout": DEADLINE,
        "local-steps": 20,
    }
    with (
        machines(NODES) as network,
        fleet(home, env, network) as found,
        running(home, env, found, values) as started,
    ):
        if replying:
            network.rate(COTTAGE, KBIT)
        wait_for_round(home, 2)
        if replying:
            upload = 4 * SPACE.params(SPACE.smallest)
            sent, before = network.sent(COTTAGE), len(rows(home))
            wait_until(lambda: network.sent(COTTAGE) - sent > upload / 2, 60, "half a reply")
            assert len(rows(home)) == before
        before = len(rows(home))
        network.cut(COTTAGE)
        since = time.monotonic()
        if replying:
            network.rate(COTTAGE, 0)
        wait_until(lambda: lost(rows(home)[before:]), 90, "the missing reply")
        wait_for_round(home, len(rows(home)) + 1)
        told(f"a node cut off from the network {moment}, past the deadline", since, "its replies")
        wait_until(lambda: time.monotonic() - since > away, away, "the return")
        assert started.poll() is None
        network.join(COTTAGE)
        back, absent = time.monotonic(), len(rows(home))
        wait_until(lambda: answered(rows(home)[absent:], "cottage"), 200, "the node's return")
        told(f"… and back after {away} s", back, "nothing")
        done = wait_for_end(home, started)
    assert {name for _, name in lost(done[before:])} == {"cottage"}
