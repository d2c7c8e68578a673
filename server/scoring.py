"""Score subnets on the nodes' own validation images, so that no data leave them.

The subnets are chosen here, to cover the space; each node gets the largest that it can hold and
scores, on those weights, all that lie inside it. Right answers are added up over the nodes, so the
result is what one would count on the images of all nodes together.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from nas.accuracy import Score
from nas.ladder import nested
from nas.measuring import ScoreBook
from nas.regression import design
from server.assignment import Client, Random
from server.exchange import exchange
from server.outgoing import Outgoing
from server.progress import Progress, amount
from server.replies import BadReply, Scored, check_scores
from server.roster import Roster
from server.run_folder import RunFolder, RunFolderError
from server.settings import Settings, check_settings
from server.watch import Watch
from supernet import Architecture, SearchSpace, State
from supernet.config import Scalar, flatten
from supernet.digest import digest
from supernet.wire import ARRAYS, CONFIG, TrainOrder, encode_list, numpy_dtype

NODES = "nodes"
_SHORT = 12


@dataclass(frozen=True)
class Errand:
    """One message to a node: score these subnets inside that one.

    ``validation`` is the number of validation images that the node declared.
    """

    client: str
    node: int
    outer: Architecture
    archs: tuple[Architecture, ...]
    validation: int


def score_by_nodes(values: Mapping[str, Scalar], grid: Grid, progress: Progress) -> ScoreBook:
    """Let all nodes score subnets of a trained supernet, and keep the sums beside its run.

    Parameters
    ----------
    values
        A run-config with ``score-run``. The run's own settings count, but for ``score-subnets``,
        ``min-nodes`` and the time-outs.
    grid
        The nodes.
    progress
        Where the scoring reports.

    Raises
    ------
    RunFolderError
        Where the nodes' scores are there already, or no node scored anything.
    """
    asked = check_settings(values)
    run = RunFolder.open(asked.score_run)
    settings = replace(
        check_settings(run.settings),
        score_subnets=asked.score_subnets,
        min_nodes=asked.min_nodes,
        node_timeout=asked.node_timeout,
        round_timeout=asked.round_timeout,
    )
    state, _ = run.weights()
    space = settings.space.load()
    weights = digest(state)
    path = score_file(run, weights, NODES)
    if path.exists():
        raise RunFolderError(
            f"{str(path)!r} exists already: remove it to let the nodes score again"
        )
    archs = design(space, settings.score_subnets, settings.seed)
    roster = _roster(settings, space, progress)
    clients = _meet(roster, settings, grid, progress)
    progress.note(f"{len(clients)} nodes score {len(archs)} subnets of {run.path}")
    errands = [e for node, client in clients for e in plan_errands(space, archs, node, client)]
    found = _send(errands, state, space, settings, grid, progress, roster.in_turn)
    if not found:
        raise RunFolderError("no node scored anything: the reasons stand above")
    book = ScoreBook(path, weights=weights, data=NODES)
    for arch in archs:
        scores = found.get(arch, [])
        examples = sum(score.examples for score in scores)
        if examples:
            # Sorted: the order of arrival must not decide the last bits.
            loss = sum(sorted(score.loss * score.examples for score in scores)) / examples
            book.put(arch, Score.of(sum(s.correct for s in scores), loss, examples))
    images = [score.examples for _, score in book.items()]
    if min(images) < max(images):
        progress.note(
            f"not every node scored every subnet: they were scored on {min(images):,} to "
            f"{max(images):,} images, which blurs their ranks"
        )
    progress.note(f"{len(book)} subnets scored on {max(images):,} images")
    progress.write(f"scores: {path}")
    return book


def score_file(run: RunFolder, weights: str, images: str) -> Path:
    """Where scores of a supernet (its digest) on some images (theirs, or ``nodes``) are kept."""
    return run.path / "scores" / f"{weights[:_SHORT]}-{images[:_SHORT]}.jsonl"


def plan_errands(
    space: SearchSpace, archs: Sequence[Architecture], node: int, client: Client
) -> list[Errand]:
    """Divide the subnets that a node can hold into messages, each with one that holds the others.

    From the largest on, each subnet that no earlier message can carry opens one of its own. For a
    node without budget that is one message with the whole supernet, as the largest is among those
    to be scored.
    """
    waiting = [
        arch
        for arch in sorted(archs, key=space.params, reverse=True)
        if client.can_hold(space, arch)
    ]
    errands = []
    while waiting:
        outer = waiting[0]
        shapes = space.shapes(outer)
        inside = [arch for arch in waiting if nested(space.shapes(arch), shapes)]
        waiting = [arch for arch in waiting if arch not in inside]
        validation = client.validation or 0
        errands.append(Errand(client.name, node, outer, tuple(inside), validation))
    return errands


def _roster(settings: Settings, space: SearchSpace, progress: Progress) -> Roster:
    return Roster(
        space,
        Random(space, settings.seed),  # whoever can hold the smallest, whatever the run trained
        device_shares=settings.device_shares,
        question=flatten(settings.data) | {"seed": settings.seed},
        note=progress.note,
        timeout=settings.node_timeout,
    )


def _meet(
    roster: Roster, settings: Settings, grid: Grid, progress: Progress
) -> list[tuple[int, Client]]:
    """Wait for the nodes: as many as a round needs, and all that hold parts of one data set."""
    least = settings.min_nodes or settings.clients_per_round
    deadline = time.monotonic() + settings.node_timeout
    usable = roster.wait_for(grid, least, settings.node_timeout, wanted=f"min-nodes = {least}")
    while len(usable) < roster.parts and not roster.complete and time.monotonic() < deadline:
        time.sleep(0.5)
        usable = roster.refresh(grid)
    if len(usable) < roster.parts:
        progress.note(f"{len(usable)} of {roster.parts} nodes are there: the others do not count")
    return list(usable.values())


def _send(
    errands: Sequence[Errand],
    state: State,
    space: SearchSpace,
    settings: Settings,
    grid: Grid,
    progress: Progress,
    in_turn: set[int],
) -> dict[Architecture, list[Score]]:
    """Send one message a node at a time, so that few weights wait, and collect the scores."""
    found: dict[Architecture, list[Score]] = {}
    outgoing = Outgoing(settings.wire_dtype)
    queues: dict[int, list[Errand]] = {}
    for errand in errands:
        queues.setdefault(errand.node, []).append(errand)
    while any(queues.values()):
        wave = [queue.pop(0) for queue in queues.values() if queue]
        weights: dict[Architecture, ArrayRecord] = {}  # one serialisation a distinct subnet
        for outer in dict.fromkeys(errand.outer for errand in wave):
            weights[outer] = outgoing.record(state, space.boxes(outer))
        messages = [_message(errand, weights[errand.outer], settings) for errand in wave]
        watch = Watch(grid, [e.node if e.node in in_turn else None for e in wave])
        for index, reply in exchange(grid, messages, settings.round_timeout, watch=watch):
            errand = wave[index]
            try:
                if reply is None:
                    queues[errand.node].clear()  # gone, or still busy with this one
                    raise BadReply(f"no reply within {settings.round_timeout:g} s")
                scored = check_scores(reply, errand.outer, len(errand.archs), errand.validation)
            except BadReply as reason:
                progress.note(f"client {errand.client} refused: {reason}")
                continue
            if not scored.examples:
                queues[errand.node].clear()
            for number, score in scored.scores:
                found.setdefault(errand.archs[number], []).append(score)
            progress.note(_said(errand, scored, space, settings))
    return found


def _said(errand: Errand, scored: Scored, space: SearchSpace, settings: Settings) -> str:
    if not scored.examples:
        return f"client {errand.client} has no validation images"
    sent = numpy_dtype(settings.wire_dtype).itemsize * space.params(errand.outer)
    return (
        f"client {errand.client}: {len(scored.scores)} subnets on {scored.examples:,} images, "
        f"{amount(sent)} sent"
    )


def _message(errand: Errand, weights: ArrayRecord, settings: Settings) -> Message:
    order = TrainOrder(
        seed=settings.seed,
        architecture=errand.outer.to_json(),
        evaluate=encode_list([arch.to_json() for arch in errand.archs]),
        wire_dtype=settings.wire_dtype,
        torch_threads=settings.torch_threads,
        device=settings.device,
        space=settings.space,
    )
    config = ConfigRecord({**flatten(order), **flatten(settings.data)})
    content = RecordDict({ARRAYS: weights, CONFIG: config})
    return Message(
        content, dst_node_id=errand.node, message_type=MessageType.EVALUATE, group_id="scoring"
    )
