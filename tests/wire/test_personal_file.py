"""The file of a personalised subnet: there and back to the bit, and what is not one refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from superfednas.supernet.norms import calibrate, load_measured_state, measured_state
from superfednas.wire.personal_file import (
    FORMAT,
    PersonalFileError,
    personal_files,
    personal_folder,
    read_personal,
    write_personal,
)
from tests.support.strategies import architectures, norms, pictures, space

IMAGES = torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8)
ROWS = {"images": IMAGES, "district": torch.tensor([[1], [0]])}


@settings(max_examples=12, deadline=None)
@given(data=st.data(), norm=norms, note=st.dictionaries(st.text(), st.floats(0, 1)))
def test_what_is_written_is_read_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, norm: str, note: dict[str, float]
) -> None:
    of = space(norm=norm)
    arch = data.draw(architectures(of))
    module = of.build(arch)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    calibrate(module, [(pictures(4),)])
    state_dir = tmp_path_factory.mktemp("state")
    path = write_personal(state_dir, "run", arch, module, note, ROWS)
    assert personal_files(state_dir) == [path] and path.stat().st_mode & 0o777 == 0o600
    held = read_personal(path)
    assert held.note == {**note, "format": FORMAT, "name": "run", "architecture": arch.to_json()}
    assert held.rows.keys() == ROWS.keys()
    assert all(torch.equal(held.rows[name], ROWS[name]) for name in ROWS)
    expected = measured_state(module)
    assert held.tensors.keys() == expected.keys()
    assert all(torch.equal(held.tensors[name], expected[name]) for name in expected)
    again = of.build(arch)
    load_measured_state(again, held.tensors)
    with torch.inference_mode():
        assert torch.equal(again(pictures(3)), module(pictures(3)))


def test_only_the_newest_personalisation_is_listed(tmp_path: Path) -> None:
    of = space()
    old, *new = [
        write_personal(tmp_path, name, arch, of.build(arch), {}, ROWS)
        for name, arch in (("1", of.smallest), ("2", of.largest), ("2", of.smallest))
    ]
    for time, path in enumerate((old, *new)):
        os.utime(path, (time, time))
    assert personal_files(tmp_path) == new
    assert old.parent.parent == new[0].parent.parent == personal_folder(tmp_path)
    assert personal_files(tmp_path / "elsewhere") == []


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    for write in (
        lambda: path.write_bytes(b""),
        lambda: save_file({"images": IMAGES}, path),
        lambda: save_file({"w": IMAGES}, path, {"personal-subnet": '{"format": 1}'}),
        lambda: save_file({"w": IMAGES}, path, {"personal-subnet": "{}"}),
        lambda: save_file({"images": IMAGES}, path, {"personal-subnet": "[]"}),
    ):
        write()
        with pytest.raises(PersonalFileError, match=r"file\.safetensors: it holds no personalised"):
            read_personal(path)
    save_file({"images": IMAGES}, path, {"personal-subnet": '{"format": 99}'})
    with pytest.raises(PersonalFileError, match="it has format 99"):
        read_personal(path)


def test_a_file_of_before_there_were_tasks_is_read(tmp_path: Path) -> None:
    path, note = tmp_path / "file.safetensors", {"format": 1, "mean": [0.5]}
    weights = {"head.weight": torch.ones(2)}
    save_file(weights | {"images": IMAGES}, path, {"personal-subnet": json.dumps(note)})
    held = read_personal(path)
    assert held.note == note and held.tensors.keys() == weights.keys()
    assert held.rows.keys() == {"images"} and torch.equal(held.rows["images"], IMAGES)
