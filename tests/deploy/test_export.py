"""Exported files: they answer as the network does, are small, and fail without a trace."""

import copy
import dataclasses
import importlib.util
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

from superfednas.data import Dataset
from superfednas.deploy.device import export as exporting
from superfednas.deploy.device.export import TOLERANCE, Exported, export
from superfednas.deploy.device.fold_norms import fold
from superfednas.deploy.device.runtime import model as runtime
from superfednas.deploy.device.runtime.card import Card
from superfednas.deploy.device.runtime.errors import DeployError
from superfednas.deploy.device.runtime.fields import Input, Output
from superfednas.deploy.device.runtime.model import FORMATS, Model
from superfednas.deploy.device.runtime.quiet import quiet
from superfednas.nas.cost.costs import Costs
from superfednas.nas.score.tallies import subnet_module
from superfednas.supernet import Architecture, extract, load_space
from superfednas.supernet.norms import StaticBatchNorm2d
from superfednas.tasks import Inputs
from tests.support.exports import (
    card_for,
    contents,
    digits,
    digits_space,
    network,
    picture_note,
    tiles,
)
from tests.support.pictures import normalise
from tests.support.processes import ROOT
from tests.support.strategies import architectures, noisy_state, pictures, seeds, space


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def bound(params: int) -> float:
    """Give the bytes that a file may have."""
    return params * 4 * 1.05 + 100_000


def small(norm: str = "none") -> tuple[nn.Module, Card]:
    of = digits_space(norm)
    return network(of, "smallest", digits()), card_for(of, "smallest", digits())


def rows(count: int) -> dict[str, torch.Tensor]:
    return {"images": digits().test.fields["images"][:count]}


def of_images(images: torch.Tensor) -> dict[str, object]:
    return {"rows": {"images": images}}


def normalised(images: torch.Tensor, data: Dataset) -> torch.Tensor:
    return normalise(images, data.task.mean, data.task.std)


# Folding


def static_norms(module: nn.Module) -> int:
    return sum(isinstance(layer, StaticBatchNorm2d) for layer in module.modules())


@settings(max_examples=8, deadline=None)
@given(arch=architectures(space(norm="batch")), seed=seeds)
def test_a_folded_network_answers_as_before(arch: Architecture, seed: int) -> None:
    of = space(norm="batch")
    module = subnet_module(of, noisy_state(of, seed), arch).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, StaticBatchNorm2d):
            layer.mean = torch.randn(len(layer.weight), generator=generator).double()
            layer.variance = 0.1 + torch.rand(len(layer.weight), generator=generator).double()
    before = copy.deepcopy(module.state_dict())
    folded, count = fold(module)
    assert count == static_norms(module) > 0
    assert static_norms(folded) == 0
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    images = pictures(3, seed=seed).double()
    torch.testing.assert_close(folded(images), module(images), rtol=1e-9, atol=1e-9)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


class OneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.norm = StaticBatchNorm2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images))


def filled(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, StaticBatchNorm2d):
            nn.init.constant_(layer.weight, 6.0)
            nn.init.constant_(layer.bias, 5.0)
            layer.mean, layer.variance = torch.tensor([3.0]), torch.tensor([4.0 - 1e-5])
        elif isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 2.0)
    return module.eval()


def test_folding_by_hand() -> None:
    # 6 (2x − 3) / 2 + 5 = 6x − 4
    folded, count = fold(filled(OneByOne()))
    assert count == 1
    conv = folded.conv
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    assert (conv.weight.item(), conv.bias.item()) == pytest.approx((6.0, -4.0))


class NormFirst(OneByOne):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(images))


class ReadTwice(OneByOne):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images)
        return self.norm(features) + features


class ConvolvesTwice(OneByOne):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.conv(images)))


class NormsTwice(OneByOne):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(functional.relu(self.norm(self.conv(images))))


class Branches(OneByOne):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images)) if images.mean() < 1e6 else images


@pytest.mark.parametrize("kind", [NormFirst, ReadTwice, ConvolvesTwice, NormsTwice, Branches])
def test_what_cannot_be_folded_keeps_its_statistics(kind: type[OneByOne]) -> None:
    module = filled(kind())
    folded, count = fold(module)
    assert count == 0 and static_norms(folded) == 0
    images = torch.arange(9.0).reshape(1, 1, 3, 3)
    torch.testing.assert_close(folded(images), module(images))


def test_an_uncalibrated_network_is_refused() -> None:
    with pytest.raises(RuntimeError, match="calibrate"):
        fold(OneByOne())


def test_a_folded_copy_of_views_owns_what_it_holds() -> None:
    of = space(norm="group")
    module = of.module(of.smallest)
    module.load_state_dict(extract(noisy_state(of), of.smallest), assign=True)
    for tensor in fold(module)[0].state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


# Files


def onnx_logits(path: Path, batch: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0]


def pt2_logits(path: Path, batch: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return torch.export.load(path).module()(batch).numpy()


# An exporter takes seconds a network: five subnets, each norm among them.
PAIRS = [
    ("smallest", "group"),
    ("largest", "batch"),
    ("random:1", "none"),
    ("random:2", "group"),
    ("random:3", "batch"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "norm"), PAIRS)
def test_a_file_answers_as_the_network_does(
    arch: str,
    norm: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Read by each library alone, on other images than those that ``export`` compared."""
    data, of = digits(), digits_space(norm)
    module, card = network(of, arch, data), card_for(of, arch, data)
    for name, logits in (("onnx", onnx_logits), ("torch-export", pt2_logits)):
        path = tmp_path / f"net{FORMATS[name]}"
        done = export(module, card, rows(4), name, path)
        assert capfd.readouterr() == ("", "") and not recwarn.list
        assert done.path == path and done.format == name and done.examples == 4
        assert done.size == path.stat().st_size <= bound(card.params)
        if name == "onnx":  # what a search under a limit on bytes promises
            assert done.size <= Costs(of).of("bytes", of.parse(arch))
        assert done.difference <= done.tolerance == TOLERANCE
        assert done.folded == static_norms(module)
        assert (done.folded > 0) == (norm == "batch")
        for count in (1, 2, 7):
            batch = normalised(data.validation.fields["images"][:count], data)
            expected = module(batch).detach().numpy()
            found = logits(path, batch)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        assert runtime.load(path, trust_code=True).card == card
        assert str(ROOT).encode() not in path.read_bytes()  # no lines of this machine's source
    assert contents(tmp_path) == ["net.onnx", "net.pt2"]
    check_plain(tmp_path / "net.onnx")
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        pickled = [entry for entry in archive.infolist() if entry.filename.endswith(".pt")]
    assert sum(entry.file_size for entry in pickled) == 0


def check_plain(path: Path) -> None:
    """Look for what another reader of ONNX could stumble over, or what is of no use to it."""
    model = onnx.load(path, load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert [entry.key for entry in model.metadata_props] == ["superfednas"]
    (read,), (written,) = model.graph.input, model.graph.output
    shape = [d.dim_param or d.dim_value for d in read.type.tensor_type.shape.dim]
    assert (read.name, shape, written.name) == ("images", ["batch", 1, 8, 8], "logits")
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not model.graph.metadata_props
    parts = [*model.graph.node, *model.graph.initializer, *model.graph.value_info]
    assert not any(part.metadata_props or part.doc_string for part in parts)


@pytest.mark.slow
def test_the_papers_space_in_colour(tmp_path: Path) -> None:
    of = load_space("resnet10-26", norm="group", num_classes=10, in_channels=3, image_size=32)
    module = subnet_module(of, of.init(0), of.smallest).eval()
    colour = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
    note = picture_note(3, 32, digits().task.classes, **colour)
    card = dataclasses.replace(card_for(of, "smallest", digits()), **note)
    done = export(module, card, {"images": tiles()[:2]}, "onnx", tmp_path / "net.onnx")
    assert 4 * card.params < done.size <= bound(card.params)
    batch = normalise(tiles()[100:103], **colour)
    expected = module(batch).detach().numpy()
    np.testing.assert_allclose(onnx_logits(done.path, batch), expected, rtol=0, atol=1e-4)


class Prices(nn.Module):
    """Reads numbers and the number of a category, and answers one number."""

    def __init__(self) -> None:
        super().__init__()
        self.district = nn.Embedding(3, 4)
        self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, sizes: torch.Tensor, district: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([sizes, self.district(district)], dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "torch-export"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_network_of_several_inputs_that_are_no_images(
    name: str, count: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Prices().eval()
    card = Card(
        space={"space": "mine:Space"},
        architecture="{}",
        task="mine:Prices",
        inputs={
            "sizes": Input((2,), scale=(0.5, 2.0), offset=(0.0, -1.0)),
            "district": Input((), "int64", 0, 2, categories=("north", "south", "west")),
        },
        outputs={"price": Output((1,))},
        macs=1,
        params=1,
    )
    generator = torch.Generator().manual_seed(1)

    def some(rows: int) -> dict[str, torch.Tensor]:
        district = torch.randint(3, (rows,), generator=generator)
        return {"district": district, "sizes": torch.rand(rows, 2, generator=generator)}

    done = export(module, card, some(count), name, tmp_path / f"net{FORMATS[name]}")
    assert (done.examples, done.folded) == (count, 0)
    loaded = runtime.load(done.path, trust_code=True)
    assert loaded.card == card
    for rows in (1, 3, 8):
        given = some(rows)
        read = given["sizes"] * torch.tensor([0.5, 2.0]) + torch.tensor([0.0, -1.0])
        expected = module(read, given["district"]).detach().numpy()
        found = loaded.run({key: tensor.numpy() for key, tensor in given.items()})
        np.testing.assert_allclose(found["price"], expected, rtol=0, atol=1e-5)
    with pytest.raises(DeployError, match="from 3 to 3; 0 to 2 is allowed"):
        export(
            module,
            card,
            some(2) | {"district": torch.tensor([3, 3])},
            name,
            done.path.with_name(f"other{FORMATS[name]}"),
        )


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_safetensors_hold_the_weights_by_name(norm: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    module, card = small(norm)
    path = tmp_path / "net.safetensors"
    done = export(module, card, rows(3), "safetensors", path)
    assert (done.difference, done.folded) == (0.0, 0)
    assert done.size <= bound(card.params)
    found = load_file(path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(found.pop(name), tensor)
    for name, layer in module.named_modules():
        if isinstance(layer, StaticBatchNorm2d):
            assert torch.equal(found.pop(f"{name}.mean"), layer.mean)
            assert torch.equal(found.pop(f"{name}.variance"), layer.variance)
    assert not found
    loaded = runtime.load(path)
    assert loaded.card == card
    batch = normalised(digits().validation.fields["images"][:5], digits())
    assert np.array_equal(loaded.network([batch.numpy()]), module(batch).detach().numpy())


@pytest.mark.skipif(not importlib.util.find_spec("executorch"), reason="needs executorch")
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_executorch_answers_as_the_network_does(norm: str, tmp_path: Path) -> None:
    module, card = small(norm)
    path = tmp_path / "net.pte"
    done = export(module, card, rows(3), "executorch", path)
    assert done.difference <= TOLERANCE and done.size <= bound(card.params)
    loaded = runtime.load(path)
    assert loaded.card == card
    batch = normalised(digits().validation.fields["images"][:5], digits())
    expected = module(batch).detach().numpy()
    np.testing.assert_allclose(loaded.network([batch.numpy()]), expected, rtol=0, atol=1e-4)
    assert contents(tmp_path) == ["net.pte"]


# Refusals


def try_export(out: Path, name: str = "safetensors", **changed: object) -> Exported:
    module, card = small()
    arguments = {"module": module, "card": card, "rows": rows(2)} | changed
    return export(format=name, out=out, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "file", "changed", "sentence"),
    [
        ("tflite", "net.tflite", {}, "format = 'tflite': must be one of onnx, torch-export, "),
        ("onnx", "net.pt2", {}, r"net.pt2'.* ends with \.onnx"),
        ("safetensors", "none/net.safetensors", {}, "there is no folder '.*none'"),
        ("safetensors", "net.safetensors", of_images(torch.zeros(0, 1, 8, 8).byte()), "at least"),
        ("safetensors", "net.safetensors", of_images(torch.zeros(2, 1, 8, 8)), "float32"),
        ("safetensors", "net.safetensors", of_images(torch.zeros(2, 3, 8, 8).byte()), "1, 8, 8"),
        ("safetensors", "net.safetensors", {"rows": {"x": torch.zeros(2)}}, "images is needed"),
    ],
)
def test_what_cannot_be_exported(
    name: str, file: str, changed: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DeployError, match=sentence):
        try_export(tmp_path / file, name, **changed)
    assert contents(tmp_path) == []


def test_a_card_with_other_classes_is_refused(tmp_path: Path) -> None:
    _, card = small()
    wrong = dataclasses.replace(card, outputs={"logits": Output((2,), ("a", "b"))})
    with pytest.raises(DeployError, match=r"answers \(2,\); it answers \(10,\)"):
        try_export(tmp_path / "net.safetensors", card=wrong)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("onnx", "onnxscript", "onnxscript"), ("executorch", "executorch.exir", "executorch")],
)
def test_a_missing_package_is_named_before_any_work(
    name: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(exporting._WRITERS, name, lambda *_: pytest.fail("work was begun"))
    sentence = rf"'{name}' needs {package} \(pip install {package}\), but .*{package}"
    with pytest.raises(DeployError, match=sentence) as error:
        try_export(tmp_path / f"net{FORMATS[name]}", name)
    assert "\n" not in str(error.value)


def test_an_existing_file_stays_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_text("mine")
    with pytest.raises(DeployError, match=r"net\.safetensors' exists already"):
        try_export(path)
    assert path.read_text() == "mine"
    assert try_export(path, overwrite=True).size > 4
    assert contents(tmp_path) == ["net.safetensors"]


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.mkdir()
    with pytest.raises(DeployError, match="exists already"):
        try_export(path, overwrite=True)


@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_a_file_that_answers_otherwise_leaves_nothing(
    error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_text("mine")
    load = runtime.load

    def wrong(path: Path, *, trust_code: bool) -> Model:
        model = load(path, trust_code=trust_code)

        def network(read: Sequence[np.ndarray]) -> np.ndarray:
            logits = model.network(read)
            logits[-1, 3] += error if len(logits) == 1 else 0  # in the last of all that is compared
            return logits

        return Model(model.card, network)

    monkeypatch.setattr(runtime, "load", wrong)
    measured = "nan" if math.isnan(error) else "0.001"
    with pytest.raises(DeployError, match=f"by {measured} in a number; 0.0001 is allowed"):
        try_export(path, overwrite=True)
    assert contents(tmp_path) == ["net.safetensors"] and path.read_text() == "mine"


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(module: nn.Module, card: Card, read: Inputs, path: Path) -> int:
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setitem(exporting._WRITERS, "safetensors", half)
    with pytest.raises(DeployError, match=r"net\.safetensors cannot be written: No space left"):
        try_export(tmp_path / "net.safetensors")
    assert contents(tmp_path) == []


def test_one_image_is_enough_to_check_both_batch_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    run = Model.run

    def noted(self: Model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(given["images"]))
        return run(self, given)

    monkeypatch.setattr(Model, "run", noted)
    done = try_export(tmp_path / "net.safetensors", rows=rows(1))
    assert done.examples == 1 and sizes == [2, 1]


# Silence


def test_quiet_keeps_everything_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("print")
        print("print", file=sys.stderr)
        os.write(1, b"from C\n")
        os.write(2, b"from C\n")
        warnings.warn("a warning", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(KeyError), quiet():
        raise KeyError
    print("back")
    os.write(2, b"back\n")
    assert capfd.readouterr() == ("back\n", "back\n")


def test_what_an_exporter_prints_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = exporting._WRITERS["safetensors"]

    def chatty(module: nn.Module, card: Card, read: Inputs, path: Path) -> int:
        print("Translating the graph")
        return write(module, card, read, path)

    monkeypatch.setitem(exporting._WRITERS, "safetensors", chatty)
    try_export(tmp_path / "net.safetensors")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "torch-export", "safetensors"])
def test_a_file_is_as_readable_as_any_that_its_owner_makes(format_: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    file = try_export(tmp_path / f"net{FORMATS[format_]}", format_).path
    assert file.stat().st_mode == plain.stat().st_mode
