"""The table of attackers: what was tried, what it touched and who was named.

A test marked ``attack("kind")`` counts as one try of that kind; one that tries more often says so
through the fixture ``tried``. ``pytest -m attack`` prints the table at its end.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

PROPERTY, KIND = "attack-tries", "attack-kind"
# What a file's tests attack whose markers do not say it.
KINDS = {
    "server/test_bound.py": "weights, and numbers beside them",
    "server/test_attacks.py": "a run in progress",
    "server/test_policies.py": "shares of the weight",
    "server/test_nodes.py": "names and claims of nodes",
    "server/test_history.py": "averages, by colluding nodes",
    "bench/test_collusion.py": "averages, by colluding nodes",
    "server/test_secure_sums.py": "secure aggregation",
    "server/test_secure_rounds.py": "secure aggregation",
    "flower/test_unreadable.py": "objects that cannot be decoded",
    "client/test_tell_scores.py": "what stays on a node",
    "client/test_allow.py": "what stays on a node",
    "processes/test_pins.py": "what stays on a node",
    "client/test_modules.py": "whose code runs",
    "common/test_trust.py": "whose code runs",
    "deploy/test_untrusted.py": "whose code runs",
    "cli/test_planted.py": "whose code runs",
    "processes/test_strangers.py": "ports of a shared machine",
    "processes/test_networks.py": "the fleet's networks",
    "deploy/test_compose.py": "the fleet's networks",
    "deploy/test_runtime.py": "whose code runs",
    "processes/test_signed_apps.py": "apps that nobody signed",
    "flower/test_signatures.py": "apps that nobody signed",
    "common/test_words.py": "terminals and logs",
    "cli/test_hostile_texts.py": "terminals and logs",
    "deploy/test_samples.py": "terminals and logs",
    "cli/test_damaged_files.py": "damaged files",
}


class Tried(Protocol):
    """Report tries of a kind."""

    def __call__(
        self,
        kind: str,
        tries: int,
        *,
        touched: int = 0,
        ended: int = 0,
        named: Mapping[str, int] | None = None,
    ) -> None: ...


@dataclass
class Row:
    """What became of one kind of attack.

    Parameters
    ----------
    tests, failed
        Tests of this kind, and those that failed.
    tries
        Replies, answers, files or calls that were tried.
    touched
        Tries that broke a rule and changed a weight or reached what they must not reach.
    ended
        Tries that ended a run.
    named
        By what name or code the attacker was told, and how often.
    """

    tests: int = 0
    failed: int = 0
    tries: int = 0
    touched: int = 0
    ended: int = 0
    named: Counter[str] = field(default_factory=Counter)


def kind_of(file: str, said: str = "") -> str:
    """Return what a test attacks: what its marker says, else what its file is about."""
    return said or KINDS.get(file.removeprefix("tests/"), file)


def noted(
    kind: str, tries: int, touched: int, ended: int, named: Mapping[str, int] | None
) -> tuple[str, str]:
    """Return a report's property that says what was tried."""
    told = {"tries": tries, "touched": touched, "ended": ended, "named": dict(named or {})}
    return PROPERTY, json.dumps({"kind": kind, **told})


def table(reports: Iterable[tuple[bool, Mapping[str, Any], list[str]]]) -> str:
    """Return the table of a session.

    Parameters
    ----------
    reports
        For each test: whether it passed, its properties, and what it noted.
    """
    rows: dict[str, Row] = {}
    for passed, properties, notes in reports:
        own = rows.setdefault(str(properties[KIND]), Row())
        own.tests += 1
        own.failed += not passed
        if not notes:
            own.tries += 1
        for note in map(json.loads, notes):
            row = rows.setdefault(note["kind"], Row())
            row.tries += note["tries"]
            row.touched += note["touched"]
            row.ended += note["ended"]
            row.named.update(note["named"])
    lines = [
        "| what is attacked | tests | failed | tries | touched | runs ended | named as |",
        "|---|---|---|---|---|---|---|",
    ]
    total = Row()
    for kind, row in sorted(rows.items()):
        named = ", ".join(f"{code} {times}" for code, times in row.named.most_common(6))
        lines.append(
            f"| {kind} | {row.tests or ''} | {row.failed} | {row.tries} | {row.touched} "
            f"| {row.ended} | {named} |"
        )
        for key in ("tests", "failed", "tries", "touched", "ended"):
            setattr(total, key, getattr(total, key) + getattr(row, key))
    lines.append(
        f"| all | {total.tests} | {total.failed} | {total.tries} | {total.touched} "
        f"| {total.ended} | |"
    )
    return "\n".join(lines)
