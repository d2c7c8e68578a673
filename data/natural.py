"""Natural clients' validation and test rows: those of the same person, writer or device."""

from collections.abc import Sequence

import numpy as np

from superfednas.data.dataset import Dataset, Split
from superfednas.data.splits import TEST_SHARE, stratified


def own_rows(
    dataset: Dataset, rows: Sequence[np.ndarray], validation_share: float
) -> list[tuple[np.ndarray, Split, Split]]:
    """Return each natural client's training rows, and its own validation and test rows.

    Where the source says whose the rows of a split are, a client gets its own of these, perhaps
    none. Otherwise they are held out of its training rows, stratified; a client of too few rows to
    leave one for training then has none.

    Parameters
    ----------
    dataset
        With natural ids.
    rows
        Per client, indices into the training rows, all of one id.
    validation_share
        Share of a client's training rows held out for validation, if the source does not say whose
        its validation rows are.

    Returns
    -------
    list of (indices, Split, Split)
        Training rows, validation, test.
    """
    assert dataset.ids is not None
    strata = dataset.strata(dataset.train)
    shares = {"test": TEST_SHARE, "validation": validation_share}
    found = []
    for own in rows:
        person, left = dataset.ids[own[0]], own
        splits: dict[str, Split] = {}
        for part, share in shares.items():
            if part in dataset.held_ids:
                mine = np.flatnonzero(dataset.held_ids[part] == person)
                splits[part] = getattr(dataset, part).take(mine)
                continue
            size = max(1, round(share * len(own)))
            drawn = stratified(strata[left], size if size < len(left) else 0, part)
            splits[part] = dataset.train.take(left[drawn])
            left = np.delete(left, drawn)
        found.append((left, splits["validation"], splits["test"]))
    return found
