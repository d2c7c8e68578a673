"""Sampling of a round's clients from the nodes that are online, free and not resting."""

from flwr.serverapp import Grid

from superfednas.server.assign.client import Client, sample_clients
from superfednas.server.journal.notices import Telling
from superfednas.server.nodes import Roster
from superfednas.server.round.exchange import Late
from superfednas.server.round.late import LateTask
from superfednas.server.settings import Settings


class Sampling:
    """Draws each round's clients.

    Parameters
    ----------
    settings
        ``clients_per_round``, ``over_sample``, ``min_nodes``, ``node_timeout``, ``rest_rounds``
        and ``seed``.
    roster
        The nodes.
    late
        The clients whose replies to earlier rounds are awaited.
    """

    def __init__(self, settings: Settings, roster: Roster, late: Late[LateTask]) -> None:
        self._settings, self._roster, self._late = settings, roster, late
        self._met = False

    def sample(
        self, number: int, grid: Grid, telling: Telling
    ) -> tuple[list[Client], dict[str, int]]:
        """Return a round's clients in the order drawn, and the node of each by name.

        The first call waits for all nodes that a round needs. Clients still busy with an earlier
        round are skipped, unless all are.

        Raises
        ------
        RosterError
            If there are not enough nodes.
        """
        s = self._settings
        wanted = s.clients_per_round
        if not self._met:
            least, why = max(wanted, s.min_nodes), f"clients-per-round = {wanted}"
            if s.min_nodes > wanted:
                why = f"min-nodes = {s.min_nodes}"
        else:
            least, why = 1, f"round {number}"
        self._met = True
        usable = self._roster.wait_for(grid, least, s.node_timeout, wanted=why)
        self._late.forget(lambda task: number - task.plan.round > s.rest_rounds)
        busy = {task.order.name for task in self._late.waiting.values()}
        free = list(usable)
        if busy:
            free = [name for name in usable if name not in busy] or free
        awake = self._roster.rested(free, number)
        wanted += s.over_sample
        if len(awake) < wanted:
            telling.few_clients(number, len(awake), wanted)
        sampled = sample_clients(awake, wanted, s.seed, number)
        clients = [usable[name][1] for name in sampled]
        return clients, {client.name: usable[client.name][0] for client in clients}
