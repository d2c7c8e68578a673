"""The server's half of secure aggregation: it adds up what it cannot read."""

from typing import TYPE_CHECKING

from superfednas.server.journal.progress import Note
from superfednas.server.round.bound import Bounds
from superfednas.server.round.exchange import Late
from superfednas.server.round.late import LateTask
from superfednas.server.settings import Settings
from superfednas.supernet import SearchSpace

if TYPE_CHECKING:
    from superfednas.server.secure.rounds import SecureRounds


def secured(
    settings: Settings, space: SearchSpace, bounds: Bounds, late: Late[LateTask], note: Note
) -> "SecureRounds | None":
    """Return what a run with secure aggregation does otherwise; None without it."""
    if not settings.secure.secure_aggregation:
        return None
    from superfednas.server.secure.rounds import SecureRounds

    return SecureRounds(settings, space, bounds, late, note)
