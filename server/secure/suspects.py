"""Suspects: who may have spoilt sums that nobody can read, and whom the next round does without."""

from collections import Counter
from collections.abc import Collection, Sequence

from superfednas.common.streams import name_key
from superfednas.wire.secure.cells import FEW


class Suspects:
    """Finds who spoils sums of which no part can be read, by group testing over the rounds.

    Whoever was in a spoilt sum is a suspect until it is in a good one. While there are suspects, a
    round takes half of them, fewer after every further spoilt round, beside those who have been
    cleared. A suspect that spoils a sum of cleared clients has spoilt it alone and is named. Of
    `n` clients, one that spoils every sum is named within about ``2 * log2(n)`` rounds.
    """

    def __init__(self) -> None:
        self._spoilt: Counter[str] = Counter()  # rounds since the last good one, by name
        self._tries = 0  # spoilt rounds in a row

    def without(self, names: Sequence[str], number: int) -> set[str]:
        """Return which of a round's clients it does without; at least three remain.

        Those in the fewest spoilt sums are taken first, the others by a draw of the round's.
        """

        def turn(name: str) -> tuple[int, int]:
            return self._spoilt[name], name_key(f"{number}/{name}")

        suspects = sorted((name for name in names if self._spoilt[name]), key=turn)
        cleared = len(names) - len(suspects)
        taken = max(1, FEW - cleared, len(suspects) >> max(1, self._tries))
        return set(suspects[taken:])

    def spoil(self, names: Collection[str]) -> str | None:
        """Take note of a spoilt sum; return who alone can have spoilt it, if that is known."""
        self._tries += 1
        suspects = [name for name in names if self._spoilt[name]]
        self._spoilt.update(suspects or names)
        return suspects[0] if len(suspects) == 1 else None

    def clear(self, names: Collection[str]) -> None:
        """Take note of a good sum."""
        self._tries = 0
        for name in names:
            self._spoilt.pop(name, None)
