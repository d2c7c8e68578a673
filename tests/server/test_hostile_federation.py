"""A thousand hostile replies, answers and files against runs in progress.

Each run ends well, and with the bits of the run in which the hostile node answers with an error
wherever it was refused. The seeds are kept: what is drawn from them is the same every time.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from superfednas.records.folder import RunFolder
from tests.support.attackers import Tried
from tests.support.damage import damaged
from tests.support.hostile import assert_harmless
from tests.support.hostile_federation import (
    HOSTILE,
    drawn,
    events_in,
    failing,
    hostile_grid,
    quick_client,
    rounds_in,
)
from tests.support.hostile_replies import REPLIES, Spoil, answers
from tests.support.training import App, as_flower, same

FIRST, *OTHERS = (11, 12, 13, 14, 15)
SEEDS = [FIRST, *(pytest.param(seed, marks=pytest.mark.slow) for seed in OTHERS)]
ROUNDS = 144  # of each seed, with a hostile reply each
EVERY = 6  # rounds from one interruption, after which a file is damaged, to the next
NEWCOMERS = 64  # of each seed, one a round
VALUES = {"clients-per-round": 3, "min-nodes": 3, "max-failures": 0, "seed": 5}

pytestmark = pytest.mark.attack("a run in progress")


def run(folder: Path, app: App, rounds: int = ROUNDS, **more: Any) -> None:
    as_flower(VALUES | {"rounds": rounds, "run-dir": str(folder)}, app, clients=3, **more)


def hostile_name(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a round's row says of the hostile node."""
    (found,) = [client for client in row["clients"] if client["client"] == "1"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", SEEDS)
def test_hostile_replies_and_damaged_files_change_nothing(
    seed: int, tmp_path: Path, tried: Tried
) -> None:
    recipes: dict[int, Spoil] = dict(enumerate(drawn(REPLIES, ROUNDS, seed), 1))
    assert len(recipes) == ROUNDS
    attacked, chance = tmp_path / "attacked", random.Random(seed)
    files = interrupted(attacked, quick_client(replies=recipes), chance)
    rows = {row["round"]: hostile_name(row) for row in rounds_in(attacked)}
    assert sorted(rows) == list(range(1, ROUNDS + 1))
    refused = {number: row["refusal"] for number, row in rows.items() if not row["accepted"]}
    assert not [recipes[n] for n in rows.keys() - refused.keys() if recipes[n].breaks]
    assert all(code for code in refused.values())

    whole = tmp_path / "whole"
    run(whole, quick_client(replies=recipes | dict.fromkeys(refused, failing)))
    (after, rounds), (right, _) = (RunFolder.open(f).weights() for f in (attacked, whole))
    assert rounds == ROUNDS and same(after, right)
    assert {c for row in rounds_in(whole) for c in accepted(row)} >= {"0", "2"}
    for name in ("metrics.jsonl", "log.jsonl"):
        assert_harmless((attacked / name).read_text())
    tried("replies to orders", len(refused), named=dict(Counter(map(str, refused.values()))))
    tried("files of a run that goes on", sum(files.values()), named=dict(files))


def accepted(row: dict[str, Any]) -> list[str]:
    return [client["client"] for client in row["clients"] if client["accepted"]]


def interrupted(folder: Path, app: App, chance: random.Random) -> Counter[str]:
    """Run with an interruption and a damaged file now and then; count what was said of each."""
    said: Counter[str] = Counter()
    for stop in range(EVERY, ROUNDS, EVERY):
        with pytest.raises(KeyboardInterrupt):
            go_on(folder, app, stop)
        points = sorted((folder / "checkpoints").glob("round-*.safetensors"))
        if chance.random() < 0.7:
            points[-1].write_bytes(damaged(points[-1], chance))
            said["checkpoint"] += 1
        else:
            said[tried_damage(folder, app, chance)] += 1
    go_on(folder, app, 0)
    return said


def go_on(folder: Path, app: App, stop: int) -> None:
    if folder.exists():
        as_flower({"resume": str(folder)}, app, clients=3, grid_class=hostile_grid(stop))
    else:
        run(folder, app, grid_class=hostile_grid(stop))


def tried_damage(folder: Path, app: App, chance: random.Random) -> str:
    """Go on with a damaged file of text: a sentence, or a run; then put the folder back."""
    name = chance.choice(["run.json", "metrics.jsonl", "log.jsonl"])
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (folder / name).write_bytes(damaged(folder / name, chance))
    last = rounds_in(copy)[-1]["round"]
    found = f"{name}: goes on"
    try:
        go_on(folder, app, last + 1)
    except KeyboardInterrupt:
        pass
    except ENDS as error:
        assert_harmless(str(error))
        found = f"{name}: refused"
    shutil.rmtree(folder)
    copy.rename(folder)
    return found


ENDS: tuple[type[BaseException], ...] = (SystemExit, ValueError)


@pytest.mark.parametrize("seed", SEEDS)
def test_hostile_answers_of_newcomers_change_nothing(
    seed: int, tmp_path: Path, tried: Tried
) -> None:
    ids = range(100, 100 + NEWCOMERS)
    said = dict(zip(ids, drawn(answers(), NEWCOMERS, seed), strict=True))
    newcomers = {node: node - 99 for node in ids}

    def answering(node: int) -> Callable[[Message], Message]:
        config = said[node]
        return lambda message: Message(
            RecordDict({"config": ConfigRecord(config)}), reply_to=message
        )

    attacked, whole = tmp_path / "attacked", tmp_path / "whole"
    everybody = {node: answering(node) for node in ids}
    nodes = {1: 0, HOSTILE: 1, 3: 2} | dict.fromkeys(ids, 9)
    configs = {node: {"partition-id": k, "num-partitions": 3} for node, k in nodes.items()}
    grid = hostile_grid(newcomers=newcomers)
    rounds = NEWCOMERS + 2
    run(attacked, quick_client(everybody), rounds, nodes=configs, grid_class=grid)
    joined = {int(row["node"]) for row in events_in(attacked, "joined")} & set(ids)
    told = everybody | {node: failing for node in ids if node not in joined}
    run(whole, quick_client(told), rounds, nodes=configs, grid_class=grid)
    (after, done), (right, _) = (RunFolder.open(f).weights() for f in (attacked, whole))
    assert done == rounds and same(after, right)
    assert [accepted(row) for row in rounds_in(attacked)] == [
        accepted(row) for row in rounds_in(whole)
    ]
    for name in ("metrics.jsonl", "log.jsonl"):
        assert_harmless((attacked / name).read_text())
    codes = Counter(str(row["refusal"]) for row in events_in(attacked, "left-out"))
    assert sum(codes.values()) >= 5
    tried("answers to queries", NEWCOMERS - len(joined), named=dict(codes))
