"""Notices of a run besides the line per round: its plan, missing clients, lost messages."""

from collections.abc import Sequence

from superfednas.common.words import counted, duration, prefix_of
from superfednas.server.journal.progress import Note
from superfednas.server.round.check import Reply
from superfednas.server.round.orders import RoundPlan
from superfednas.server.settings import Settings
from superfednas.supernet import SearchSpace
from superfednas.wire.source import source_fingerprint

_ENDS = 2  # the smallest and the largest
_SAID = 5  # names in one sentence


class Telling:
    """Reports events in sentences.

    Parameters
    ----------
    settings, space
        Of the run.
    note
        Takes each sentence.
    """

    def __init__(self, settings: Settings, space: SearchSpace, note: Note) -> None:
        self._settings, self._space, self._note = settings, space, note
        self._other_code: set[str] = set()

    def summary(self) -> None:
        """Report what will be trained, and how."""
        s, space = self._settings, self._space
        rule = (
            f"{s.averaging} averaging"
            if s.beta() is None
            else f"MaxNet averaging, β {s.beta_schedule} {s.beta_start:g} to "
            f"{s.beta_end or 1 / s.clients_per_round:g} over {s.beta_share:.0%} of the rounds"
        )
        ends = [space.macs(arch) for arch in (space.smallest, space.largest)]
        macs = prefix_of(ends)
        for line in (
            f"space {space.name}: {space.size:,} subnets, "
            f"{macs.say(ends[0])} to {macs.say(ends[1])} {macs.letter}MACs, norm {space.norm}",
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
        if s.secure.secure_aggregation:
            self._note(
                f"secure-aggregation: replies are masked, clipped by clients to "
                f"{s.secure.secure_clip:g} (secure-clip) and read as a sum alone; bounds on single "
                "replies, robust averages, late folding and 16-bit formats are off, and numbers "
                "beside weights are not masked"
                + (", nor hidden is what one or two clients hold" if s.secure.secure_few else ""),
                "secure-aggregation",
            )
        if s.weighting == "examples":
            bound = f"at most {s.max_share:.0%} of a round's" if s.max_share else "without a bound"
            self._note(
                "weighting = 'examples': the number of images that a node declares is believed, "
                f"{bound} (max-share)",
                "counts-believed",
            )
        if s.assigns.ends_only and s.clients_per_round <= _ENDS:
            self._note(
                f"clients-per-round = {s.clients_per_round}: {s.assignment} then trains only the "
                "ends of the space; use 3 or more, or assignment = 'random'"
            )

    def _locally(self) -> list[str]:
        """Report which subnets a client trains, if not the one it gets."""
        own = self._settings.subnets
        if not own.drawn:
            return []
        among = "the smallest and the largest among them, " if own.largest_first else ""
        return [
            f"every step trains {own.subnets_per_step} subnets of what a client gets "
            f"(local-subnets {own.local_subnets}), {among}distillation {own.distil}"
        ]

    def few_clients(self, number: int, there: int, wanted: int) -> None:
        """Report that a round has fewer clients than it should."""
        self._note(
            f"round {number}: only {there} of {wanted} clients are there",
            "few-clients",
            round=number,
            clients=there,
            wanted=wanted,
        )

    def leader(self, plan: RoundPlan) -> None:
        """Report who takes the place of the largest if nobody holds the largest."""
        favoured = [order for order in plan.orders if order.favoured]
        macs = self._space.macs(favoured[0].arch)
        self._note(
            f"round {plan.round}: nobody holds the largest subnet; the largest assigned "
            f"({counted(macs, 'MACs')}, client {', '.join(order.name for order in favoured)}) "
            "takes its β",
            "no-largest",
            round=plan.round,
            client=favoured[0].name,
            macs=macs,
        )

    def waiting(self, plan: RoundPlan, indices: Sequence[int], seconds: float) -> None:
        """Report whose replies a round is waiting for."""
        clients = [plan.orders[index].name for index in indices]
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
        """Report that a node has lost its message."""
        client = plan.orders[index].name
        self._note(
            f"round {plan.round}: client {client} is online but has lost its message (killed at "
            "work and started again?)",
            "message-lost",
            round=plan.round,
            client=client,
        )

    def code(self, client: str, reply: Reply) -> None:
        """Report, once, a client that runs different code from the server."""
        source = reply.source_root or reply.source
        if reply.source == source_fingerprint() or source in self._other_code:
            return
        self._other_code.add(source)
        text = f"client {client} runs other code than the server (its fingerprint: {source!r})"
        if reply.source_root:
            text = (
                f"client {client} runs other code than the server, from {source!r}: a local "
                "SuperLink started from another folder uses that folder's packages; "
                "`superfednas stop` ends it"
            )
        self._note(text, "other-code", client=client, source=source)

    def no_scores(self, number: int, clients: int) -> None:
        """Report that nobody has scored the ladder, because all keep their scores."""
        self._note(
            f"round {number}: no score of the ladder: all {clients} clients keep theirs "
            "(tell-scores in their node configs)",
            "no-scores",
            round=number,
            clients=clients,
        )
