"""Meanings compared: clients whose numbers stand for something else than the run's are left out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from superfednas.common.settings import flatten
from superfednas.data import DataSettings
from superfednas.server.assign.client import Client
from superfednas.wire.meaning import Meaning, brief

_MAPPED = "classes"  # a key of node configs, too
_SETTINGS = flatten(DataSettings()).keys()


class RunMeaning:
    """What numbers stand for in a run: as its own data say, else as most of the first nodes do.

    Parameters
    ----------
    own
        :attr:`superfednas.tasks.Task.meaning` of the server's data; None if it has none.
    """

    def __init__(self, own: Mapping[str, str] | None) -> None:
        self._run: Mapping[str, Meaning] | None = None if own is None else brief(own)
        self.settled = own is not None

    def ask(self, clients: Iterable[Client]) -> None:
        """Take what most clients say, if the run's own data say nothing; of as many, the first."""
        if not self.settled:
            said: Counter[tuple[tuple[str, Meaning], ...]] = Counter()
            said.update(tuple(client.meaning.items()) for client in clients if client.meaning)
            self._run = dict(said.most_common(1)[0][0]) if said else None

    def problem(self, client: Client) -> str:
        """Say in what a client differs from the run; empty where it does not."""
        for what, mine in client.meaning.items():
            there = (self._run or {}).get(what, mine)
            if there.digest != mine.digest:
                remedy = ""
                if what == _MAPPED:
                    remedy = f' ({what}="…" in its node config puts its own in this order)'
                elif what in _SETTINGS:
                    remedy = f" (the setting {what}, given to the run, holds for all)"
                return f"its {what}: {mine.shown}; the run's: {there.shown}{remedy}"
        return ""

    def state(self) -> dict[str, Sequence[str]] | None:
        """Return what has been settled, for a checkpoint."""
        if not self.settled or self._run is None:
            return None
        return {what: [each.digest, each.shown] for what, each in self._run.items()}

    def restore(self, state: Mapping[str, Sequence[str]] | None) -> None:
        """Restore :meth:`state`; what the run's own data say now goes first."""
        if state is not None and not self.settled:
            self._run, self.settled = {what: Meaning(*each) for what, each in state.items()}, True
