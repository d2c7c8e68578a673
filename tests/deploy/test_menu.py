"""Menus of elastic files: what a plan or a ladder puts into them, and in which direction."""

from dataclasses import replace

import pytest

from superfednas.deploy.device.menu import Menu, ladder_menu, plan_menu
from superfednas.nas.cost.costs import Costs
from superfednas.nas.plan import Entry, Plan
from tests.support.strategies import space

OF = space()
ARCHS = {name: OF.parse(name) for name in ("smallest", "random:1", "random:2", "largest")}
SCORES = {"smallest": 0.4, "random:1": 0.1, "random:2": 0.3, "largest": 0.2}


def entry(which: str, name: str = "", score: float | None = None) -> Entry:
    return Entry.of(ARCHS[which], Costs(OF), name=name, score=score)


def plan(**scorer: object) -> Plan:
    return Plan(
        run="",
        weights="",
        rounds=0,
        space={},
        limits={},
        against="",
        scorer=scorer,
        data={},
        engine="exact",
        exact=True,
        looked_at=0,
        seed=0,
        seconds={},
        chosen=entry("random:1", "chosen", SCORES["random:1"]),
        front=tuple(entry(which, score=score) for which, score in SCORES.items()),
        ladder=(entry("smallest", "smallest"), entry("largest", "largest")),
    )


@pytest.mark.parametrize(
    ("better", "best"), [("more", "smallest"), ("less", "random:1"), (None, "smallest")]
)
def test_the_best_of_a_plans_menu_is_the_best_by_its_metric(better: str | None, best: str) -> None:
    metric = {"metric": {"name": "any", "better": better}} if better else {}
    menu = plan_menu(OF, plan(name="measured", **metric))
    assert len(menu) == len(ARCHS)
    sign = -1 if better == "less" else 1
    found = {row["architecture"]: row["score"] for row in menu}
    assert found == {ARCHS[which].to_json(): sign * score for which, score in SCORES.items()}
    assert Menu(OF, menu).best({}) == ARCHS[best]


def test_a_plans_menu_has_names_and_every_cost_of_the_plan() -> None:
    chosen = entry("random:1", "chosen", 0.5)
    timed = replace(chosen, costs=dict(chosen.costs) | {"latency": 7.5})
    menu = Menu(OF, plan_menu(OF, replace(plan(), chosen=timed, front=())))
    assert menu.named("chosen") == ARCHS["random:1"]
    assert menu.named("largest") == ARCHS["largest"] and menu.named("random:1") is None
    assert menu.entries[ARCHS["random:1"]]["latency"] == 7.5
    for arch, row in menu.entries.items():
        assert all(row[name] == value for name, value in Costs(OF).all(arch).items())


def test_a_subnet_of_two_rungs_is_listed_once() -> None:
    rungs = {"smallest": OF.smallest, "25%": OF.smallest, "largest": OF.largest}
    menu = ladder_menu(OF, rungs)
    assert [row["architecture"] for row in menu] == [OF.smallest.to_json(), OF.largest.to_json()]
    assert menu[1]["name"] == "largest" and menu[0]["name"] in rungs
