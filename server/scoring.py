"""Score subnets on the nodes' own validation images, so that no data leave them.

The subnets are chosen here, to cover the space; each node gets the largest that it can hold and
scores, on those weights, all that lie inside it. Right answers are added up over the nodes, so the
result is what one would count on the images of all nodes together.
"""

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from nas.accuracy import Score
from nas.measuring import ScoreBook
from nas.regression import design
from server.errands import Errand, Party, order_of, plan_errands, settings_now
from server.progress import Progress, amount
from server.replies import Scored, check_scores
from server.run_folder import RunFolder, RunFolderError
from server.settings import Settings, check_settings
from supernet import Architecture, SearchSpace
from supernet.config import Scalar
from supernet.digest import digest
from supernet.wire import numpy_dtype

NODES = "nodes"
_SHORT = 12


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
    party = Party(settings, space, grid, progress)
    clients = party.meet()
    progress.note(f"{len(clients)} nodes score {len(archs)} subnets of {run.path}")
    errands = [e for node, client in clients for e in plan_errands(space, archs, node, client)]

    def read(reply: Message, errand: Errand) -> Scored | None:
        scored = check_scores(reply, errand.outer, len(errand.archs), errand.validation)
        progress.note(_said(errand, scored, space, settings))
        return scored if scored.examples else None

    found: dict[Architecture, list[Score]] = {}
    for errand, scored in party.send(errands, state, order_of(settings), read):
        for number, score in scored.scores:
            found.setdefault(errand.archs[number], []).append(score)
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


def _said(errand: Errand, scored: Scored, space: SearchSpace, settings: Settings) -> str:
    if not scored.examples:
        return f"client {errand.client} has no validation images"
    sent = numpy_dtype(settings.wire_dtype).itemsize * space.params(errand.outer)
    return (
        f"client {errand.client}: {len(scored.scores)} subnets on {scored.examples:,} images, "
        f"{amount(sent)} sent"
    )
