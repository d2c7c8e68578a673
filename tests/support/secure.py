"""Secure aggregation by hand: clients that answer as nodes do, and a server that adds up."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from superfednas.client.secure import answer, masked
from superfednas.common.settings import Scalar
from superfednas.server.average.overlap import OverlapAverage
from superfednas.server.secure.answers import Recovery, Shared, keys_in, shares_in
from superfednas.server.secure.total import MaskedSum
from superfednas.supernet import Architecture, State
from superfednas.supernet.boxes import Cut
from superfednas.wire.flat import pack, unpack
from superfednas.wire.order import CONFIG, SpaceOptions
from superfednas.wire.secure.parties import Parties, Party

ASKED = Message(RecordDict(), dst_node_id=1, message_type="query", group_id="1")
TINY = SpaceOptions("mobilenetv1-tiny", num_classes=3, in_channels=1, image_size=8, task="images")


class Federation:
    """The clients of one round, their changes, and the exchanges one after the other.

    Parameters
    ----------
    archs, weights, shifts
        Each client's subnet, its weight, and by how much its windows are shifted.
    options, clip, few, session
        The space, and what the round is told.
    nodes
        Number of a client to more of its node config.
    """

    def __init__(
        self,
        archs: Sequence[Architecture],
        weights: Sequence[float] | None = None,
        shifts: Sequence[int] | None = None,
        *,
        options: SpaceOptions = TINY,
        clip: float = 10.0,
        few: bool = True,
        session: int = 1,
        nodes: Mapping[int, Mapping[str, Scalar]] | None = None,
    ) -> None:
        self.options, self.space, self.archs = options, options.load(), archs
        self.weights = weights or [1.0] * len(archs)
        self.shifts = shifts or [0] * len(archs)
        self.clip, self.few, self.session = clip, few, session
        self.memories = [RecordDict() for _ in archs]
        self.nodes: list[dict[str, Scalar]] = [
            {"name": f"c{k}", **(nodes or {}).get(k, {})} for k in range(len(archs))
        ]
        self.state = self.space.init(0)
        shapes = self.space.shapes(self.space.largest)
        self.cuts = [Cut(shapes, self.boxes(k)) for k in range(len(archs))]

    def boxes(self, k: int) -> Any:
        arch, shift = self.archs[k], self.shifts[k]
        return self.space.rolled(arch, shift) if shift else self.space.boxes(arch)

    def ask(self, k: int, stage: str, **config: Scalar) -> Message:
        """Ask a client; its answer as a message."""
        order: dict[str, Scalar] = {"secure-stage": stage, "secure-session": self.session}
        order |= {key if key == "shares" else f"secure-{key}": v for key, v in config.items()}
        found = ConfigRecord(dict(answer(order, self.nodes[k], self.memories[k])))
        return Message(RecordDict({CONFIG: found}), reply_to=ASKED)

    def exchange_keys(self) -> Parties:
        keys = [keys_in(self.ask(k, "keys")) for k in range(len(self.archs))]
        self.parties = Parties(
            self.session,
            self.clip,
            self.few,
            self.options,
            tuple(
                Party(f"c{k}", arch.to_json(), self.shifts[k], self.weights[k], *keys[k])
                for k, arch in enumerate(self.archs)
            ),
        )
        return self.parties

    def exchange_shares(self, of: Collection[int] | None = None) -> dict[int, Shared]:
        text = self.parties.text()
        self.members = {
            k: shares_in(self.ask(k, "shares", parties=text), self.parties)
            for k in (range(len(self.archs)) if of is None else of)
        }
        return self.members

    def reply(self, k: int, change: np.ndarray, members: Collection[int] | None = None) -> Any:
        """What a client sends whose weights were zero and are ``change`` after training."""
        order: dict[str, Scalar] = {"secure-parties": self.parties.text()}
        order["secure-members"] = str(sorted(self.members if members is None else members))
        zero = np.zeros_like(change)
        return masked(order, self.nodes[k], self.memories[k], zero, change)

    def sum_of(self, changes: Mapping[int, np.ndarray]) -> MaskedSum:
        total = MaskedSum(self.space, self.parties, self.members)
        for k, change in changes.items():
            total.add(k, self.reply(k, change), self.cuts[k])
        return total

    def handed_out(self, k: int, survivors: Collection[int]) -> Message:
        sealed = ", ".join(f'"{s}": "{m.sealed[k]}"' for s, m in self.members.items())
        text = self.parties.text()
        named = str(sorted(survivors))
        return self.ask(k, "unmask", parties=text, survivors=named, shares=f"{{{sealed}}}")

    def unmasked(
        self, total: MaskedSum, survivors: Collection[int], answering: Collection[int]
    ) -> State | None:
        tiers = total.rule.released(total.cells, survivors)
        recovery = Recovery(self.parties, self.members, survivors, tiers)
        for k in answering:
            recovery.take(self.handed_out(k, survivors), k)
        assert recovery.complete()
        total.unmask(survivors, tiers, recovery.secrets)
        return total.merged(self.state, survivors, tiers)

    def plain(self, changes: Mapping[int, np.ndarray]) -> State:
        """The plain average of the same changes, as new weights in float64."""
        wide = {name: tensor.double() for name, tensor in self.state.items()}
        average = OverlapAverage(wide)
        for k, change in changes.items():
            update = {}
            for name, part in unpack(change, self.cuts[k].shapes).items():
                new = part.double()
                for outer, inner in self.cuts[k].parts(name):
                    new[inner] += wide[name][outer]
                update[name] = new
            average.add(update, self.weights[k], self.cuts[k])
        return average.result()

    def changes(self, seed: int, size: float = 0.01) -> dict[int, np.ndarray]:
        random = np.random.default_rng(seed)
        return {
            k: pack(
                {
                    name: torch.from_numpy(size * random.standard_normal(shape)).float()
                    for name, shape in cut.shapes.items()
                }
            )
            for k, cut in enumerate(self.cuts)
        }


def furthest(a: State, b: State) -> float:
    """Return the largest difference of two states."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
