"""Collusion: two of ten nodes answer within the rules and know what all the others answer.

    nice -n 19 python benchmarks/collusion.py runs/collusion [--seeds 0,1,2] [--attacks alie,ipm]

Digits, 10 clients, all of them in every round, so that the two attackers (clients 0 and 1) always
meet. ``max-change`` is at its default: replies that training as ordered cannot give are refused,
and the table counts them.

``clean``
    Nobody attacks.
``alie``, ``alie-strong``
    A little is enough (Baruch et al., NeurIPS 2019): both send w + mean − z · s.d., with z = .25,
    the paper's for two of ten, and 1.5, which its experiments use.
``ipm``
    Inner product manipulation (Xie et al., UAI 2020): both send w − ε · mean, with ε = 1.
``turned``, ``tenfold``
    Each sends w − d, or w + 10 · d, where d is its own honest change.
``labels``
    Each trains as ordered, on images whose digit y is called 9 − y.

Mean and s.d. are taken number by number over the honest changes of all clients, the attackers' own
among them, whose subnets hold that number: what attackers know who see every honest reply of the
round before they answer. One run folder a cell: finished ones are kept, others started anew, so the
command can be stopped and started at will.
"""

import dataclasses
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast
from unittest import mock

import numpy as np
import torch
import typer
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType

import superfednas.client.app as client
from superfednas.bench.machine import describe
from superfednas.client.node_config import Config
from superfednas.common.settings import Scalar, flatten
from superfednas.data import Dataset, DataSettings
from superfednas.flower.local_grid import LocalGrid
from superfednas.records.folder import RunFolder
from superfednas.records.rows import EvaluationRow, RoundRow, of_kind
from superfednas.server.app import prepare, run_training
from superfednas.server.journal.progress import Progress
from superfednas.supernet import SearchSpace
from superfednas.supernet.boxes import Boxes, pieces
from superfednas.wire.flat import pack, unpack
from superfednas.wire.order import ARRAYS, CONFIG, SUBNET

CLIENTS = 10
ATTACKERS = ("0", "1")
RECIPE: dict[str, Scalar] = {
    "clients": CLIENTS,
    "clients-per-round": CLIENTS,
    "local-steps": 6,
    "batch-size": 32,
    "lr": 0.2,
    "keep-checkpoints": 1,
    "checkpoint-every": 100,
}
AVERAGINGS = ("overlap", "trimmed-mean", "median", "clip", "defl", "history", "maxnet")
CLEAN = ("clean", "overlap")

Tensors = dict[str, torch.Tensor]


def their_z(clients: int, attackers: int) -> float:
    """Return Baruch et al.'s z: attackers need s honest clients that lie further out than they."""
    needed = clients // 2 + 1 - attackers
    return statistics.NormalDist().inv_cdf((clients - needed) / clients)


# A false change, of the attacker's honest one, and of mean and s.d. over the clients.
FALSE: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "alie": lambda own, mean, sd: mean - their_z(CLIENTS, len(ATTACKERS)) * sd,
    "alie-strong": lambda own, mean, sd: mean - 1.5 * sd,
    "ipm": lambda own, mean, sd: -mean,
    "turned": lambda own, mean, sd: -own,
    "tenfold": lambda own, mean, sd: 10 * own,
}
ATTACKS = ("clean", *FALSE, "labels")


@dataclass(frozen=True)
class Trained:
    """An honest reply: whose, where its tensors lie, what was sent, and what training changed."""

    client: str
    reply: Message
    boxes: Boxes
    sent: Tensors
    change: Tensors


class Collusion(LocalGrid):
    """A grid whose attackers see all replies of a round before they give theirs."""

    def attack(self, name: str, space: SearchSpace) -> None:
        """Set the attack, and the space in which it takes place."""
        self._false, self._space = FALSE.get(name), space
        self._sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages, and keep them."""
        sent = list(messages)
        pushed = list(super().push_messages(sent))
        self._sent = dict(zip(pushed, sent, strict=True))
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return a round's replies together, once the last is there."""
        asked = [each for each in message_ids if each in self._pending]
        if not all(self._pending[each].done() for each in asked):
            return []
        replies = list(super().pull_messages(asked))
        if self._false is not None and replies:
            trained = [
                self._trained(r) for r in replies if r.metadata.message_type == MessageType.TRAIN
            ]
            self._collude(trained)
        return replies

    def _trained(self, reply: Message) -> Trained:
        message = self._sent[reply.metadata.reply_to_message_id]
        arch = self._space.parse(str(cast(ConfigRecord, message.content[CONFIG])["architecture"]))
        shapes = self._space.shapes(arch)
        before, after = (
            {name: tensor.double() for name, tensor in unpack(flat(each), shapes).items()}
            for each in (message, reply)
        )
        change = {name: after[name] - before[name] for name in shapes}
        context = self._contexts[reply.metadata.src_node_id]
        who = str(context.node_config["partition-id"])
        return Trained(who, reply, self._space.boxes(arch), before, change)

    def _collude(self, trained: Sequence[Trained]) -> None:
        assert self._false is not None
        shapes = self._space.shapes(self._space.largest)
        count, total, squares = (
            {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
            for _ in range(3)
        )
        for each in trained:
            for name, outer, part in parts(each):
                count[name][outer] += 1
                total[name][outer] += part
                squares[name][outer] += part.square()
        for each in trained:
            if each.client not in ATTACKERS:
                continue
            for name, outer, part in parts(each):
                mean = total[name][outer] / count[name][outer]
                variance = squares[name][outer] / count[name][outer] - mean.square()
                part.copy_(self._false(part, mean, variance.clamp(min=0).sqrt()))
            false = pack({name: each.sent[name] + each.change[name] for name in each.change})
            each.reply.content[ARRAYS] = ArrayRecord({SUBNET: Array(false)})


def flat(message: Message) -> np.ndarray:
    """Return a message's weights."""
    return cast(ArrayRecord, message.content[ARRAYS])[SUBNET].numpy()


def parts(reply: Trained) -> Iterator[tuple[str, tuple[slice, ...], torch.Tensor]]:
    """Yield name, box and changes (a view) of every part of a reply."""
    for name, change in reply.change.items():
        for outer, inner in pieces(reply.boxes[name]):
            yield name, outer, change[inner]


def mislabelled(node_config: Config, settings: DataSettings, seed: int) -> Dataset:
    """Return a node's data; an attacker's digits y are called 9 − y in training."""
    data = NODE_DATA(node_config, settings, seed)
    if str(node_config["partition-id"]) not in ATTACKERS:
        return data
    targets = {name: 9 - target for name, target in data.train.targets.items()}
    return dataclasses.replace(data, train=dataclasses.replace(data.train, targets=targets))


NODE_DATA = client.node_data


def run_cell(folder: Path, attack: str, averaging: str, seed: int, rounds: int) -> None:
    """Train one cell of the table, unless it is there already."""
    if (folder / "supernet.safetensors").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    changes = {"rounds": rounds, "seed": seed, "averaging": averaging, "run-dir": str(folder)}
    prepared = prepare(RECIPE | changes | {"evaluate-every": max(1, rounds // 3)})
    nodes = {n + 1: {"partition-id": n, "num-partitions": CLIENTS} for n in range(CLIENTS)}
    grid = Collusion(client.app, nodes, flatten(prepared.settings), 1)
    grid.attack(attack, prepared.settings.space.load())
    data = mislabelled if attack == "labels" else NODE_DATA
    try:
        with mock.patch.object(client, "node_data", data):
            run_training(prepared, grid, Progress())
    finally:
        grid.close()


def accuracy(folder: Path, kind: str) -> float:
    """Return the ladder's mean accuracy at the last ``evaluation`` (validation) or ``test``."""
    rows = of_kind(RunFolder.open(folder).rows(), EvaluationRow)
    last = [row for row in rows if row.kind == kind][-1]
    return statistics.mean(float(rung["accuracy"] or 0) for rung in last.ladder)


def counts(folder: Path) -> tuple[int, int, int, int, int]:
    """Return a run's attacks, those refused and named, and honest replies and those named."""
    attacks = refused = named = honest = wronged = 0
    for row in of_kind(RunFolder.open(folder).rows(), RoundRow):
        for each in row.clients:
            if each.client in ATTACKERS:
                attacks, refused = attacks + 1, refused + (not each.accepted)
                named += each.verdict is not None
            else:
                honest, wronged = honest + 1, wronged + (each.verdict is not None)
    return attacks, refused, named, honest, wronged


def table(out: Path, seeds: Sequence[int]) -> str:
    """Return the Markdown table of all finished cells."""
    lines = [
        "| attack | averaging | test, mean ± s.d. (seeds) | against clean overlap, by seed "
        "| refused | attackers named | honest named |",
        "|---|---|---|---|---|---|---|",
    ]
    for attack in ATTACKS:
        for averaging in AVERAGINGS:
            pairs = [(out / name(attack, averaging, s), out / name(*CLEAN, s)) for s in seeds]
            pairs = [
                pair for pair in pairs if all((f / "supernet.safetensors").exists() for f in pair)
            ]
            if not pairs:
                continue
            tests = [100 * accuracy(folder, "test") for folder, _ in pairs]
            clean = [100 * accuracy(folder, "test") for _, folder in pairs]
            apart = ", ".join(f"{t - c:+.1f}" for t, c in zip(tests, clean, strict=True))
            spread = f"± {statistics.stdev(tests):.1f} " if len(tests) > 1 else ""
            attacks, refused, named, honest, wronged = map(
                sum, zip(*(counts(f) for f, _ in pairs), strict=True)
            )
            if attack == "clean":  # clients 0 and 1 are honest here
                named, wronged, honest = 0, wronged + named, honest + attacks
            of = [f"{refused} of {attacks}", f"{named} of {attacks}", f"{wronged} of {honest}"]
            if attack == "clean":
                of[:2] = "", ""
            figures = [f"{statistics.mean(tests):.1f} {spread}({len(tests)})", apart, *of]
            lines.append(f"| {attack} | {averaging} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def name(attack: str, averaging: str, seed: int) -> str:
    """Return the folder's name of a cell."""
    return f"{attack}-{averaging}-seed{seed}"


def main(
    out: Annotated[Path, typer.Argument(help="folder for the runs")],
    rounds: Annotated[int, typer.Option(help="rounds of every run")] = 30,
    seeds: Annotated[str, typer.Option(help="seeds, comma-separated")] = "0,1,2",
    attacks: Annotated[str, typer.Option(help="attacks, comma-separated")] = ",".join(ATTACKS),
    averagings: Annotated[str, typer.Option(help="comma-separated")] = ",".join(AVERAGINGS),
    show: Annotated[bool, typer.Option("--table", help="train nothing, print the table")] = False,
) -> None:
    """Train what is missing, then print the table of all that is there."""
    torch.set_num_threads(1)
    chosen = [int(seed) for seed in seeds.split(",")]
    for seed in chosen if not show else ():
        for attack in attacks.split(","):
            for averaging in averagings.split(","):
                cell = name(attack, averaging, seed)
                print(f"== {cell}", flush=True)
                run_cell(out / cell, attack, averaging, seed, rounds)
    print(f"\n{describe({'rounds': rounds})}")
    print(table(out, chosen))


if __name__ == "__main__":
    typer.run(main)
