"""What a run says of itself, beside a line a round: what it will do, who is missing, who leads."""

from collections.abc import Mapping, Sequence

from server.plan import RoundPlan
from server.progress import Note, duration
from server.settings import Settings
from supernet import Architecture, SearchSpace

_ENDS = 2  # the smallest and the largest
_SAID = 5  # names in one sentence


class Telling:
    """Puts what happens into sentences.

    Parameters
    ----------
    settings, space
        Of the run.
    note
        Takes each sentence.
    """

    def __init__(self, settings: Settings, space: SearchSpace, note: Note) -> None:
        self._settings, self._space, self._note = settings, space, note

    def summary(self) -> None:
        """Say what will be trained, and how."""
        s, space = self._settings, self._space
        rule = (
            f"{s.averaging} averaging"
            if s.beta() is None
            else f"MaxNet averaging, β {s.beta_schedule} {s.beta_start:g} to "
            f"{s.beta_end or 1 / s.clients_per_round:g} over {s.beta_share:.0%} of the rounds"
        )
        for line in (
            f"space {space.name}: {space.size:,} subnets, "
            f"{space.macs(space.smallest) / 1e6:.2f} to {space.macs(space.largest) / 1e6:.2f} "
            f"MMACs, norm {space.norm}",
            f"{s.method}: {s.rounds} rounds, {s.clients_per_round} clients a round, "
            f"{s.assignment}, {rule}",
            *self._locally(),
            f"local SGD: lr {s.local.lr:g} ({s.lr_schedule}), "
            + (
                f"{s.local.local_steps} steps"
                if s.local.local_steps
                else f"{s.local.local_epochs} epochs"
            )
            + f" of batches of {s.local.batch_size}, clip {s.local.clip_norm:g}",
        ):
            self._note(line, "summary")
        ends_only = s.assignment in ("tracking-sandwich", "sandwich", "most-data")
        if ends_only and s.clients_per_round <= _ENDS:
            self._note(
                f"clients-per-round = {s.clients_per_round}: {s.assignment} then trains only the "
                "ends of the space; use 3 or more, or assignment = 'random'"
            )

    def _locally(self) -> list[str]:
        """Say which subnets a client trains, where it is not what it gets."""
        own = self._settings.subnets
        if not own.drawn:
            return []
        among = "the smallest and the largest among them, " if own.largest_first else ""
        return [
            f"every step trains {own.subnets_per_step} subnets of what a client gets "
            f"(local-subnets {own.local_subnets}), {among}distillation {own.distil}"
        ]

    def few_clients(self, number: int, there: int, wanted: int) -> None:
        """Say that a round has fewer clients than it should."""
        self._note(
            f"round {number}: only {there} of {wanted} clients are there",
            "few-clients",
            round=number,
            clients=there,
            wanted=wanted,
        )

    def leader(
        self, number: int, assignment: Mapping[str, Architecture], favoured: Sequence[str]
    ) -> None:
        """Say who takes the largest's place where nobody holds the largest."""
        macs = self._space.macs(assignment[favoured[0]])
        self._note(
            f"round {number}: nobody holds the largest subnet; the largest assigned "
            f"({macs / 1e6:.2f} MMACs, client {', '.join(favoured)}) takes its β",
            "no-largest",
            round=number,
            client=favoured[0],
            macs=macs,
        )

    def waiting(self, plan: RoundPlan, indices: Sequence[int], seconds: float) -> None:
        """Say whose replies a round waits for."""
        clients = [list(plan.assignment)[index] for index in indices]
        named = ", ".join(clients[:_SAID]) + (" …" if len(clients) > _SAID else "")
        self._note(
            f"round {plan.round}: waiting for {len(clients)} "
            f"{'reply' if len(clients) == 1 else 'replies'} ({named}) since "
            f"{duration(seconds)}, at most {duration(self._settings.round_timeout)}",
            "waiting",
            round=plan.round,
            clients=clients,
        )

    def lost(self, plan: RoundPlan, index: int) -> None:
        """Say that a node has lost its message."""
        client = list(plan.assignment)[index]
        self._note(
            f"round {plan.round}: client {client} is there and has lost its message (killed at "
            "work and started again?)",
            "message-lost",
            round=plan.round,
            client=client,
        )
