"""Announcements: what the submitter of a run learns from the lines it prints.

A submitter who cannot read the run folder sees only what the ServerApp prints. Besides the
sentences for human readers it prints one line of JSON for each of these events, after a prefix with
which no other line begins: texts from nodes are printed on one line, after words of the server
(:func:`superfednas.common.words.one_line`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from superfednas.records.refusals import Refusal, known

PREFIX = "superfednas: "
# Fields of an event in ``log.jsonl``, and the fields here that hold them.
_FIELDS = {
    "round": "round",
    "reason": "text",
    "refusal": "refusal",
    "client": "client",
    "node": "client",
    "folder": "folder",
}


class Event(StrEnum):
    """The events announced; ``log.jsonl`` has them under the same names, except for rounds."""

    STARTED = "started"  # in a folder
    RESUMED = "resumed"  # after a round
    ROUND = "round"  # is finished, and a reply was used
    REFUSED = "refused"  # a client's reply
    MISSING = "missing"  # a client's reply
    LEFT_OUT = "left-out"  # a node
    FINISHED = "finished"  # with a folder
    ERROR = "error"  # the end of the run, as far as a user can fix the cause


@dataclass(frozen=True)
class Announcement:
    """One event.

    Parameters
    ----------
    event
        What happened.
    round
        The round concerned; 0 if there is none.
    text
        A sentence for human readers.
    refusal, causes
        Why something was refused or ended, and the causes of that.
    client
        The client concerned.
    folder
        The run folder's path on the server's machine.
    run
        Flower's id of the run that is using the folder, if that is why this one ends.
    """

    event: Event
    round: int = 0
    text: str = ""
    refusal: Refusal | None = None
    causes: tuple[Refusal, ...] = ()
    client: str = ""
    folder: str = ""
    run: str = ""

    @classmethod
    def of(cls, event: str, about: Mapping[str, Any]) -> "Announcement | None":
        """Return the announcement of an event of a run; None if it is not announced."""
        if event not in list(Event):
            return None
        said = {_FIELDS[key]: value for key, value in about.items() if key in _FIELDS and value}
        return cls(Event(event), **said)

    def line(self) -> str:
        """Return it as the line to print."""
        said = {key: value for key, value in asdict(self).items() if value}
        return PREFIX + json.dumps(said)  # ASCII: none of its characters breaks a line

    @classmethod
    def read(cls, line: str) -> "Announcement | None":
        """Read a printed line; None if it is for human readers, or of a later version."""
        if not line.startswith(PREFIX):
            return None
        try:
            said = json.loads(line.removeprefix(PREFIX))
            return cls(
                Event(said["event"]),
                int(said.get("round", 0)),
                str(said.get("text", "")),
                known(said.get("refusal")),
                tuple(code for code in map(known, said.get("causes", ())) if code),
                *(str(said.get(key, "")) for key in ("client", "folder", "run")),
            )
        except (ValueError, TypeError, KeyError):
            return None
