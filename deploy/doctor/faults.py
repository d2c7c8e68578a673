"""The faults that Flower and the strategy report, what each means, and its remedy.

What this project refuses is known by its code, in a run's metrics, its log and the lines that it
prints; what Flower, gRPC, Ray and the system say, by their words. Seconds are those of Flower 1.31.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from superfednas.common.damage import DAMAGE, loads
from superfednas.deploy.doctor.finding import OK, WARNING, Finding, few
from superfednas.records.announcements import Announcement
from superfednas.records.index import FAILED, codes_in, describe_end, failure_of, status_of
from superfednas.records.lines import read_row
from superfednas.records.refusals import Refusal, known
from superfednas.records.rows import RoundRow

_TAIL = 2_000_000  # bytes to read of a log, from its end


@dataclass(frozen=True)
class Fault:
    """A known fault.

    Parameters
    ----------
    meaning
        What happened.
    remedy
        What to do.
    codes
        This project's codes for it.
    pattern
        A regular expression that finds it in the words of others; empty where they have none.
    """

    meaning: str
    remedy: str
    codes: tuple[Refusal, ...] = ()
    pattern: str = ""


@dataclass(frozen=True)
class Said:
    """A refusal, or a line of a log.

    Parameters
    ----------
    text
        Its words.
    codes
        The codes that stand with it, the nearest reason first.
    who
        Who it is about; empty where nobody is named.
    """

    text: str
    codes: tuple[Refusal | None, ...] = ()
    who: str = ""


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
        "too few nodes were there when the run began",
        "start the missing nodes (superfednas doctor --control HOST:9093 counts those that are "
        "there) and fix the others; or lower clients-per-round and min-nodes, or "
        "raise node-timeout",
        codes=(Refusal.TOO_FEW_NODES,),
    ),
    Fault(
        "the node was killed, frozen or cut off in the middle of a round",
        "nothing for the run, which uses the node again once it is back; if it was killed, start "
        "it again (flower-supernode with a registered key 60 s later: its lease must end first)",
        codes=(Refusal.NODE_GONE,),
        pattern=r"NODE_UNAVAILABLE",
    ),
    Fault(
        "the node was frozen or too slow for the deadline",
        f"{_BUDGET}; or raise round-timeout",
        codes=(Refusal.NO_REPLY,),
    ),
    Fault(
        "the node's client process died, most often for want of memory",
        _BUDGET,
        codes=(Refusal.CRASHED,),
        pattern=r"ClientApp stopped responding",
    ),
    Fault(
        "a simulated client's process died, most often for want of memory",
        'train fewer clients at a time: --federation-config "client-resources-num-cpus=2"',
        pattern=r"ActorDiedError|OutOfMemoryError",
    ),
    Fault(
        "the node could not load the app's client",
        _SAME_CODE,
        codes=(Refusal.LOAD_FAILED,),
    ),
    Fault(
        "the node runs only apps that an operator it trusts has signed",
        "superfednas run --signing-key operator-NAME/signing.key, whose public part stands in the "
        "node's --trusted-entities (superfednas keys --operator NAME)",
        codes=(Refusal.INVALID_FAB,),
        pattern=r"FAB could not be verified|FAB verification failed",
    ),
    Fault(
        "the node has another id now, or the message was too old",
        "nothing: the node is asked anew who it is",
        codes=(Refusal.MESSAGE_UNAVAILABLE,),
        pattern=r"MESSAGE_UNAVAILABLE",
    ),
    Fault(
        "the node is there and has lost its message twice: it was killed at work on it, or could "
        "not fetch it",
        f"{_BUDGET}, and look at the node's log",
        codes=(Refusal.MESSAGE_LOST,),
    ),
    Fault(
        "the client raised an exception, which the reason names",
        "fix what the reason names in that node's data or node config, then restart it",
        codes=(Refusal.RAISED,),
    ),
    Fault(
        "the client's training diverged",
        "lower lr, keep clip-norm above 0, and look at that node's images and labels",
        codes=(Refusal.NOT_FINITE,),
    ),
    Fault(
        "a reply to an earlier round came late",
        f"nothing, if it is seldom: the reply is not used; else {_BUDGET}",
        codes=(Refusal.ROUND,),
    ),
    Fault(
        "the node's reply does not fit what it was sent",
        f"{_SAME_CODE}; if it goes on, that node is not to be trusted: take its key away",
        codes=(
            Refusal.UNREADABLE,
            Refusal.NAMES,
            Refusal.ARCHITECTURE,
            Refusal.SIZE,
            Refusal.SHAPE,
            Refusal.DTYPE,
        ),
    ),
    Fault(
        "the node claims more images than it said it had",
        "start the node again if its data have grown; else it is not to be trusted: take its key "
        "away (superfednas revoke)",
        codes=(Refusal.MORE_THAN_DECLARED,),
    ),
    Fault(
        "the node's reply holds numbers that cannot be",
        _SAME_CODE,
        codes=(Refusal.METRIC, Refusal.SCORES, Refusal.WEIGHTS),
    ),
    Fault(
        "the round had enough replies before this one came",
        "nothing, if it is seldom; else raise min-replies or min-weight, or late-replies='fold'",
        codes=(Refusal.ROUND_CLOSED,),
    ),
    Fault(
        "the superlink does not know the node's key",
        "superfednas register CREDENTIALS --superlink HOST:9093, then start the node; a key that "
        "was revoked is never taken again: move it away and make another (superfednas keys)",
        pattern=r"No SuperNode found with the given public key",
    ),
    Fault(
        "the superlink admits only registered keys, and the node has none",
        "superfednas keys CREDENTIALS --node NAME, superfednas register CREDENTIALS, and start the "
        "node with --auth-supernode-private-key node-NAME/node.key",
        pattern=r"SuperNode registration is disabled|SuperNode authentication is enabled",
    ),
    Fault(
        "the node was started again before the lease of its key had ended (60 s at most)",
        "start it by superfednas node, which waits for that, or 60 s later; where it is refused "
        "then too, another node has its key",
        pattern=r"could not be activated",
    ),
    Fault(
        "the superlink was killed",
        f"start it again, always with --database FILE; then {_RESUME}",
        pattern=r"Connection to the SuperLink is unavailable",
    ),
    Fault(
        "the server app died, alone or with the superlink",
        _RESUME,
        pattern=r"No heartbeat received from the task",
    ),
    Fault(
        "the superlink was started again without its database, and its nodes exit",
        "start the superlink with --database FILE and the nodes from a process supervisor",
        pattern=r"Invalid node ID",
    ),
    Fault(
        "Ray did not start in time on a busy machine",
        "run it again",
        pattern=r"Timed out waiting for file",
    ),
    Fault(
        "the clocks of node and superlink differ",
        "set both clocks by NTP",
        pattern=r"Invalid timestamp",
    ),
    Fault(
        "node and superlink do not agree on TLS",
        "superfednas doctor --superlink HOST:PORT --root-certificates FILE names the reason",
        pattern=r"CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER"
        r"|[Ss]{2}L?.{0,3}[Hh]andshake failed",
    ),
    Fault(
        "another program has the port",
        "end it (ss -ltnp names it), or choose another port",
        pattern=r"[Aa]ddress already in use|Port in server address .* already in use"
        r"|Failed to bind",
    ),
    Fault(
        "the disk of the run folder is full",
        f"free some space there; then {_RESUME}",
        pattern=r"No space left on device",
    ),
    Fault(
        "the server has no data, and was not told what the images are like",
        "name all three, as in --run-config \"dataset='none' num-classes=10 in-channels=1 "
        'image-size=28"',
        codes=(Refusal.NO_SERVER_DATA,),
    ),
    Fault(
        "no reply of any node could be used, in several rounds in a row",
        f"fix what the refusals name; then {_RESUME}",
        codes=(Refusal.STALLED,),
    ),
)


def known_fault(text: str, *codes: Refusal | None) -> Fault | None:
    """Return the fault that one of some codes names; where none does, that a text shows."""
    for code in codes:
        for fault in FAULTS:
            if code in fault.codes:
                return fault
    return next((f for f in FAULTS if f.pattern and re.search(f.pattern, text)), None)


def faults_in(name: str, where: str, said: Iterable[Said]) -> list[Finding]:
    """Return a finding for every fault that was said, the most frequent first.

    Parameters
    ----------
    name, where
        What was read, for human readers.
    said
        What stands in it.
    """
    times: Counter[Fault] = Counter()
    about: dict[Fault, list[str]] = {}
    for each in said:
        fault = known_fault(each.text, *each.codes)
        if fault is not None:
            times[fault] += 1
            about.setdefault(fault, []).append(each.who)
    if not times:
        return [Finding(name, OK, f"no known fault in {where}")]
    found = []
    for fault, count in times.most_common():
        whose = few(sorted(set(filter(None, about[fault]))))
        text = f"{count} × {fault.meaning}{f' ({whose})' if whose else ''}, in {where}"
        found.append(Finding(name, WARNING, text, fault.remedy))
    return found


def refusals(run: Path) -> list[Finding]:
    """Return the faults for which replies of a run's nodes were refused."""
    said, metrics = [], run / "metrics.jsonl"
    if not metrics.exists():  # no round has ended yet
        return []
    for text in metrics.read_text(errors="replace").splitlines():
        try:
            row = read_row(loads(text))
        except DAMAGE:  # the run may still be writing this line
            continue
        for client in row.refused if isinstance(row, RoundRow) else ():
            said.append(Said(client.reason or "", (client.refusal,), client.client))
    return faults_in("newest run", str(run), said)


def failure(run: Path) -> list[Finding]:
    """Return why a run has failed; nothing if it has not."""
    state, done = status_of(run)
    if state != FAILED:
        return []
    why = failure_of(run)
    # What has led to it is nearer than what it was.
    fault = known_fault(why.text, *(why.causes or (why.refusal,))) or known_fault("", why.refusal)
    remedy = f"mend that; then {_RESUME if done else 'start it again'}"
    if not why.text:
        remedy = (
            "look at what the run has printed (flwr log RUN-ID): its log.jsonl does not say why"
        )
    if fault is not None:
        remedy = fault.remedy
    return [Finding("newest run", WARNING, f"{run} {describe_end(run)}", remedy)]


def log_faults(log: Path) -> list[Finding]:
    """Return the faults in the last lines of a log of a superlink, node or run."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace")
    return faults_in("log", str(log), _read(text.splitlines()))


def _read(lines: Iterable[str]) -> Iterator[Said]:
    """Read a log's lines: announcements, events of ``log.jsonl``, and anybody's words."""
    before: list[Said] = []
    for line in lines:
        announced = Announcement.read(line)
        if announced is not None and announced.refusal is not None:
            before = []  # the line before says the same for people
            codes = (*announced.causes, announced.refusal)
            yield Said(announced.text, codes, announced.client)
            continue
        yield from before
        before = [_event(line) or Said(line)]
    yield from before


def _event(line: str) -> Said | None:
    """Read an event of ``log.jsonl`` that was refused; None where a line is something else."""
    if not line.startswith("{"):
        return None
    with contextlib.suppress(ValueError):
        event = loads(line)
        if isinstance(event, dict) and event.get("refusal"):
            codes = (*codes_in(event), known(event["refusal"]))
            text = str(event.get("reason") or event.get("text", ""))
            return Said(text, codes, str(event.get("client", "")))
    return None
