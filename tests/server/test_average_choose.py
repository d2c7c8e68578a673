"""Robust averages within a run: who chooses, what stands in the row, arrival, resume."""

from pathlib import Path
from typing import Any

import pytest

from superfednas.common.settings import Scalar, SettingsError
from superfednas.records.folder import RunFolder
from superfednas.report.tables import Story, facts
from superfednas.server.average.robust import RobustAverage
from superfednas.server.average.rules import ROBUST
from superfednas.server.settings import check_settings
from superfednas.wire.flat import unpack
from tests.server.test_strategy import (
    Backwards,
    Interrupted,
    Interrupting,
    Quiet,
    Recorder,
    full_run,
    ready,
    rounds_of,
    same,
    timeless,
    train,
)
from tests.support.bad_clients import VICTIM, bad_client, hundredfold
from tests.support.rows import lines


@pytest.mark.parametrize("rule", ROBUST)
def test_robust_averages_have_no_beta_and_count_every_reply_once(rule: str) -> None:
    settings = check_settings({"averaging": rule})
    assert settings.beta() is None
    with pytest.raises(SettingsError, match=rf"weighting = 'examples'.*'{rule}'.*'uniform'"):
        check_settings({"averaging": rule, "weighting": "examples"})


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_the_state_is_what_merging_by_hand_gives(rule: str) -> None:
    recorder = Recorder()
    strategy = train({"averaging": rule, "rounds": 1, "trim-share": 0.5}, recorder)
    (row,), space = rounds_of(strategy), strategy.space
    average = RobustAverage(ready().state, rule, 0.5)
    for client in row["clients"]:
        shapes = space.shapes(space.parse(client["architecture"]))
        average.add(unpack(recorder.flat(1, client["client"]), shapes), 1.0)
    assert same(strategy.state, average.result())
    assert row["beta"] is None and {c["weight"] for c in row["clients"]} == {1.0}


def test_the_order_of_arrival_does_not_matter_even_if_it_is_not_waited_for() -> None:
    values: dict[str, Scalar] = {"averaging": "trimmed-mean"}
    backwards = values | {"fold-order": "arrival"}
    assert same(train(values).state, train(backwards, grid_class=Backwards).state)


@pytest.mark.parametrize(
    ("rule", "said"),
    [("clip", "was clipped to"), ("defl", "left out (critical period): its gradient norm")],
)
def test_what_is_done_to_a_reply_is_said_and_kept(rule: str, said: str) -> None:
    progress = Quiet()
    app = bad_client(hundredfold, {2})
    values: dict[str, Scalar] = {"averaging": rule, "clients-per-round": 4, "max-change": 1e6}
    strategy = train(values, app, clients=4, progress=progress)
    first, second = rounds_of(strategy)
    assert not any(said in (c["verdict"] or "") for c in first["clients"])
    verdicts = {c["client"]: c["verdict"] or "" for c in second["clients"]}
    assert [name for name, verdict in verdicts.items() if said in verdict] == [VICTIM]
    assert all(client["accepted"] for client in second["clients"])
    assert ("round 2", f"client {VICTIM}", said) in progress


@pytest.mark.slow
def test_a_resumed_run_remembers_what_defl_learned(tmp_path: Path) -> None:
    values: dict[str, Scalar] = {"rounds": 4, "averaging": "defl", "max-change": 1e6}
    app = bad_client(hundredfold, {1, 2, 3, 4})
    unbroken = full_run(tmp_path / "unbroken", values, app)
    assert any(c["verdict"] for r in lines(unbroken.rows()) for c in r.get("clients", []))
    told = dict(facts(Story.of(unbroken)))
    assert (told["averaging"], told["β"]) == ("defl", "none")
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        full_run(folder, values, app, progress=Interrupting(4))
    memory = RunFolder.open(folder).latest().memory["averaging"]
    assert len(memory["norms"]) == 3 and memory["bad"]
    resumed = full_run(folder, {"resume": str(folder)}, app)
    assert same(resumed.weights()[0], unbroken.weights()[0])
    assert timeless(lines(resumed.rows())) == timeless(lines(unbroken.rows()))


@pytest.mark.parametrize("part", ["averaging", "roster"])
def test_a_checkpoint_of_an_earlier_version_that_remembers_less_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        full_run(folder, None, progress=Interrupting(2))
    latest = RunFolder.latest

    def older(self: RunFolder) -> Any:
        point = latest(self)
        del point.memory[part]
        return point

    monkeypatch.setattr(RunFolder, "latest", older)
    assert full_run(folder, {"resume": str(folder)}).info["status"] == "finished"
