"""Scores by the nodes, on their own validation examples, so that no data leave them.

The subnets are chosen here, to cover the space; each node gets the largest that it can hold and
scores, on those weights, all that lie inside it. Tallies are added up over the nodes, so the
result is what one would count on the examples of all nodes together.
"""

from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from superfednas.common.digest import digest
from superfednas.common.settings import Scalar
from superfednas.common.words import amount
from superfednas.nas.score.measured import ScoreBook
from superfednas.nas.score.regression import design
from superfednas.records.folder import RunFolder, RunFolderError
from superfednas.records.scores import NODES, score_file
from superfednas.server.errands.check import Scored, check_scores
from superfednas.server.errands.errand import Errand, Party, order_of, plan_errands, settings_now
from superfednas.server.journal.progress import Progress
from superfednas.server.settings import Settings, check_settings
from superfednas.supernet import Architecture, SearchSpace
from superfednas.tasks import Tally
from superfednas.wire.errands import SCORE
from superfednas.wire.flat import numpy_dtype


def score_by_nodes(values: Mapping[str, Scalar], grid: Grid, progress: Progress) -> ScoreBook:
    """Let all nodes score subnets of a trained supernet, and keep the sums in its run folder.

    Parameters
    ----------
    values
        A run-config with ``score-run``. The run's own settings apply, except for ``score-subnets``,
        ``min-nodes`` and the time-outs.
    grid
        The nodes.
    progress
        Where the scoring reports.

    Raises
    ------
    RunFolderError
        If the nodes' scores exist already, or no node scored anything.
    """
    asked = check_settings(values)
    run = RunFolder.open(asked.score_run)
    settings = settings_now(run, asked, score_subnets=asked.score_subnets)
    state, _ = run.weights()
    space = settings.space.load()
    weights = digest(state)
    path = score_file(run, weights, NODES)
    if path.exists():
        raise RunFolderError(
            f"{str(path)!r} exists already: remove it to let the nodes score again"
        )
    archs = design(space, settings.score_subnets, settings.seed)
    party = Party(settings, space, grid, progress, SCORE)
    clients = party.meet()
    progress.note(f"{len(clients)} nodes score {len(archs)} subnets of {run.path}")
    errands = [e for node, client in clients for e in plan_errands(space, archs, node, client)]

    def read(reply: Message, errand: Errand) -> Scored | None:
        metrics, ordered = space.task.metrics, len(errand.archs)
        scored = check_scores(reply, errand.outer, ordered, errand.validation, metrics)
        progress.note(_said(errand, scored, space, settings))
        return scored if scored.examples else None

    found: dict[Architecture, list[Tally]] = {}
    for errand, scored in party.send(errands, state, order_of(settings), read):
        for number, tally in scored.tallies:
            found.setdefault(errand.archs[number], []).append(tally)
    if not found:
        raise RunFolderError("no node scored anything: the reasons stand above")
    book = ScoreBook(path, weights=weights, data=NODES, metrics=space.task.metrics)
    for arch in archs:
        if arch in found:
            book.put(arch, Tally.total(found[arch]))
    examples = [tally.examples for _, tally in book.items()]
    if min(examples) < max(examples):
        progress.note(
            f"not every node scored every subnet: they were scored on {min(examples):,} to "
            f"{max(examples):,} examples, which blurs their ranks"
        )
    progress.note(f"{len(book)} subnets scored on {max(examples):,} examples")
    progress.write(f"scores: {path}")
    return book


def _said(errand: Errand, scored: Scored, space: SearchSpace, settings: Settings) -> str:
    if not scored.examples:
        return f"client {errand.client} has no validation examples"
    sent = numpy_dtype(settings.wire_dtype).itemsize * space.params(errand.outer)
    return (
        f"client {errand.client}: {len(scored.tallies)} subnets on {scored.examples:,} examples, "
        f"{amount(sent)} sent"
    )
