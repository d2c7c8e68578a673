"""The fingerprint of the code: stable from process to process, another for other code."""

import re
import subprocess
import sys

import pytest

from superfednas.wire.source import source_fingerprint, source_root


def test_fingerprint_is_stable_from_process_to_process() -> None:
    found = source_fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", found)
    assert (source_root() / "wire" / "source.py").is_file()
    source_fingerprint.cache_clear()
    code = "from superfednas.wire.source import source_fingerprint as f; print(f())"
    command = [sys.executable, "-c", code]
    other = subprocess.run(
        command, cwd=source_root(), capture_output=True, text=True, check=True
    ).stdout.strip()
    assert source_fingerprint() == other


def test_fingerprint_changes_with_the_code(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "client").mkdir()
    monkeypatch.setattr("superfednas.wire.source.source_root", lambda: root)
    found = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2"), ("notes.txt", "3")):
        (root / "client" / name).write_text(text)
        source_fingerprint.cache_clear()
        found.append(source_fingerprint())
    source_fingerprint.cache_clear()
    assert len(set(found[:3])) == 3 and found[2] == found[3]
