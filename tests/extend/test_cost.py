"""A cost of one's own: energy, some picojoules a multiply-accumulate and some a byte moved.

Named with ``--costs`` it has an option, a limit that searches keep, a front and a place in the
report; in Python it is a limit like the others.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import superfednas
from superfednas.nas.cost.cost import COSTS, Cost
from superfednas.nas.cost.costs import Costs
from superfednas.nas.pipeline import Request
from superfednas.supernet import load_space
from superfednas.supernet.chain import Block
from superfednas.wire.order import SpaceOptions
from tests.extend.test_examples import superfednas as command
from tests.support.spaces import CROWDED

pytestmark = pytest.mark.slow

MODULE = '''
"""What a network draws from a battery."""

from superfednas.nas.cost.cost import Cost


class Energy(Cost):
    name = "energy"
    title, unit, scale = "microjoules an image", "µJ", 1e-6
    help = "Joules an image."

    def of_block(self, block):
        moved = block.weight_bytes + 4 * block.activations
        return 4.6e-12 * block.macs + 160e-12 * moved
'''
SPACE = ("--space", CROWDED, "--image-size", "8", "--in-channels", "1", "--num-classes", "3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "battery.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the module importable here, and forget its cost afterwards."""
    monkeypatch.syspath_prepend(str(folder))
    known = dict(COSTS)
    yield folder  # type: ignore[misc]
    COSTS.clear()
    COSTS.update(known)


def energies() -> dict[str, tuple[float, int]]:
    """Return the energy and the MACs of every network of the space, by its JSON."""
    of = load_space(CROWDED, image_size=8, in_channels=1, num_classes=3)
    found = {}
    for genes in itertools.product(*map(range, of.genes)):
        arch = of.decode(genes)
        moved = sum(4 * b.params + 4 * b.activations for b in of.blocks(arch))
        found[arch.to_json()] = 4.6e-12 * of.macs(arch) + 160e-12 * moved, of.macs(arch)
    return found


EVERY = energies()
MIDDLE = float(np.median([energy for energy, _ in EVERY.values()]))


def most_macs(limit: float) -> int:
    return max(macs for energy, macs in EVERY.values() if energy <= limit)


def test_the_option_appears_where_the_cost_is_named(folder: Path) -> None:
    help_text = command(folder, "search", "--costs", "battery:Energy", "--help").stdout
    assert "--max-energy" in help_text and "Joules an image." in help_text
    for option in ("macs", "params", "bytes", "memory", "latency"):
        assert f"--max-{option}" in help_text
    assert "--max-energy" not in command(folder, "search", "--help").stdout
    done = command(folder, "search", *SPACE, "--score", "macs", "--max-energy", "1")
    assert done.returncode == 2 and "--max-energy" in done.stderr


def test_the_command_keeps_the_limit(folder: Path) -> None:
    search = ("search", *SPACE, "--score", "macs", "--max-energy", str(MIDDLE))
    done = command(folder, *search, "--costs", "battery:Energy", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["exact"] and plan["limits"] == {"energy": MIDDLE}
    text = json.dumps(plan["chosen"]["architecture"], separators=(",", ":"))
    energy, macs = EVERY[text]
    assert plan["chosen"]["costs"]["energy"] == pytest.approx(energy)
    assert energy <= MIDDLE * (1 + 1e-9) and macs == most_macs(MIDDLE) < max(EVERY.values())[1]
    shown = command(folder, *search, "--costs=battery:Energy", "--out", "again.json")
    assert shown.returncode == 0, shown.stderr
    assert "microjoules an image" in shown.stdout and f"{MIDDLE / 1e-6:,.2f} µJ" in shown.stdout


def test_a_limit_that_cannot_be_kept_and_a_cost_that_is_none(folder: Path) -> None:
    least = min(energy for energy, _ in EVERY.values())
    search = ("search", *SPACE, "--score", "macs", "--costs")
    done = command(folder, *search, "battery:Energy", "--max-energy", str(least / 2))
    assert done.returncode == 1
    said = float(done.stderr.split("max-energy = ")[1].split()[0])
    assert least <= said <= least * 1.001
    done = command(folder, *search, "battery:Power", "--max-energy", "1")
    assert done.returncode == 1 and done.stderr.startswith("error: cost 'battery:Power'")
    assert "Traceback" not in done.stderr


def test_the_front_against_it_is_drawn_without_it(folder: Path) -> None:
    """The plan says how its costs are said: who draws it need not have them."""
    search = ("search", *SPACE, "--score", "macs", "--costs", "battery:Energy")
    done = command(folder, *search, "--pareto", "energy", "--json")
    assert done.returncode == 0, done.stderr
    from superfednas.nas.plan import Plan
    from superfednas.report import draw_plan

    plan = Plan.load(folder / "plan.json", trust_code=True)
    assert "energy" not in COSTS and plan.quantity("energy").say(2e-6) == "2.00 µJ"
    best = 0
    expected = []
    for energy, macs in sorted(EVERY.values()):
        if macs > best:
            best = macs
            expected.append((pytest.approx(energy), macs))
    assert [(e.costs["energy"], e.costs["macs"]) for e in plan.front] == expected
    assert [path for path in draw_plan(plan, folder, "drawn") if path.stat().st_size]


def test_in_python_it_is_a_limit_like_the_others(imported: Path) -> None:
    options = SpaceOptions(CROWDED, "group", 3, 1, 8)
    for engine in ("exact", "evolution"):
        plan, _ = superfednas.search_space(
            options,
            {"energy": MIDDLE},
            costs="battery:Energy",
            request=Request(score="macs", engine=engine),
            out=imported / f"{engine}.json",
        )
        assert plan.limits == {"energy": MIDDLE}
        assert plan.chosen.costs["energy"] <= MIDDLE * (1 + 1e-9)
        assert plan.chosen.costs["macs"] == most_macs(MIDDLE)
    assert isinstance(COSTS["energy"], Cost)
    of = options.load()
    block: Block = of.blocks(of.smallest)[0]
    assert Costs(of).kind("energy").of_block(block) == pytest.approx(
        4.6e-12 * block.macs + 160e-12 * (4 * block.params + 4 * block.activations)
    )
