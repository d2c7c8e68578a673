"""The probe: the budget follows from the measured ladder, and what cannot fit is never tried."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from superfednas import cli
from superfednas.client.node_config import whole
from superfednas.deploy.fleet import budget as module
from superfednas.deploy.fleet.budget import (
    kept_numbers,
    probe,
    training_bytes,
    training_step,
    up_to,
)
from superfednas.nas.cost.costs import NothingFits
from superfednas.nas.cost.latency import LatencyError
from superfednas.nas.cost.timing import Timing
from superfednas.server.assign.client import Client
from superfednas.server.assign.policies import POLICIES
from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.tasks.images import Images
from superfednas.wire.order import LocalTraining

SPACE = load_space("resnet-tiny", in_channels=1, image_size=8)
RISING = ["smallest", "25%", "50%", "75%", "largest"]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Say how many milliseconds a step takes, by number of makers, in place of measuring."""
    wanted = {"factor": 1e-5}  # ms a MAC
    tried: list[Architecture] = []

    def step(space: SearchSpace, arch: Architecture, *_: object) -> object:
        tried.append(arch)
        return lambda: None

    def timed(makers: list, **_: object) -> list[Timing]:
        found = []
        for make in makers:
            make()
            found.append(wanted["factor"] * SPACE.macs(tried[-1]))
        return [Timing(ms, ms, 0.0, 1) for ms in found]

    monkeypatch.setattr(module, "training_step", step)
    monkeypatch.setattr(module, "timed", timed)
    return wanted


def test_the_budget_is_the_last_rung_whose_round_keeps_the_time(times: dict[str, float]) -> None:
    found = probe(SPACE, steps=10, seconds=1e9)
    assert [rung.name for rung in found.rungs] == RISING
    assert found.max_macs == SPACE.macs(SPACE.largest)
    assert found.max_params == SPACE.params(SPACE.largest)
    for rung in found.rungs:
        assert rung.step_ms == pytest.approx(1e-5 * rung.macs)
        assert rung.seconds == pytest.approx(1e-7 * rung.macs)
    third = found.rungs[2]
    for seconds, allowed in ((third.seconds, third), (0.999 * third.seconds, found.rungs[1])):
        bounded = probe(SPACE, steps=10, seconds=seconds)
        assert bounded.max_macs == allowed.macs
        assert bounded.node_config == f"max-macs={allowed.macs} max-params={found.max_params}"


def test_a_fast_rung_above_a_slow_one_does_not_count(
    times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [Timing(ms, ms, 0.0, 1) for ms in (1.0, 5.0, 2.0, 5.0, 2.0)]
    monkeypatch.setattr(module, "timed", lambda makers, **_: slow)
    found = probe(SPACE, steps=1000, seconds=3.0)
    assert found.max_macs == SPACE.macs(SPACE.smallest)


def test_what_needs_too_much_memory_is_never_tried(
    times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_ladder = probe(SPACE, steps=1, seconds=1e9).rungs
    needs = sorted(rung.bytes for rung in whole_ladder)
    built: list[int] = []
    step = module.training_step
    monkeypatch.setattr(
        module,
        "training_step",
        lambda space, arch, *a: built.append(SPACE.params(arch)) or step(space, arch),
    )
    found = probe(SPACE, steps=1, seconds=1e9, memory=needs[-1] - 1, share=1.0)
    assert found.max_params < SPACE.params(SPACE.largest)
    assert max(built) == found.max_params
    assert probe(SPACE, steps=1, seconds=1e9, memory=needs[-1], share=1.0).max_params == max(
        rung.params for rung in whole_ladder
    )
    with pytest.raises(NothingFits, match="memory = 1,000 bytes"):
        probe(SPACE, steps=1, seconds=1, memory=1000)


def test_where_nothing_keeps_the_time_the_least_is_told(times: dict[str, float]) -> None:
    with pytest.raises(NothingFits, match="the smallest takes") as error:
        probe(SPACE, steps=10, seconds=1e-9)
    assert error.value.nearest["seconds"] == pytest.approx(1e-7 * SPACE.macs(SPACE.smallest))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"seconds": -1.0}, {"threads": 0}, {"share": 0.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LatencyError, match=f"{next(iter(wrong))} = "):
        probe(SPACE, **({"steps": 1, "seconds": 1.0} | wrong))  # type: ignore[arg-type]


def test_a_budget_ends_before_the_first_that_does_not_fit() -> None:
    archs = {str(seed): SPACE.parse(f"random:{seed}") for seed in range(9)}
    rising = sorted(archs, key=lambda name: SPACE.macs(archs[name]))
    kept = up_to(archs, SPACE.macs, lambda name: name != rising[4])
    assert list(kept) == rising[:4]


class Small(SearchSpace):
    """Two convolutions whose layers can be counted by hand."""

    name = "small"
    genes = (1,)

    def decode(self, choices: object) -> Architecture:
        return SPACE.smallest

    def module(self, arch: Architecture) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),  # 4 × 8 × 8
            nn.ReLU(),  # as many
            nn.AdaptiveAvgPool2d(1),  # 4
            nn.Flatten(),  # 4
            nn.Linear(4, 2),  # 2
        )


def test_the_memory_of_training_by_hand() -> None:
    space = Small(Images(2, 1, 8))
    kept = 64 + 256 + 256 + 4 + 4 + 2
    assert kept_numbers(space, space.smallest) == kept
    params = 36 + 10
    plain = LocalTraining(batch_size=3)
    assert training_bytes(space, space.smallest, plain) == 4 * (4 * params + 2 * 3 * kept)
    heavy = LocalTraining(batch_size=3, momentum=0.9)
    assert training_bytes(space, space.smallest, heavy) == 4 * (5 * params + 2 * 3 * kept)


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_a_step_trains_and_stays_finite(norm: str) -> None:
    space = load_space("resnet-tiny", in_channels=1, image_size=8, norm=norm)
    step = training_step(space, space.smallest, LocalTraining(batch_size=4), torch.device("cpu"))
    (module_,) = (
        c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, nn.Module)
    )
    before = [p.detach().clone() for p in module_.parameters()]
    for _ in range(3):
        step()
    after = list(module_.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_verb_prints_a_node_config_that_the_node_and_the_server_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "budget.json"
    arguments = ["probe", "--space", "resnet-tiny", "--in-channels", "1", "--image-size", "8"]
    arguments += ["--steps", "1", "--seconds", "600", "--batch-size", "2", "--ladder", "2"]
    arguments += ["--measuring", "0.1"]
    cli.app([*arguments, "--out", str(out)], standalone_mode=False)
    line = capsys.readouterr().out.strip().splitlines()[-1]
    node = dict(entry.split("=") for entry in line.split())
    macs, params = whole(node, "max-macs"), whole(node, "max-params")
    policy = POLICIES["tracking-sandwich"](SPACE, 0)
    assert policy.eligible(Client("kitchen", {"macs": macs, "params": params}, 1))
    written = json.loads(out.read_text())
    assert written["node-config"] == line
    assert [rung["name"] for rung in written["rungs"]] == ["smallest", "largest"]
    with pytest.raises(ValueError, match="exists already"):
        cli.app([*arguments, "--out", str(out)], standalone_mode=False)
