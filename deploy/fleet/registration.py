"""Registration: nodes are registered at a SuperLink, and revoked, by name.

Flower knows a node by a number that it reveals once, at registration. The number is kept beside the
node's public key, in ``public/NAME.id``, together with that key, so that the number of an earlier
key of the same name is never mistaken for it.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from superfednas.common.files import write_whole
from superfednas.deploy.fleet.credentials import Credentials
from superfednas.deploy.fleet.superlink import SuperLink, SuperLinkError
from superfednas.flower.api import CONTROL, REVOKED, Address, key_bytes, nodes

NEW, KNOWN = "registered", "known"
_AWAY = "revoked"


@dataclass(frozen=True)
class Registered:
    """The result of registering a node.

    Parameters
    ----------
    name
        Its name.
    state
        ``registered`` (just now), ``known`` (from before), or ``unregistered``: its key was
        revoked, and a SuperLink never accepts it again.
    node
        Its id; empty if Flower does not reveal it.
    problem
        Why the id was not kept; empty if it was.
    """

    name: str
    state: str
    node: str
    problem: str = ""


@dataclass(frozen=True)
class Revoked:
    """The result of revoking a node.

    Parameters
    ----------
    name, node
        Its name and id.
    before
        The node's status before, as in ``flwr supernode list``.
    kept_in
        Where its keys are now.
    problem
        Why they could not be moved there; empty if they were.
    """

    name: str
    node: str
    before: str
    kept_in: Path
    problem: str = ""


def chosen(credentials: Credentials, names: Sequence[str]) -> dict[str, Path]:
    """Return the public keys of the nodes with these names, in their order.

    Raises
    ------
    ValueError
        If a name has no key; it lists the names that have one.
    """
    known = credentials.public_keys()
    for name in names:
        if name not in known:
            where = f"{str(credentials.folder)!r} has keys of {', '.join(known) or 'no node'}"
            for put_away in (credentials.folder / _AWAY).glob("*"):
                if put_away.name.rpartition("-")[0] == name:
                    where += f"; one of {name} was revoked and is in {str(put_away)!r}"
            raise ValueError(f"node = {name!r}: {where}")
    return {name: known[name] for name in dict.fromkeys(names)}


def register(link: SuperLink, keys: dict[str, Path]) -> list[Registered]:
    """Register nodes, and keep each id beside its key.

    Parameters
    ----------
    link
        The SuperLink.
    keys
        Public keys by name.

    Raises
    ------
    SuperLinkError
        If the SuperLink does not answer, or does not accept a key.
    """
    new = {name: link.register(key) for name, key in keys.items()}
    there = {} if all(new.values()) else link.nodes()
    return [_registered(link, there, name, key, new[name]) for name, key in keys.items()]


def _registered(
    link: SuperLink, there: dict[str, str], name: str, key: Path, new: str | None
) -> Registered:
    node, state = new or "", NEW
    if new is None:
        state = KNOWN
        with contextlib.suppress(SuperLinkError):  # a node that is admitted anyway needs no id
            node, status = _find(link, there, key) or ("", "")
            if status == REVOKED:
                return Registered(name, REVOKED, node)
    problem = ""
    if node and node != _kept(key):
        try:
            write_whole(_id_file(key), f"{node} {_text(key)}\n", mode=0o644)
        except OSError as error:  # the folder may be read-only
            problem = str(error)
    return Registered(name, state, node, problem)


def revoke(link: SuperLink, credentials: Credentials, names: Iterable[str]) -> list[Revoked]:
    """Revoke nodes and move their keys away; nothing is deleted.

    A public key left in place would be registered again at a SuperLink with a new database.

    Parameters
    ----------
    link
        The SuperLink.
    credentials
        The folder with the nodes' public keys; private keys are not needed.
    names
        The nodes.

    Raises
    ------
    ValueError
        If a name has no key; nothing is done then.
    SuperLinkError
        If the SuperLink does not answer, or a node is not registered there or its id is not known.
        Nothing is done then, except for nodes handled before the SuperLink fell silent.
    """
    keys, there, found = chosen(credentials, [*names]), link.nodes(), {}
    for name, key in keys.items():
        node = _find(link, there, key)
        if node is None:
            raise SuperLinkError(
                f"{name} is not registered at {link.address}, and nothing was changed: name the "
                f"SuperLink that it takes part in, or move {str(key)!r} away if there is none"
            )
        found[name] = node
    return [_revoke(link, credentials, name, keys[name], *found[name]) for name in keys]


def _revoke(
    link: SuperLink, credentials: Credentials, name: str, key: Path, node: str, before: str
) -> Revoked:
    if before != REVOKED:
        link.unregister(node)
    away = credentials.folder / _AWAY / f"{name}-{node}"
    problem = ""
    try:
        _put_away((key, _id_file(key), credentials.folder / f"node-{name}"), away)
    except OSError as error:
        problem = str(error)
    return Revoked(name, node, before, away, problem)


def _put_away(paths: Iterable[Path], away: Path) -> None:
    for folder in (away.parent, away):
        folder.mkdir(mode=0o700, exist_ok=True)
    for path in paths:
        if path.exists():
            path.rename(away / path.name)


def _find(link: SuperLink, there: dict[str, str], key: Path) -> tuple[str, str] | None:
    """Return the id and status of the node with a key; None if the SuperLink has no such node.

    Raises
    ------
    SuperLinkError
        If the id was not kept, and this Flower does not reveal which node has which key.
    """
    kept = _kept(key)
    return (kept, there[kept]) if kept in there else _find_by_key(link, key)


def _find_by_key(link: SuperLink, key: Path) -> tuple[str, str] | None:
    """Ask for the keys of all nodes, which no ``flwr`` command shows."""
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        public = key_bytes(load_ssh_public_key(key.read_bytes()))
        answer = nodes(Address.parse(CONTROL, link.address, link.root_certificates))
        if hasattr(answer, "nodes_info"):
            of = {info.public_key: (str(info.node_id), info.status) for info in answer.nodes_info}
            return of.get(public)
        reason = str(answer.details())
    except (ImportError, AttributeError, ValueError) as error:  # another Flower, or no public key
        reason = str(error)
    raise SuperLinkError(
        f"the id of the node with {str(key)!r} is not known: {str(_id_file(key))!r} does not hold "
        f"it, and the SuperLink did not tell it ({reason}). The events 'joined' in a run folder's "
        "log.jsonl name node and client: flwr supernode unregister NODE"
    )


def _id_file(key: Path) -> Path:
    return key.with_suffix(".id")


def _kept(key: Path) -> str:
    """Return the id kept for this very key; empty if there is none."""
    try:
        node, *of = _id_file(key).read_text().split()
    except (OSError, ValueError):
        return ""
    return node if of == _text(key).split() else ""


def _text(key: Path) -> str:
    """Return a public key's kind and content, without a comment."""
    return " ".join(key.read_text().split()[:2])
