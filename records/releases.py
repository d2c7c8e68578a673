"""Names that an operator has released in a run: a file in its folder, a line each, only added to.

The server looks at the file before every round, and its checkpoint says how many lines it has
obeyed: a run that resumes from an earlier checkpoint obeys the later ones again.
"""

import datetime
import json
from pathlib import Path

from superfednas.common.damage import DAMAGE, loads

RELEASES = "releases.jsonl"


def release(folder: Path, name: str) -> None:
    """Add a name to a run's file."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "name": name}) + "\n"
    with (folder / RELEASES).open("ab", buffering=0) as file:  # one write: others may add too
        file.write(line.encode())


def released(folder: Path) -> list[str]:
    """Return the released names in order; a line that is damaged counts as an empty name."""
    try:
        lines = (folder / RELEASES).read_bytes().split(b"\n")
    except OSError:  # nothing was released, or the file cannot be read at this moment
        return []
    return [_name(line) for line in lines[:-1]]


def _name(line: bytes) -> str:
    try:
        return str(loads(line)["name"])
    except DAMAGE:
        return ""
