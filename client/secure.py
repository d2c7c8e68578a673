"""The client's half of secure aggregation: its keys, its shares, its masks, and what it refuses.

A round has four exchanges: keys, shares, training (whose reply is masked), unmasking. What a client
must remember from one to the next is in Flower's context of the node: one secret, and how far the
round has come. Each exchange happens once a session, so nothing is masked twice with one mask, and
of each other client a node hands out one of its two secrets' shares, never both.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from superfednas.client.modules import check_modules
from superfednas.client.node_config import Config, node_name
from superfednas.client.worker.handover import on_a_node
from superfednas.common.settings import Scalar, flatten
from superfednas.supernet import SearchSpace
from superfednas.wire.flat import arrays_of
from superfednas.wire.secure.cells import Cell, view, within
from superfednas.wire.secure.fixed import clipped, to_fixed
from superfednas.wire.secure.keys import (
    SECRET,
    KeyProblem,
    Secrets,
    add_mask,
    check_signature,
    commitment,
    own_key,
    pair_key,
    signature,
    split,
)
from superfednas.wire.secure.parties import (
    COMMITMENTS,
    DISTRUSTED,
    KEYS,
    MEMBERS,
    PARTIES,
    SESSION,
    SHARES,
    SIGNATURE,
    STAGE,
    SURVIVORS,
    UNMASK,
    Parties,
    statement,
)

_STATE = "secure-aggregation"
_MASKED, _DONE = "masked", "done"
_LEAST_WEIGHT = 0.01  # of a client that counts, where the server is not believed


class Unsafe(ValueError):  # noqa: N818 (it says what the client will not do)
    """A request that would reveal more than a sum, or that breaks the order of the exchanges."""


def answer(order: Mapping[str, Scalar], node: Config, state: RecordDict) -> dict[str, str]:
    """Answer one of the exchanges around the training.

    Parameters
    ----------
    order
        The query's config.
    node
        The node config: ``name``, and ``node-key`` and ``peer-keys`` where there are any.
    state
        What the node remembers; changed in place.

    Raises
    ------
    Unsafe
        If the client will not answer.
    """
    exchanges = {KEYS: _keys, SHARES: _shares, UNMASK: _unmask}
    stage = str(order[STAGE])
    if stage not in exchanges:
        raise Unsafe("an exchange of secure aggregation that this client does not know")
    return exchanges[stage](order, node, state)


def masked(
    order: Mapping[str, Scalar],
    node: Config,
    state: RecordDict,
    received: np.ndarray,
    trained: np.ndarray,
) -> np.ndarray:
    """Return what a client sends instead of its weights.

    Its change, without the cells that have too few holders, is clipped, multiplied by its weight,
    rounded to fixed point and masked.

    Parameters
    ----------
    order
        The order's config.
    node, state
        As for :func:`answer`.
    received, trained
        The subnet's weights before and after training, as flat arrays in float32.

    Returns
    -------
    numpy.ndarray
        A flat uint32 array of the same length.

    Raises
    ------
    Unsafe
        If the round has not come this far, or too few clients have given shares.
    """
    parties, number, secrets = _joined(order, node, state, SHARES)
    members = _numbers(order[MEMBERS], parties, range(len(parties.parties)))
    if number not in members or len(members) < parties.threshold:
        raise Unsafe(f"{len(members)} clients have given shares: {parties.threshold} are needed")
    _remember(state, stage=_MASKED, members=json.dumps(members))
    space, rule = _space(parties, node), parties.rule(members)
    party, boxes = parties.parties[number], parties.boxes(space, number)
    shapes = space.shapes(space.parse(party.architecture))
    change = trained.astype(np.float64) - received
    mine: list[tuple[Cell, int, np.ndarray]] = []
    sums = np.zeros(change.size, np.uint32)
    changes, places = arrays_of(change, shapes), arrays_of(sums, shapes)
    for cell in parties.cells(space, members):
        if number in cell.holders:
            here, tier = view(within(cell, boxes[cell.tensor])), rule.tier(cell)
            if tier is None:
                changes[cell.tensor][here] = 0
            else:
                mine.append((cell, tier, places[cell.tensor][here]))
    sums += to_fixed(party.weight * clipped(change, parties.clip), parties.scale)
    for tier in {tier for _, tier, _ in mine}:
        parts = [part for _, its, part in mine if its == tier]
        add_mask(parts, own_key(secrets.own(tier)))
    for other in members:
        parts = [part for cell, _, part in mine if other in cell.holders]
        if other != number and parts:
            key = pair_key(secrets.seed, parties.parties[other].public, parties.pair(number, other))
            add_mask(parts, key, subtract=other < number)
    return sums


def _keys(order: Mapping[str, Scalar], node: Config, state: RecordDict) -> dict[str, str]:
    session = int(order[SESSION])
    # Keys that a server knows from an earlier session, signed by their node, are refused with it.
    if session <= int(str(_recall(state).get("session", 0))):
        raise Unsafe("a session of secure aggregation that has been before")
    secrets, root = Secrets.fresh()
    state[_STATE] = ConfigRecord({"session": session, "stage": KEYS, "root": root.hex()})
    found = {KEYS: secrets.public.hex()}
    if "node-key" in node:
        text = statement(session, node_name(node), found[KEYS])
        found[SIGNATURE] = signature(text, Path(str(node["node-key"])).expanduser()).hex()
    return found


def _shares(order: Mapping[str, Scalar], node: Config, state: RecordDict) -> dict[str, str]:
    parties, number, secrets = _joined(order, node, state, KEYS)
    everyone = parties.parties
    if len(parties.numbers) < len(everyone) or len(everyone) < parties.threshold:
        raise Unsafe(f"a sum of {len(parties.numbers)} clients hides nobody")
    if not all(0 <= party.weight <= 1 for party in everyone):
        raise Unsafe("weights that are not from 0 to 1")
    if "peer-keys" in node:
        _check_terms(parties)
        folder = Path(str(node["peer-keys"])).expanduser()
        strange = [k for k in range(len(everyone)) if k != number and _strange(parties, k, folder)]
        if strange:
            return {DISTRUSTED: json.dumps(strange)}
    _remember(state, stage=SHARES, digest=parties.digest.hex())
    own = [secrets.own(tier) for tier in range(parties.tiers)]
    divided = [split(each, parties.threshold, len(everyone)) for each in (secrets.seed, *own)]
    sealed = [
        secrets.seal(b"".join(some), to.public, parties.about(number, receiver)).hex()
        for receiver, (to, some) in enumerate(
            zip(everyone, zip(*divided, strict=True), strict=True)
        )
    ]
    known = [commitment(secret).hex() for secret in own]
    return {SHARES: json.dumps(sealed), COMMITMENTS: json.dumps(known)}


def _unmask(order: Mapping[str, Scalar], node: Config, state: RecordDict) -> dict[str, str]:
    parties, number, secrets = _joined(order, node, state, _MASKED)
    members: list[int] = json.loads(str(_recall(state)["members"]))
    survivors = _numbers(order[SURVIVORS], parties, members)
    if number not in survivors or len(survivors) < parties.threshold:
        raise Unsafe(f"{len(survivors)} clients are left: {parties.threshold} are needed")
    _remember(state, stage=_DONE)
    cells = parties.cells(_space(parties, node), members)
    tiers = sorted(parties.rule(members).released(cells, survivors))
    found: dict[int, dict[str, str]] = {}
    for sender, sealed in json.loads(str(order[SHARES])).items():
        who = int(sender)
        try:
            text = secrets.unseal(
                bytes.fromhex(sealed), parties.parties[who].public, parties.about(who, number)
            )
        except KeyProblem:
            continue  # the others' shares may do
        seed, *own = (text[at : at + SECRET].hex() for at in range(0, len(text), SECRET))
        if who in survivors:
            found[who] = {str(tier): own[tier] for tier in tiers if tier < len(own)}
        elif who in members:
            found[who] = {"seed": seed}
    return {SHARES: json.dumps(found)}


def _joined(
    order: Mapping[str, Scalar], node: Config, state: RecordDict, stage: str
) -> tuple[Parties, int, Secrets]:
    """Return the round's parties, this client's number, and its secrets.

    Raises
    ------
    Unsafe
        If the client is not at this stage, or does not stand among the parties as it is.
    """
    known, parties = _recall(state), Parties.read(str(order[PARTIES]))
    if known.get("stage") != stage or known.get("session") != parties.session:
        raise Unsafe("an exchange of secure aggregation out of turn, or of another session")
    if stage != KEYS and known.get("digest") != parties.digest.hex():
        raise Unsafe("other clients than those that this one has given shares to")
    secrets = Secrets(bytes.fromhex(str(known["root"])))
    number = parties.numbers.get(node_name(node))
    if number is None or parties.parties[number].keys != secrets.public.hex():
        raise Unsafe("this client's own keys are not among those of the round")
    return parties, number, secrets


def _check_terms(parties: Parties) -> None:
    """Refuse what an operator who does not believe the server would not agree to.

    With weights that differ by much more, a sum would be one client's change.
    """
    least = min((party.weight for party in parties.parties if party.weight), default=0.0)
    if parties.few or least < _LEAST_WEIGHT:
        raise Unsafe(
            "peer-keys: this node sends nothing under secure-few, nor beside clients that weigh "
            f"less than {_LEAST_WEIGHT:g} of the heaviest"
        )


def _strange(parties: Parties, number: int, folder: Path) -> bool:
    """Return whether a party's keys were not signed by the node whose key is in a folder."""
    party = parties.parties[number]
    if not party.name or Path(party.name).name != party.name:
        return True  # no file has this name
    text = statement(parties.session, party.name, party.keys)
    try:
        check_signature(text, bytes.fromhex(party.signature), folder / f"{party.name}.pub")
    except KeyProblem:
        return True
    return False


def _numbers(text: Scalar, parties: Parties, among: Iterable[int]) -> list[int]:
    """Return numbers of parties, each once, rising."""
    numbers: list[int] = sorted({int(number) for number in json.loads(str(text))})
    if not set(numbers) <= set(among):
        raise Unsafe("clients that are not of this round")
    return numbers


def _space(parties: Parties, node: Config) -> SearchSpace:
    """Return the space of a round: of what all have agreed on, since cells follow from it."""
    if on_a_node():
        check_modules(node, flatten(parties.space))
    return parties.space.load()


def _recall(state: RecordDict) -> Mapping[str, object]:
    record = state.get(_STATE)
    return dict(record) if isinstance(record, ConfigRecord) else {}


def _remember(state: RecordDict, **values: str) -> None:
    state[_STATE] = ConfigRecord({**_recall(state), **values})  # type: ignore[dict-item]
