"""Words of image classification stay with images: elsewhere each file that has one says why."""

import re
import subprocess

import pytest

from tests.support.processes import ROOT

WORDS = re.compile(
    r"\b(in_channels|image_size|num_classes|std|cross_entropy|accuracy)\b"
    r"|\bpixel-mean\b|\bmean\b(?= a channel|, std|\", \"std)"  # not means of other things
)
AT_HOME = ("tasks/images", "data/images/", "supernet/families/", "report/", "tests/", "benchmarks/")
ALLOWED = {
    "bench/loops.py": "times training on images against a bare loop on the same",
    "bench/merging.py": "shapes of the published space",
    "cli/diagnosing.py": "options of the verb that checks a node, keys of a run-config",
    "cli/searching.py": "options of a search before training, keys of a run-config",
    "cli/spaces.py": "options of the verb that lists spaces, keys of a run-config",
    "cli/timing.py": "options of the verb that times a device, keys of a run-config",
    "data/settings.py": "constants of pixels, keys of a run-config",
    "data/sources.py": "constants of the data sets that are known by name",
    "deploy/device/runtime/card.py": "cards of before there were tasks",
    "deploy/device/runtime/earlier.py": "cards of before there were tasks",
    "nas/score/regression.py": "deviation of an array, numpy's word",
    "superfednas/api.py": "an example on images",
    "supernet/registry.py": "arguments of load_space that others rely on",
    "wire/order.py": "keys of a run-config",
}
MOST = 15


def found() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no checkout")
    names = [name for name in listed.stdout.split() if not name.startswith(AT_HOME)]
    return {name for name in names if WORDS.search((ROOT / name).read_text("utf-8"))}


def test_only_listed_files_speak_of_images() -> None:
    assert found() <= ALLOWED.keys() and len(ALLOWED) <= MOST


def test_no_file_is_listed_that_no_longer_does() -> None:
    assert ALLOWED.keys() <= found()
