"""What Prometheus reads of a run."""

import re
from pathlib import Path

from server.exposition import Exposition
from tests.training import full_run

LINE = re.compile(r"(# (HELP|TYPE) .*|[a-z_]+(\{subnet=\"[^\"]+\"\})? -?[0-9.e+-]+)")


def exposition(rows: list[dict], rounds: int) -> str:
    found = Exposition()
    for row in rows:
        found.add(row)
    return found.text(rounds)


def values(text: str) -> dict[str, float]:
    lines = text.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), text
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    found = {name: float(value) for name, value in pairs}
    assert len(found) == len(pairs)
    return found


def client(*, accepted: bool) -> dict:
    given = {"accepted": accepted, "bytes_down": 30, "bytes_up": 20 * accepted}
    return given | ({"loss": 1.5} if accepted else {})


def test_the_numbers_are_those_of_the_rows() -> None:
    rows = [
        {"kind": "round", "round": 1, "seconds": 3.0, "clients": [client(accepted=True)] * 2},
        {
            "kind": "round",
            "round": 2,
            "seconds": 0.5,
            "clients": [client(accepted=True), client(accepted=False)],
            "late": [{}, {}],
        },
        {"kind": "evaluation", "trained_rounds": 2, "ladder": [{"name": "25%", "accuracy": 0.25}]},
    ]
    found = values(exposition(rows, 9))
    assert found.pop("superfednas_last_round_timestamp_seconds") > 1.7e9
    assert found == {
        "superfednas_round": 2,
        "superfednas_rounds": 9,
        "superfednas_round_seconds": 0.5,
        "superfednas_replies": 1,
        "superfednas_asked": 2,
        "superfednas_late_replies_total": 2,
        "superfednas_unusable_total": 1,
        "superfednas_bytes_total": 4 * 30 + 3 * 20,
        "superfednas_loss": 1.5,
        'superfednas_accuracy{subnet="25%"}': 0.25,
    }


def test_a_round_without_a_usable_reply_has_no_loss() -> None:
    row = {"kind": "round", "round": 1, "seconds": 1.0, "clients": [client(accepted=False)]}
    assert "superfednas_loss" not in values(exposition([row], 1))


def test_a_run_folder_holds_the_newest(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", {"rounds": 2, "evaluate-every": 2})
    found = values((run.path / "metrics.prom").read_text())
    assert found["superfednas_round"] == found["superfednas_rounds"] == 2
    assert 'superfednas_accuracy{subnet="largest"}' in found
