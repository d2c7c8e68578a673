"""Verbs for a fleet of real nodes: run, keys, register, revoke."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cli.common import Json, app, show

ControlApi = Annotated[str, typer.Option(help="HOST:PORT of the SuperLink's Control API.")]
Folder = Annotated[Path, typer.Argument(help="The folder of credentials.")]

_RUN_HELP = """Run on a SuperLink until the run has ended well, and tell so by the exit status.

Where the server's app or the SuperLink dies, the run is started again and
goes on after its last round. The same command again does so too, or follows
the run where it is still at work.

\bsuperfednas run --superlink lab.example:9093 \\
    --root-certificates credentials/public/ca.crt \\
    --run-dir /srv/runs/first \\
    --run-config "dataset='none' num-classes=10 in-channels=1 \\
        image-size=28 rounds=20"

Exit status: 0 the run has ended well; 1 it has not: a setting or the app is
wrong, the run was stopped, or attempts or patience came to their end (the
last line says which); 2 wrong options.
"""


@app.command(help=_RUN_HELP)
def run(
    run_dir: Annotated[
        Path, typer.Option(help="The run folder, as the SuperLink's machine calls it (absolute).")
    ],
    superlink: ControlApi = "127.0.0.1:9093",
    root_certificates: Annotated[
        Path | None, typer.Option(help="The authority's certificate; without it there is no TLS.")
    ] = None,
    run_config: Annotated[str, typer.Option(help="Settings, as `flwr run` takes them.")] = "",
    app_dir: Annotated[Path, typer.Option("--app", help="The app's folder.")] = Path(),
    attempts: Annotated[
        int,
        typer.Option(
            min=1, help="Starts in a row that may end without a finished round; then it gives up."
        ),
    ] = 10,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds for which a SuperLink may give no answer; then this command gives up."
        ),
    ] = 300.0,
) -> None:
    """Run on a SuperLink until the run has ended well."""
    from deploy.keeping import keep_going
    from deploy.superlink import SuperLink

    if not run_dir.is_absolute() and not str(run_dir).startswith("~"):
        raise ValueError(
            f"run-dir = {str(run_dir)!r}: must be absolute, since the SuperLink's machine writes it"
        )
    with SuperLink(superlink, root_certificates) as link:
        keep_going(
            link,
            app_dir,
            {"run-dir": str(run_dir)},
            run_config,
            attempts=attempts,
            patience=patience,
            note=lambda text: print(text, flush=True),
        )


@app.command()
def keys(
    folder: Folder,
    host: Annotated[
        list[str],
        typer.Option(help="Host name or IP address of the SuperLink; may be given several times."),
    ],
    node: Annotated[
        list[str] | None, typer.Option(help="A node that needs a key; may be given several times.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Validity of a new server certificate.")] = 365,
    json_: Json = False,
) -> None:
    """Make certificates and node keys; what is there already stays as it is.

    superlink/ is for the SuperLink, node-NAME/ for the node, public/ for everybody; authority/
    stays here.
    """
    from deploy.credentials import make_credentials

    found = make_credentials(folder, host, node or [], days=days)
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
            print(f"{word} {path}")
    print(f"the server certificate is valid until {until}")


@app.command()
def register(
    folder: Folder,
    superlink: ControlApi = "127.0.0.1:9093",
    node: Annotated[
        list[str] | None, typer.Option(help="Only this node; may be given several times.")
    ] = None,
    json_: Json = False,
) -> None:
    """Register nodes at a SuperLink by their public keys; those it knows already stay registered.

    Needs only the public/ part of the folder of credentials. The id that Flower gives a node is
    kept there beside its key, for `superfednas revoke`.
    """
    from deploy.asking import REVOKED
    from deploy.credentials import Credentials
    from deploy.membership import KNOWN, NEW, chosen
    from deploy.membership import register as register_nodes
    from deploy.superlink import SuperLink

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
            print(f"{each.name}: {said[each.state]}, node {each.node or 'not known'}")
            if each.problem:
                print(f"{each.name}: its id is not kept here: {each.problem}")
    if revoked:
        raise ValueError(
            f"{', '.join(revoked)}: the key was revoked, and a SuperLink never takes it again; for "
            "a new one: superfednas revoke (which puts the old one away), then keys and register"
        )


@app.command()
def revoke(
    folder: Folder,
    node: Annotated[list[str], typer.Option(help="The node's name; may be given several times.")],
    superlink: ControlApi = "127.0.0.1:9093",
    json_: Json = False,
) -> None:
    """Let nodes in no more: unregister them at a SuperLink by name, and put their keys away.

    A running node is refused at its next question. Its keys, as far as they are here, go to
    revoked/ in the folder of credentials; nothing is deleted. A SuperLink never takes a revoked key
    again: a node that may return gets a new one by `superfednas keys` and `register`.
    """
    from deploy.credentials import Credentials
    from deploy.membership import revoke as revoke_nodes
    from deploy.superlink import SuperLink

    found = Credentials(folder)
    with SuperLink(superlink, found.authority_certificate) as link:
        told = revoke_nodes(link, found, node)
    if json_:
        show([{**dataclasses.asdict(each), "kept_in": str(each.kept_in)} for each in told])
    else:
        for each in told:
            print(f"{each.name}: revoked, node {each.node} (it was {each.before})")
            if not each.problem:
                print(f"{each.name}: its keys here are now in {each.kept_in}")
            print(f"{each.name}: left to do: on its machine, end the node and delete its node.key")
    for each in told:
        if each.problem:
            raise ValueError(
                f"{each.name} is revoked, but its keys could not be put away ({each.problem}): "
                f"move public/{each.name}.pub and .id and node-{each.name}/ away by hand, since a "
                "SuperLink with a new database would take that key again"
            )
