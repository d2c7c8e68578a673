"""Damage to files: bytes cut off, flipped or exchanged, and JSON of other shapes."""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HUGE = "@huge@"  # stands for 1e400, which no JSON encoder writes
DEEP = "@deep@"  # stands for lists 10,000 deep
_OTHERS: tuple[Any, ...] = (
    *(None, [], {}, [1], {"a": 1}, 0, -1, 7, 1.5, 10**30, True),
    *("", "text", "\x1b[31m[red]\u202e\u2028\ud800\n", HUGE, DEEP),
)


def damaged(path: Path, chance: random.Random) -> bytes:
    """Return a file's content with one damage by the die."""
    content = path.read_bytes()
    kinds: list[Callable[[bytes, random.Random], bytes]] = [_cut, _flipped, _strange]
    if path.suffix in (".json", ".jsonl"):
        kinds += [_reshaped] * 6
    if path.suffix == ".safetensors":
        kinds += [_note_reshaped] * 4
    return chance.choice(kinds)(content, chance)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def _strange(content: bytes, chance: random.Random) -> bytes:
    strange = (b"", b"\n", b"\xff\xfe\x00", b"[]", b"null", b"7", b'"text"', b"{}", b"[" * 10_000)
    return chance.choice([*strange, chance.randbytes(200), content + b"\x80\x00"])


def _reshaped(content: bytes, chance: random.Random) -> bytes:
    """Change one value of one line (of the whole file, if that is one value)."""
    text = content.decode()
    try:
        return _text(reshaped(json.loads(text), chance)).encode()
    except json.JSONDecodeError:
        lines = text.splitlines()
        number = chance.randrange(len(lines))
        lines[number] = _text(reshaped(json.loads(lines[number]), chance))
        return ("\n".join(lines) + "\n").encode()


def _note_reshaped(content: bytes, chance: random.Random) -> bytes:
    """Change one value of a safetensors file's header, or of the JSON in its notes."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    notes = header["__metadata__"]
    if chance.random() < 0.8:
        key = chance.choice(list(notes))
        note = json.loads(notes[key])
        if isinstance(note.get("about"), str) and chance.random() < 0.7:
            note["about"] = _text(reshaped(json.loads(note["about"]), chance))
            notes[key] = _text(note)
        else:
            notes[key] = _text(reshaped(note, chance))
    else:
        header = reshaped(header, chance)
    text = _text(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def reshaped(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which one value is another, lacks a key or has one more."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return chance.choice(_OTHERS)
    # Near the top a change is felt by more readers than in the many leaves.
    depth = chance.choice(sorted({depth for depth, _, _ in places}))
    _, parent, key = chance.choice([place for place in places if place[0] == depth])
    kind = chance.random()
    if kind < 0.2:
        del parent[key]
    elif kind < 0.3 and isinstance(parent, dict):
        parent["unknown"] = chance.choice(_OTHERS)
    else:
        parent[key] = chance.choice(_OTHERS)
    return value


def _places(value: Any, depth: int = 0) -> Iterator[tuple[int, Any, Any]]:
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield depth, value, key
            yield from _places(value[key], depth + 1)


def _text(value: Any) -> str:
    text = json.dumps(value)
    deep = "[" * 10_000 + "]" * 10_000
    return text.replace(f'"{HUGE}"', "1e400").replace(f'"{DEEP}"', deep)
