"""The faults that Flower and the strategy name, what each means, and its remedy.

A fault is known by what a run's metrics or a log say of it. Seconds are those of Flower 1.31.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.finding import OK, WARNING, Finding, few
from server.newest import FAILED, describe_end, reason_of, status_of

_TAIL = 2_000_000  # bytes of a log that are read, from its end


@dataclass(frozen=True)
class Fault:
    """A known fault.

    Parameters
    ----------
    pattern
        A regular expression that finds it in a reason or in a line of a log.
    meaning
        What happened.
    remedy
        What to do.
    """

    pattern: str
    meaning: str
    remedy: str


_BUDGET = "give the node a budget that it can keep: superfednas probe"
_RESUME = (
    "go on with the run folder: superfednas run --run-dir DIR …, which also starts it again by "
    "itself, or flwr run . --run-config \"resume='DIR'\""
)
_SAME_CODE = (
    "install the same version of this project on server and nodes, superfednas stop, start again"
)
FAULTS = (
    Fault(
        r"nodes are needed and \d+ usable",
        "too few nodes were there when the run began",
        "start the missing nodes (superfednas doctor --control HOST:9093 counts those that are "
        "there) and mend what is said of the others; or lower clients-per-round and min-nodes, or "
        "raise node-timeout",
    ),
    Fault(
        r"error 5\b|NODE_UNAVAILABLE",
        "the node was killed, frozen or cut off in the middle of a round",
        "nothing for the run, which uses the node again once it is back; if it was killed, start "
        "it again (flower-supernode with a registered key 60 s later: its lease must end first)",
    ),
    Fault(
        r"no reply within|no answer in time",
        "the node was frozen or too slow for the deadline",
        f"{_BUDGET}; or raise round-timeout",
    ),
    Fault(
        r"error 8\b|ClientApp stopped responding",
        "the node's client process died, most often for want of memory",
        _BUDGET,
    ),
    Fault(
        r"ActorDiedError|OutOfMemoryError",
        "a simulated client's process died, most often for want of memory",
        'train fewer clients at a time: --federation-config "client-resources-num-cpus=2"',
    ),
    Fault(r"error 1\b", "the node could not load the app's client", _SAME_CODE),
    Fault(
        r"error 3\b|MESSAGE_UNAVAILABLE",
        "the node has another id now, or the message was too old",
        "nothing: the node is asked anew who it is",
    ),
    Fault(
        r"error 4\b",
        "the node is there and has lost its message twice: it was killed at work on it, or could "
        "not fetch it",
        f"{_BUDGET}, and look at the node's log",
    ),
    Fault(
        r"error 2\b",
        "the client raised an exception, which the reason names",
        "mend what the reason names in that node's data or node config, then start it again",
    ),
    Fault(
        r"not finite|metric .* must be a finite number",
        "the client's training diverged",
        "lower lr, keep clip-norm above 0, and look at that node's images and labels",
    ),
    Fault(
        r"^round .* in place of",
        "a reply to an earlier round came late",
        f"nothing, if it is seldom: the reply is not used; else {_BUDGET}",
    ),
    Fault(
        r"^(names|architecture|shape|dtype|size)\b.* in place of|^(names: no|dtype:) ",
        "the node's reply does not fit what it was sent",
        f"{_SAME_CODE}; if it goes on, that node is not to be trusted: take its key away",
    ),
    Fault(
        r"^metric .*: the node declared",
        "the node claims more images than it said it had",
        "start the node again if its data have grown; else it is not to be trusted: take its key "
        "away (superfednas revoke)",
    ),
    Fault(
        r"^metric ",
        "the node's reply holds numbers that cannot be",
        _SAME_CODE,
    ),
    Fault(
        r"no reply before the round closed",
        "the round had enough replies before this one came",
        "nothing, if it is seldom; else raise min-replies or min-weight, or late-replies='fold'",
    ),
    Fault(
        r"No SuperNode found with the given public key",
        "the superlink does not know the node's key",
        "superfednas register CREDENTIALS --superlink HOST:9093, then start the node; a key that "
        "was revoked is never taken again: move it away and make another (superfednas keys)",
    ),
    Fault(
        r"SuperNode registration is disabled|SuperNode authentication is enabled",
        "the superlink admits only registered keys, and the node has none",
        "superfednas keys CREDENTIALS --node NAME, superfednas register CREDENTIALS, and start the "
        "node with --auth-supernode-private-key node-NAME/node.key",
    ),
    Fault(
        r"could not be activated",
        "the node was started again before the lease of its key had ended (60 s at most)",
        "start it by superfednas node, which waits for that, or 60 s later; where it is refused "
        "then too, another node has its key",
    ),
    Fault(
        r"Connection to the SuperLink is unavailable",
        "the superlink was killed",
        f"start it again, always with --database FILE; then {_RESUME}",
    ),
    Fault(
        r"No heartbeat received from the task",
        "the server app died, alone or with the superlink",
        _RESUME,
    ),
    Fault(
        r"Invalid node ID",
        "the superlink was started again without its database, and its nodes exit",
        "start the superlink with --database FILE and the nodes from a process supervisor",
    ),
    Fault(
        r"Timed out waiting for file",
        "Ray did not start in time on a busy machine",
        "run it again",
    ),
    Fault(
        r"Invalid timestamp",
        "the clocks of node and superlink differ",
        "set both clocks by NTP",
    ),
    Fault(
        r"CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|[Ss]{2}L?.{0,3}[Hh]andshake failed",
        "node and superlink do not agree on TLS",
        "superfednas doctor --superlink HOST:PORT --root-certificates FILE names the reason",
    ),
    Fault(
        r"[Aa]ddress already in use|Port in server address .* already in use|Failed to bind",
        "another program has the port",
        "end it (ss -ltnp names it), or choose another port",
    ),
    Fault(
        r"No space left on device",
        "the disk of the run folder is full",
        f"free some space there; then {_RESUME}",
    ),
    Fault(
        r"dataset = 'none': the server has no data to read",
        "the server has no data, and was not told what the images are like",
        "name all three, as in --run-config \"dataset='none' num-classes=10 in-channels=1 "
        'image-size=28"',
    ),
    Fault(  # the last: a reason that it quotes is nearer
        r"no usable reply in \d+ rounds",
        "no reply of any node could be used, in several rounds in a row",
        f"mend what the refusals say; then {_RESUME}",
    ),
)


def known_fault(text: str) -> Fault | None:
    """Return the first known fault that a reason or a line shows."""
    return next((fault for fault in FAULTS if re.search(fault.pattern, text)), None)


def faults_in(name: str, where: str, lines: Iterable[tuple[str, str]]) -> list[Finding]:
    """Return a finding for every fault of some lines, the most frequent first.

    Parameters
    ----------
    name, where
        What was read, for people.
    lines
        Who it is about (or an empty text), and a reason or line.
    """
    times: Counter[Fault] = Counter()
    about: dict[Fault, list[str]] = {}
    for who, text in lines:
        fault = known_fault(text)
        if fault is not None:
            times[fault] += 1
            about.setdefault(fault, []).append(who)
    if not times:
        return [Finding(name, OK, f"no known fault in {where}")]
    found = []
    for fault, count in times.most_common():
        whose = few(sorted(set(filter(None, about[fault]))))
        text = f"{count} × {fault.meaning}{f' ({whose})' if whose else ''}, in {where}"
        found.append(Finding(name, WARNING, text, fault.remedy))
    return found


def refusals(run: Path) -> list[Finding]:
    """Return the faults for which the replies of a run's nodes were refused."""
    lines, metrics = [], run / "metrics.jsonl"
    if not metrics.exists():  # it has had no round yet
        return []
    for text in metrics.read_text().splitlines():
        try:
            clients = json.loads(text).get("clients", [])
        except (ValueError, AttributeError):  # the run may be writing this line
            continue
        lines += [(str(c["client"]), str(c["reason"])) for c in clients if c.get("reason")]
    return faults_in("newest run", str(run), lines)


def failure(run: Path) -> list[Finding]:
    """Return why a run has failed; nothing where it has not."""
    state, done = status_of(run)
    if state != FAILED:
        return []
    reason = reason_of(run)
    fault = known_fault(reason)
    remedy = f"mend that; then {_RESUME if done else 'start it again'}"
    if not reason:
        remedy = (
            "look at what the run has printed (flwr log RUN-ID): its log.jsonl does not say why"
        )
    if fault is not None:
        remedy = fault.remedy
    return [Finding("newest run", WARNING, f"{run} {describe_end(run)}", remedy)]


def log_faults(log: Path) -> list[Finding]:
    """Return the faults that the last lines of a log of superlink, node or run name."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace")
    return faults_in("log", str(log), (("", line) for line in text.splitlines()))
