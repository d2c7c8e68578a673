"""Files of scores of a run's subnets, by their weights and images."""

from pathlib import Path

from superfednas.records.folder import RunFolder

NODES = "nodes"  # instead of a digest: the images of all nodes together
_SHORT = 12


def score_file(run: RunFolder, weights: str, images: str) -> Path:
    """Return the file of a supernet's scores (its digest) on some images (theirs, or ``nodes``)."""
    return run.path / "scores" / f"{weights[:_SHORT]}-{images[:_SHORT]}.jsonl"
