"""Verbs for a fleet of real nodes: run, keys, register, revoke, release."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from superfednas.cli.common import Json, app, say, show

ControlApi = Annotated[str, typer.Option(help="HOST:PORT of the SuperLink's Control API.")]
Folder = Annotated[Path, typer.Argument(help="The folder of credentials.")]

_RUN_HELP = """Run on a SuperLink until the run succeeds, and exit with its status.

If the server's app or the SuperLink dies, the run is started again and
resumes after its last round. Repeating the command does the same, or follows
the run if it is still at work.

\bsuperfednas run --superlink 127.0.0.1:9093 \\
    --root-certificates credentials/public/ca.crt \\
    --run-dir /srv/runs/first \\
    --run-config "dataset='none' num-classes=10 in-channels=1 \\
        image-size=28 rounds=20"

Exit status: 0 the run succeeded; 1 it did not: a setting or the app is wrong,
the run was stopped, or attempts or patience ran out (the last line says
which); 2 wrong options.
"""


@app.command(help=_RUN_HELP)
def run(
    run_dir: Annotated[
        Path, typer.Option(help="The run folder on the SuperLink's machine (an absolute path).")
    ],
    superlink: ControlApi = "127.0.0.1:9093",
    root_certificates: Annotated[
        Path | None, typer.Option(help="The authority's certificate; without it there is no TLS.")
    ] = None,
    run_config: Annotated[str, typer.Option(help="Settings, as `flwr run` takes them.")] = "",
    app_dir: Annotated[Path, typer.Option("--app", help="The app's folder.")] = Path(),
    attempts: Annotated[
        int,
        typer.Option(min=1, help="Give up after this many starts in a row that used no reply."),
    ] = 10,
    patience: Annotated[
        float,
        typer.Option(help="Give up after this many seconds without an answer from the SuperLink."),
    ] = 300.0,
    signing_key: Annotated[
        Path | None,
        typer.Option(help="Sign the app, for nodes with --trusted-entities (keys --operator)."),
    ] = None,
) -> None:
    """Run on a SuperLink until the run succeeds."""
    from superfednas.common.trust import references, remember
    from superfednas.deploy.fleet.keep_going import keep_going
    from superfednas.deploy.fleet.superlink import SuperLink
    from superfednas.flower.options import read_config

    if not run_dir.is_absolute() and not str(run_dir).startswith("~"):
        raise ValueError(
            f"run-dir = {str(run_dir)!r}: must be absolute, since the SuperLink's machine writes it"
        )
    if run_config:
        with contextlib.suppress(ValueError):  # the app says what is wrong with it
            remember(references(read_config(run_config)))
    with SuperLink(superlink, root_certificates, signing_key) as link:
        keep_going(
            link,
            app_dir,
            {"run-dir": str(run_dir)},
            run_config,
            attempts=attempts,
            patience=patience,
            note=say,
        )


@app.command()
def keys(
    folder: Folder,
    host: Annotated[
        list[str],
        typer.Option(help="Host name or IP address of the SuperLink; repeatable."),
    ],
    node: Annotated[
        list[str] | None, typer.Option(help="A node that needs a key; repeatable.")
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option(help="An operator who signs the apps that nodes may run; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Validity of a new server certificate.")] = 365,
    json_: Json = False,
) -> None:
    """Make certificates and node keys; existing ones stay as they are.

    superlink/ is for the SuperLink, node-NAME/ for that node, operator-NAME/ for that operator,
    public/ for everybody; authority/ stays here.
    """
    from superfednas.deploy.fleet.credentials import make_credentials

    found = make_credentials(folder, host, node or [], operator or [], days=days)
    until = f"{found.valid_until:%Y-%m-%d}"
    if json_:
        show(
            {
                "made": [str(path) for path in found.made],
                "kept": [str(path) for path in found.kept],
                "server_certificate_until": until,
            }
        )
        return
    for word, paths in (("made", found.made), ("kept", found.kept)):
        for path in paths:
            say(f"{word} {path}")
    say(f"the server certificate is valid until {until}")


@app.command()
def register(
    folder: Folder,
    superlink: ControlApi = "127.0.0.1:9093",
    node: Annotated[list[str] | None, typer.Option(help="Only this node; repeatable.")] = None,
    json_: Json = False,
) -> None:
    """Register nodes at a SuperLink by their public keys; known nodes stay registered.

    Needs only the public/ part of the folder of credentials. The id that Flower gives a node is
    kept there beside its key, for `superfednas revoke`.
    """
    from superfednas.deploy.fleet.credentials import Credentials
    from superfednas.deploy.fleet.registration import KNOWN, NEW, chosen
    from superfednas.deploy.fleet.registration import register as register_nodes
    from superfednas.deploy.fleet.superlink import SuperLink
    from superfednas.flower.api import REVOKED

    found = Credentials(folder)
    keys = chosen(found, node or list(found.public_keys()))
    if not keys:
        raise ValueError(f"{str(folder)!r} has no public keys of nodes: make them by keys --node")
    with SuperLink(superlink, found.authority_certificate) as link:
        told = register_nodes(link, keys)
    revoked = [each.name for each in told if each.state == REVOKED]
    if json_:
        by_state = {
            state: [each.name for each in told if each.state == state] for state in (NEW, KNOWN)
        }
        show({**by_state, "revoked": revoked, "nodes": {each.name: each.node for each in told}})
    else:
        said = {NEW: "registered", KNOWN: "was registered already", REVOKED: "not registered"}
        for each in told:
            say(f"{each.name}: {said[each.state]}, node {each.node or 'not known'}")
            if each.problem:
                say(f"{each.name}: its id is not kept here: {each.problem}")
    if revoked:
        raise ValueError(
            f"{', '.join(revoked)}: the key was revoked, and a SuperLink never takes it again; for "
            "a new one: superfednas revoke (which puts the old one away), then keys and register"
        )


@app.command()
def revoke(
    folder: Folder,
    node: Annotated[list[str], typer.Option(help="The node's name; repeatable.")],
    superlink: ControlApi = "127.0.0.1:9093",
    json_: Json = False,
) -> None:
    """Revoke nodes: unregister them at a SuperLink by name, and move their keys away.

    A running node is refused the next time it asks. Its keys, as far as they are here, move to
    revoked/ in the folder of credentials; nothing is deleted. A SuperLink never accepts a revoked
    key again: a node that may return gets a new one with `superfednas keys` and `register`.
    """
    from superfednas.deploy.fleet.credentials import Credentials
    from superfednas.deploy.fleet.registration import revoke as revoke_nodes
    from superfednas.deploy.fleet.superlink import SuperLink

    found = Credentials(folder)
    with SuperLink(superlink, found.authority_certificate) as link:
        told = revoke_nodes(link, found, node)
    if json_:
        show([{**dataclasses.asdict(each), "kept_in": str(each.kept_in)} for each in told])
    else:
        for each in told:
            say(f"{each.name}: revoked, node {each.node} (it was {each.before})")
            if not each.problem:
                say(f"{each.name}: its keys here are now in {each.kept_in}")
            say(f"{each.name}: left to do: on its machine, end the node and delete its node.key")
    for each in told:
        if each.problem:
            raise ValueError(
                f"{each.name} is revoked, but its keys could not be put away ({each.problem}): "
                f"move public/{each.name}.pub and .id and node-{each.name}/ away by hand, since a "
                "SuperLink with a new database would take that key again"
            )


@app.command()
def release(
    run_dir: Annotated[Path, typer.Argument(help="The run folder, on the SuperLink's machine.")],
    name: Annotated[str, typer.Argument(help="The node's name, as its node config has it.")],
    json_: Json = False,
) -> None:
    """Release a node's name in a run, so that another node can have it.

    For a machine that was installed anew, or has a new key: a name belongs to the node that said
    it first. It goes to the next other node that says it, at the next round of a run at work, and
    of one that was stopped once it is resumed. Until then the node that had it may go on; end or
    revoke it if it should not.
    """
    from superfednas.deploy.doctor.finding import few
    from superfednas.records.folder import RunFolder, RunFolderError
    from superfednas.records.index import FINISHED, names_in
    from superfednas.records.releases import release as release_name

    run_folder = RunFolder.open(run_dir)
    if run_folder.info.get("status") == FINISHED:
        raise RunFolderError(f"{str(run_folder.path)!r} has finished: its names are nobody's")
    if name not in (known := names_in(run_folder.path)):
        raise RunFolderError(
            f"{str(run_folder.path)!r} knows no node {name!r}: "
            + (f"there are {few(sorted(known))}" if known else "none has joined yet")
        )
    release_name(run_folder.path, name)
    if json_:
        show({"run": str(run_folder.path), "released": name})
    else:
        say(f"{name}: released; it goes to the next other node that says it")
