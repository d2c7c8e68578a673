"""Verbs for a fleet of real nodes: keys, register."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Json, app, show

Folder = Annotated[Path, typer.Argument(help="The folder of credentials.")]


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
    superlink: Annotated[
        str, typer.Option(help="HOST:PORT of the SuperLink's Control API.")
    ] = "127.0.0.1:9093",
    node: Annotated[
        list[str] | None, typer.Option(help="Only this node; may be given several times.")
    ] = None,
    json_: Json = False,
) -> None:
    """Register nodes at a SuperLink by their public keys; those it knows already stay registered.

    Needs only the public/ part of the folder of credentials.
    """
    from deploy.credentials import Credentials
    from deploy.superlink import SuperLink

    found = Credentials(folder)
    known = found.public_keys()
    for name in node or []:
        if name not in known:
            raise ValueError(f"node = {name!r}: {str(folder)!r} has keys of {', '.join(known)}")
    if not known:
        raise ValueError(f"{str(folder)!r} has no public keys of nodes: make them by keys --node")
    with SuperLink(superlink, found.authority_certificate) as link:
        new = {name: link.register(known[name]) for name in node or known}
    if json_:
        show({"registered": [n for n in new if new[n]], "known": [n for n in new if not new[n]]})
        return
    for name, made in new.items():
        print(f"{name}: {'registered' if made else 'was registered already'}")
