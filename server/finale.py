"""What a run says at its end: the ladder's table, what was hardly trained, who fared how."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from server.evaluation import client_spread, coverage, hardly_trained
from server.progress import amount, traffic
from supernet import SearchSpace

Row = dict[str, Any]


def summarise(
    space: SearchSpace, rows: Sequence[Row], rounds: int, *, as_assigned: bool = True
) -> Row:
    """Return the run's ``summary`` row: cost, replies, coverage and spread over clients.

    ``as_assigned`` is False where clients train other subnets than those that they are assigned,
    or all are of a few width levels: ranges that nobody was assigned then say nothing.
    """
    done = [row for row in rows if row["kind"] == "round"]
    clients = [client for row in done for client in row["clients"]]
    reasons: dict[str, int] = {}
    for client in clients:
        if not client["accepted"]:
            reasons[client["reason"]] = reasons.get(client["reason"], 0) + 1
    return {
        "kind": "summary",
        "round": rounds,
        "replies": sum(client["accepted"] for client in clients),
        "refused": reasons,
        "bytes": sum(traffic(row) for row in done),
        "gmac_images": sum(map(mac_images, clients)) / 1e9,
        "seconds": sum(row["seconds"] for row in done),
        "coverage": coverage(space, done),
        "as_assigned": as_assigned,
        "spread": client_spread(done),
    }


def mac_images(client: Mapping[str, Any]) -> int:
    """Forward MACs of one image times images trained on, as SuperFedNAS counts cost.

    Parameters
    ----------
    client
        A client's entry of a round's row. Rows of runs before there were several subnets a step
        say only which subnet it was, and how many images.
    """
    return int(client.get("mac_images", client["macs"] * client.get("images", 0)))


def print_finale(evaluation: Row | None, summary: Row, *, data_name: str, console: Console) -> None:
    """Print the table of an evaluation row and the sentences of a summary row."""
    if evaluation is not None:
        console.print(ladder_table(evaluation, data_name))
    for sentence in sentences(summary):
        console.print(sentence, markup=False, soft_wrap=True)


def ladder_table(evaluation: Row, data_name: str) -> Table:
    """Return the table of a ladder."""
    where = "" if evaluation["where"] == "server" else ", measured by the clients"
    if evaluation["where"] == "clients":
        where += f" on the weights of round {evaluation['trained_rounds']}"
    table = Table(title=f"{data_name}: {evaluation['split']} accuracy{where}", title_justify="left")
    table.add_column("subnet")
    for heading in ("MMACs", "parameters", "accuracy", "images"):
        table.add_column(heading, justify="right")
    for rung in evaluation["ladder"]:
        table.add_row(
            rung["name"],
            f"{rung['macs'] / 1e6:.2f}",
            f"{rung['params']:,}",
            f"{rung['accuracy']:.2%}",
            str(rung["examples"]),
        )
    return table


def sentences(summary: Row) -> list[str]:
    """Return the summary as sentences."""
    said = [
        f"Cost: {summary['gmac_images']:,.1f} GMAC·images forward, {amount(summary['bytes'])} sent "
        f"and received, {summary['seconds']:.0f} s in {summary['round']} rounds."
    ]
    if summary["refused"]:
        counts = "; ".join(f"{count} × {why}" for why, count in summary["refused"].items())
        said.append(f"Refused replies: {counts}.")
    ranges = hardly_trained(summary)
    if ranges:
        named = ", ".join(f"{low / 1e6:.2f} to {high / 1e6:.2f}" for low, high in ranges)
        said.append(
            f"Hardly trained (fewer than 1% of the assignments, end points aside): {named} MMACs."
        )
    said += [_spread_sentence(which, found) for which, found in summary["spread"].items()]
    return said


def _spread_sentence(which: str, found: Mapping[str, Any]) -> str:
    subnet = {"smallest": "the smallest subnet", "own": "the subnet each was assigned"}[which]
    return (
        f"Over {found['clients']} clients, {subnet} has {found['mean']:.1%} ± {found['sd']:.1%} on "
        f"their own validation images when last asked (least {found['min']:.1%}, client "
        f"{found['lowest']}; most {found['max']:.1%})."
    )
