"""What a run's rows say, as the texts and tables of its report. Nothing is escaped here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.progress import amount, duration, traffic
from server.run_folder import RunFolder
from server.settings import Settings
from supernet.config import parse

Row = dict[str, Any]
NONE = "–"


@dataclass(frozen=True)
class Story:
    """A run as its report tells it.

    Parameters
    ----------
    info
        The content of ``run.json``.
    settings
        The run's settings.
    rounds, evaluations
        Rows of these kinds, by round.
    test, summary
        The rows of the run's end; None where it has not ended, or has no test data.
    """

    info: Row
    settings: Settings
    rounds: list[Row]
    evaluations: list[Row]
    test: Row | None
    summary: Row | None

    @classmethod
    def of(cls, run: RunFolder) -> "Story":
        """Read a run folder."""
        rows = run.rows()
        kinds = {
            kind: [row for row in rows if row["kind"] == kind]
            for kind in ("round", "evaluation", "test", "summary")
        }
        return cls(
            info=run.info,
            settings=parse(Settings, run.settings, ignore_unknown=True),
            rounds=kinds["round"],
            evaluations=kinds["evaluation"],
            test=kinds["test"][-1] if kinds["test"] else None,
            summary=kinds["summary"][-1] if kinds["summary"] else None,
        )

    @property
    def title(self) -> str:
        """Space and data set."""
        data = self.settings.data.dataset
        return f"{self.settings.space.space} on {'the clients’ data' if data == 'none' else data}"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.info["status"] == "finished")

    @property
    def last(self) -> Row | None:
        """The test of the ladder, else its last evaluation, else None."""
        return self.test or (self.evaluations[-1] if self.evaluations else None)

    @property
    def end_shares(self) -> tuple[float, float]:
        """Shares of the assignments that were the smallest and the largest subnet.

        The summary's ranges leave the two out; without a summary both are 0.
        """
        macs = [client["macs"] for row in self.rounds for client in row["clients"]]
        if self.summary is None or not macs:
            return 0.0, 0.0
        least, most = self.summary["coverage"][0]["from"], self.summary["coverage"][-1]["to"]
        return (
            sum(m <= least for m in macs) / len(macs),
            sum(m >= most for m in macs) / len(macs),
        )


def status(story: Story) -> str:
    """Say in one sentence how far the run is."""
    done, wanted = len(story.rounds), story.settings.rounds
    if story.finished:
        return f"Finished after round {wanted}."
    if not done:
        return f"Not finished: no round has ended yet, {wanted} are to come."
    return (
        f"Not finished: {done} of {wanted} rounds are done, so there is no summary and no test of "
        "the final weights yet."
    )


def facts(story: Story) -> list[tuple[str, str]]:
    """Return the key facts, name and value."""
    s, info = story.settings, story.info
    seen = {client["client"] for row in story.rounds for client in row["clients"]}
    spent = sum(row["seconds"] for row in story.rounds)
    local = s.local
    work = f"{local.local_steps} steps" if local.local_steps else f"{local.local_epochs} epochs"
    versions = ", ".join(f"{name} {number}" for name, number in info["versions"].items())
    return [
        ("rounds", f"{len(story.rounds)} of {s.rounds}"),
        ("clients", f"{s.clients_per_round} a round; {len(seen)} took part"),
        ("method", s.method),
        ("assignment", s.assignment),
        ("averaging", s.averaging + (", by images" if s.weighting == "examples" else "")),
        ("β", _beta(s)),
        (
            "local training",
            f"SGD, {work} of batches of {local.batch_size}, lr {local.lr:g} ({s.lr_schedule}), "
            f"momentum {local.momentum:g}, weight decay {local.weight_decay:g}, "
            f"clip {local.clip_norm:g}",
        ),
        ("division of the data", _partition(s)),
        ("normalisation", s.space.norm),
        ("seed", str(s.seed)),
        ("started", str(info["started"])),
        ("time in rounds", duration(spent)),
        ("sent and received", amount(sum(traffic(row) for row in story.rounds))),
        ("versions", versions),
        ("git state", info["git"] or "none: the code was in no git checkout"),
        ("code fingerprint", str(info["source"])),
    ]


def _beta(s: Settings) -> str:
    if s.beta() is None:
        return "none"
    end = s.beta_end or 1 / s.clients_per_round
    return f"{s.beta_schedule}, {s.beta_start:g} to {end:g} over {s.beta_share:.0%} of the rounds"


def _partition(s: Settings) -> str:
    if s.data.partition.endswith("dirichlet"):
        return f"{s.data.partition}, concentration {s.data.dirichlet_alpha:g}"
    return s.data.partition


def ladder_caption(row: Row) -> str:
    """Say what a ladder's accuracies were measured on."""
    where = "on the server" if row["where"] == "server" else "by the clients on their own images"
    trained = row["trained_rounds"]
    when = f"after round {trained}" if trained else "before any training"
    return f"{row['split']} accuracy {when}, measured {where}"


def ladder_lines(row: Row) -> list[list[str]]:
    """Return the table of a ladder: subnet, MMACs, parameters, accuracy, loss, images."""
    return [
        [
            rung["name"],
            f"{rung['macs'] / 1e6:.2f}",
            f"{rung['params']:,}",
            f"{rung['accuracy']:.2%}",
            f"{rung['loss']:.3f}",
            f"{rung['examples']:,}",
        ]
        for rung in row["ladder"]
    ]


def client_lines(rounds: Sequence[Row]) -> list[list[str]]:
    """Return a line a client: name, chosen, MMACs, accepted, refused, own accuracy, bytes."""
    orders: dict[str, list[Row]] = {}
    for row in rounds:
        for client in row["clients"]:
            orders.setdefault(client["client"], []).append(client)
    lines = []
    for name in sorted(orders, key=_natural):
        mine = orders[name]
        accepted = sum(client["accepted"] for client in mine)
        scores = [c["own_accuracy"] for c in mine if c.get("own_accuracy") is not None]
        lines.append(
            [
                name,
                str(len(mine)),
                f"{sum(client['macs'] for client in mine) / len(mine) / 1e6:.2f}",
                str(accepted),
                str(len(mine) - accepted),
                f"{scores[-1]:.1%}" if scores else NONE,
                amount(sum(client["bytes_down"] + client["bytes_up"] for client in mine)),
            ]
        )
    return lines


def _natural(name: str) -> tuple[bool, int, str]:
    """Sort numbers by value and before names, without reading a stranger's text as a number."""
    return (not name.isdecimal(), len(name) if name.isdecimal() else 0, name)


def refusal_lines(rounds: Sequence[Row]) -> list[list[str]]:
    """Return a line a reason, the commonest first: reason, replies, clients, last round."""
    found: dict[str, list[tuple[str, int]]] = {}
    for row in rounds:
        for client in row["clients"]:
            if not client["accepted"]:
                found.setdefault(client["reason"], []).append((client["client"], row["round"]))
    return [
        [reason, str(len(hits)), str(len({name for name, _ in hits})), str(hits[-1][1])]
        for reason, hits in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
