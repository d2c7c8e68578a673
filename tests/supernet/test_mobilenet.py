"""MobileNetV1 families: closed forms against modules, the published corners, kernels and merges."""

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn import functional

from superfednas.server.average.overlap import OverlapAverage
from superfednas.supernet import Architecture, State, extract, load_space
from superfednas.supernet.activations import peak_activations
from superfednas.supernet.contract import check_space
from superfednas.supernet.families.mobilenet.module import Separable
from superfednas.supernet.families.mobilenet.spaces import (
    DIMENSIONS,
    MobileNetArchitecture,
    MobileNetSpace,
    MobileNetV1,
)
from superfednas.supernet.families.resnet.spaces import ResNetArchitecture
from superfednas.supernet.registry import SPACES
from superfednas.supernet.space import count_macs
from tests.support.pictures import blank
from tests.support.spaces import NARROW, POCKET
from tests.support.strategies import architectures, choices, noisy_state, norms, pictures, space

TINY, PAPER = FAMILIES = ("mobilenetv1-tiny", "mobilenetv1")
NAMES = [name for family in FAMILIES for name in (family, *(f"{family}-{d}" for d in DIMENSIONS))]
COLOUR = {"num_classes": 10, "in_channels": 3, "image_size": 32}
IMAGES = [(1, 8), (2, 9), (1, 16), (3, 32)]


def mobile(name: str = TINY, **options: Any) -> MobileNetSpace:
    of = space(name, **options)
    assert isinstance(of, MobileNetSpace)
    return of


def draw(data: st.DataObject, of: MobileNetSpace) -> MobileNetArchitecture:
    arch = data.draw(architectures(of))
    assert isinstance(arch, MobileNetArchitecture)
    return arch


# Closed forms


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), norm=norms, image=st.sampled_from(IMAGES))
def test_costs_and_blocks_agree_with_the_module(
    name: str, data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = mobile(name, norm=norm, in_channels=image[0], image_size=image[1])
    arch = draw(data, of)
    with torch.device("meta"):
        module = of.module(arch)
    found = [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]
    assert list(of.shapes(arch).items()) == found
    assert of.params(arch) == sum(tensor.numel() for tensor in module.parameters())
    assert of.macs(arch) == count_macs(of, arch)
    assert of.activations(arch) == peak_activations(module, blank(image[0], image[1], image[1]))

    blocks = of.blocks(arch)
    assert len(blocks) == 2 + sum(map(len, arch.width))
    with torch.device("meta"):
        features = torch.empty(2, image[0], image[1], image[1])
        modules = [block.module().train() for block in blocks]
    for block, part in zip(blocks, modules, strict=True):
        assert tuple(features.shape[1:]) == block.inputs
        assert block.params == sum(tensor.numel() for tensor in part.parameters())
        assert block.activations == peak_activations(part, blank(*block.inputs))
        features = part(features)
    assert features.shape == (2, of.num_classes)
    joined = of.join(arch, modules).state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in joined.items()] == found


def test_block_by_hand() -> None:
    """Kernel 1 and one number a filter: 2 and -1 times the pixel, then sums of what is left."""
    block = Separable(2, 2, 1, 1, "none")
    block.depthwise.weight.data = torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1)
    block.pointwise.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).reshape(2, 2, 1, 1)
    images = torch.tensor([[3.0, 5.0], [-3.0, -5.0], [3.0, -10.0]]).reshape(3, 2, 1, 1)
    assert block(images).reshape(3, 2).tolist() == [[6.0, 6.0], [5.0, 0.0], [16.0, 0.0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds(name: str) -> None:
    assert type(load_space(name)) is SPACES[name]
    results = check_space(space(name, norm="group", image_size=16), samples=2)
    assert results and [result.problem for result in results] == [""] * len(results)


# How many networks, and the published corners


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (f"{TINY}-depth", 1 * 2 * 2),
        (f"{TINY}-kernel", 3**5),
        (f"{TINY}-width", 4**5),
        (POCKET, (2 * 2) + (2 * 2) ** 2),
    ],
)
def test_size_is_what_decoding_everything_gives(name: str, size: int) -> None:
    of = mobile(name)
    found = set(map(of.decode, itertools.product(*map(range, of.genes))))
    networks = {tuple(of.shapes(arch).items()) for arch in found}
    assert len(found) == len(networks) == of.size == size


def test_size_of_the_papers_space() -> None:
    """Five widths and three kernels a layer; 1, 1-2, 1-2, 3-6 and 1-2 layers."""
    layer = 5 * 3
    two = layer + layer**2
    networks = layer * two * two * (layer**3 + layer**4 + layer**5 + layer**6) * two
    assert mobile(PAPER).size == networks == 2_530_621_440_000_000


def test_the_space_of_table_7() -> None:
    of = mobile(PAPER)
    ranges = [(widths[0], widths[-1]) for widths in of.stage_widths]
    assert ranges == [(32, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    assert of.stage_widths[0] == (32, 40, 48, 56, 64)
    assert of.depths == ((1,), (1, 2), (1, 2), (3, 4, 5, 6), (1, 2))
    assert of.kernel_sizes == (3, 5, 7)
    assert MobileNetV1.stem == 32 and MobileNetV1.strides == (2, 1, 2, 2, 2)


def test_genes_by_hand() -> None:
    # Depths 1, 2, 1; then width and kernel of one, two and two slots, the last of them idle.
    arch = mobile().decode([0, 1, 0, 3, 0, 0, 1, 1, 2, 2, 0, 3, 2])
    assert arch == MobileNetArchitecture(((32,), (16, 32), (96,)), ((3,), (5, 7), (3,)))
    assert arch.to_json() == '{"width":[[32],[16,32],[96]],"kernel":[[3],[5,7],[3]]}'


def cost_by_hand(
    stem: int, strides: Sequence[int], stages: Sequence[Sequence[tuple[int, int]]]
) -> tuple[int, int]:
    """MACs and parameters for 32×32×3, ten classes and norm; layers are (channels, kernel)."""
    side, inputs = 32, stem
    macs, params = 27 * stem * side**2, 27 * stem + 2 * stem
    for stride, layers in zip(strides, stages, strict=True):
        side //= stride
        for outputs, kernel in layers:
            weights = kernel * kernel * inputs + inputs * outputs
            macs += weights * side**2
            params += weights + 2 * inputs + 2 * outputs
            inputs = outputs
    return macs + 10 * inputs, params + 10 * inputs + 10


LARGEST = [[(64, 7)], [(128, 7)] * 2, [(256, 7)] * 2, [(512, 7)] * 6, [(1024, 7)] * 2]
SMALLEST = [[(32, 3)], [(64, 3)], [(128, 3)], [(256, 3)] * 3, [(512, 3)]]


@pytest.mark.parametrize(
    ("name", "end", "stages", "macs", "params"),
    [
        (PAPER, "largest", LARGEST, 49_885_184, 3_415_626),
        (PAPER, "smallest", SMALLEST, 5_632_000, 326_506),
        (TINY, "largest", [[(32, 7)], [(64, 7)] * 2, [(128, 7)] * 2], None, None),
        (TINY, "smallest", [[(8, 3)], [(16, 3)], [(32, 3)]], None, None),
    ],
)
def test_ends_by_hand(name: str, end: str, stages: Any, macs: Any, params: Any) -> None:
    of = mobile(name, **COLOUR)
    stem, strides = (32, (2, 1, 2, 2, 2)) if name == PAPER else (16, (1, 2, 2))
    arch = of.parse(end)
    assert arch == MobileNetArchitecture(
        tuple(tuple(width for width, _ in stage) for stage in stages),
        tuple(tuple(kernel for _, kernel in stage) for stage in stages),
    )
    found = (of.macs(arch), of.params(arch))
    assert found == cost_by_hand(stem, strides, stages)
    assert macs is None or found == (macs, params)


# One dimension at a time


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_dimension_alone_varies(family: str, dimension: str) -> None:
    of, whole = mobile(f"{family}-{dimension}"), mobile(family)
    full = whole.largest
    assert isinstance(full, MobileNetArchitecture) and of.largest == full
    rng = np.random.default_rng(0)
    seen: dict[str, set[Any]] = {name: set() for name in DIMENSIONS}
    for _ in range(40):
        whole.validate(arch := of.sample(rng))
        assert isinstance(arch, MobileNetArchitecture)
        seen["depth"].add(tuple(map(len, arch.width)))
        for stage, largest in zip(arch.width, full.width, strict=True):
            seen["width"] |= {width / largest[0] for width in stage}
        seen["kernel"].update(*arch.kernel)
    assert {name for name, values in seen.items() if len(values) > 1} == {dimension}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_full_width_keeps_depth_alone(data: st.DataObject) -> None:
    of = mobile(PAPER)
    genes = data.draw(choices(of))
    slim, full = of.decode(genes), of.decode(of.full_width(genes))
    assert list(map(len, full.width)) == list(map(len, slim.width))
    assert [set(stage) for stage in full.width] == [{64}, {128}, {256}, {512}, {1024}]
    assert set(itertools.chain(*full.kernel)) == {7}


# Where tensors lie


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_kernel_boxes_are_centred(kernel: int) -> None:
    of = mobile()
    arch = MobileNetArchitecture(((32,), (16,), (128, 64)), ((kernel,), (kernel,), (kernel, 7)))
    middle = ((7 - kernel) // 2, (7 + kernel) // 2)
    boxes = of.boxes(arch)
    assert boxes["stages.0.0.depthwise.weight"] == (((0, 16),), ((0, 1),), (middle,), (middle,))
    assert boxes["stages.2.0.depthwise.weight"] == (((0, 16),), ((0, 1),), (middle,), (middle,))
    assert boxes["stages.2.1.depthwise.weight"] == (((0, 128),), ((0, 1),), ((0, 7),), ((0, 7),))
    assert boxes["stages.2.1.pointwise.weight"] == (((0, 64),), ((0, 128),), ((0, 1),), ((0, 1),))
    assert boxes["stages.1.0.pointwise.weight"] == (((0, 16),), ((0, 32),), ((0, 1),), ((0, 1),))


@settings(max_examples=15, deadline=None)
@given(data=st.data(), kernel=st.sampled_from([3, 5]))
def test_a_small_kernel_is_a_large_one_of_zeros_around(data: st.DataObject, kernel: int) -> None:
    """Whole numbers in float64, so that sums are exact in any order."""
    of = mobile(norm="none", image_size=16)
    large = of.decode([*data.draw(choices(of))[:3], *[3, 2] * 5])
    small = MobileNetArchitecture(
        large.width, tuple((kernel,) * len(stage) for stage in large.kernel)
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    state: State = {
        name: torch.randint(-1, 2, shape, generator=generator).double()
        for name, shape in of.shapes(of.largest).items()
    }
    edge = (7 - kernel) // 2
    for name, tensor in state.items():
        if name.endswith("depthwise.weight"):
            centre = tensor[:, :, edge:-edge, edge:-edge].clone()
            tensor.zero_()[:, :, edge:-edge, edge:-edge] = centre
    images = torch.randint(-2, 3, (2, 1, 16, 16), generator=generator).double()
    answers = [
        functional_call(of.build(arch).double(), extract(state, of.boxes(arch)), images)
        for arch in (small, large)
    ]
    assert torch.equal(*answers) and answers[0].abs().max() > 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_shallower_stage_keeps_its_first_layers(data: st.DataObject) -> None:
    of = mobile(PAPER)
    deep, names = draw(data, of), {}
    stage = data.draw(st.integers(0, 4))
    depth = data.draw(st.sampled_from([d for d in of.depths[stage] if d <= len(deep.width[stage])]))

    def cut(lists: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return (*lists[:stage], lists[stage][:depth], *lists[stage + 1 :])

    shallow = MobileNetArchitecture(cut(deep.width), cut(deep.kernel))
    for arch in (shallow, deep):
        names[arch] = [n for n in of.shapes(arch) if n.startswith(f"stages.{stage}.")]
    assert names[shallow] == names[deep][: len(names[shallow])]
    assert {n.split(".")[2] for n in names[shallow]} == set(map(str, range(depth)))


# Merging


@settings(max_examples=25, deadline=None)
@given(data=st.data(), norm=norms)
def test_a_subnet_folded_back_changes_nothing_and_trained_only_its_own(
    data: st.DataObject, norm: str
) -> None:
    of = mobile(norm=norm)
    arch, state = draw(data, of), noisy_state(of)
    boxes = of.boxes(arch)
    subnet = {name: tensor.clone() for name, tensor in extract(state, boxes).items()}
    same = OverlapAverage(state)
    same.add(subnet, 3.0, boxes)
    assert all(torch.equal(tensor, state[name]) for name, tensor in same.result().items())

    merge = OverlapAverage(state)
    merge.add({name: tensor + 1 for name, tensor in subnet.items()}, 3.0, boxes)
    for name, tensor in merge.result().items():
        expected = state[name].clone()
        if name in subnet:
            part = [slice(size) for size in subnet[name].shape]
            if name.endswith("depthwise.weight"):
                edge = (7 - subnet[name].shape[2]) // 2
                part[2:] = [slice(edge, 7 - edge)] * 2
            expected[tuple(part)] += 1
        assert torch.equal(tensor, expected)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), norm=norms)
def test_a_subnet_trains_a_step_on_views_as_alone(data: st.DataObject, norm: str) -> None:
    of = mobile(norm=norm)
    arch, state = draw(data, of), noisy_state(of)
    boxes, images, labels = of.boxes(arch), pictures(4), torch.tensor([0, 1, 2, 0])

    alone = of.build(arch).train()
    alone.load_state_dict(extract(state, boxes))
    output = alone(images)
    assert output.shape == (4, 3)
    functional.cross_entropy(output, labels).backward()
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    trained = alone.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    first = "stem.conv.weight"
    assert not torch.equal(trained[first], state[first])

    shared: State = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    output = functional_call(of.build(arch).train(), extract(shared, boxes), images)
    functional.cross_entropy(output, labels).backward()
    torch.optim.SGD(shared.values(), lr=0.1).step()
    merge = OverlapAverage(state)
    merge.add(trained, 1.0, boxes)
    for name, tensor in merge.result().items():
        torch.testing.assert_close(tensor, shared[name].detach(), rtol=1e-4, atol=1e-6)


# JSON


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_json_round_trip(data: st.DataObject) -> None:
    of = mobile(PAPER)
    arch = draw(data, of)
    text = arch.to_json()
    assert "\n" not in text and list(json.loads(text)) == ["width", "kernel"]
    floats = json.loads(text, parse_int=float)
    for again in (Architecture.from_json(text), Architecture.from_json(floats), of.parse(text)):
        assert type(again) is MobileNetArchitecture and again == arch and hash(again) == hash(arch)
        assert again.to_json() == text


# Output widths


@pytest.mark.parametrize(
    ("name", "share", "width"),
    [
        (PAPER, 0.5, ((32,), (64,) * 2, (128,) * 2, (256,) * 6, (512,) * 2)),
        (PAPER, 0.625, ((40,), (80,) * 2, (160,) * 2, (320,) * 6, (640,) * 2)),
        (f"{PAPER}-width", 0.875, ((56,), (112,) * 2, (224,) * 2, (448,) * 6, (896,) * 2)),
        (PAPER, 1.0, ((64,), (128,) * 2, (256,) * 2, (512,) * 6, (1024,) * 2)),
        (TINY, 0.25, ((8,), (16,) * 2, (32,) * 2)),
        (TINY, 0.75, ((24,), (48,) * 2, (96,) * 2)),
    ],
)
def test_a_share_of_all_channels(name: str, share: float, width: Any) -> None:
    of = mobile(name)
    kernel = tuple((7,) * len(stage) for stage in width)
    assert of.at_width(share) == MobileNetArchitecture(width, kernel)
    of.validate(of.at_width(share))
    paper = (0.5, 0.625, 0.75, 0.875, 1.0)
    assert of.width_shares == ((0.25, 0.5, 0.75, 1.0) if name == TINY else paper)
    assert space(f"{TINY}-depth").width_shares == space(f"{PAPER}-kernel").width_shares == ()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (TINY, "width 0.3 is none of the space 'mobilenetv1-tiny': 0.25, 0.5, 0.75, 1"),
        (PAPER, "width 0.3 is none of the space 'mobilenetv1': 0.5, 0.625, 0.75, 0.875, 1"),
        (f"{PAPER}-depth", "the space 'mobilenetv1-depth' has no elastic output widths"),
        ("resnet-tiny", "the space 'resnet-tiny' has no elastic output widths"),
    ],
)
def test_an_unknown_share_ends_in_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        space(name).at_width(0.3)


# Refusals


WIDTH, KERNEL = [[32], [64], [128]], [[7], [3], [5]]


@pytest.mark.parametrize(
    ("width", "kernel", "sentence"),
    [
        ([[32], [64], [100]], KERNEL, r"width\[2\]\[0\] = 100: .* one of \[32, 64, 96, 128\]"),
        (WIDTH, [[7], [3], [1]], r"kernel\[2\]\[0\] = 1: must be one of \[3, 5, 7\]"),
        (WIDTH, [[7], [4], [5]], r"kernel\[1\]\[0\] = 4: must be one of \[3, 5, 7\]"),
        ([[32], [64] * 3, [32]], [[7], [3] * 3, [5]], r"width\[1\] = .* layers .* of \[1, 2\]"),
        ([[32] * 2, [64], [32]], [[7] * 2, [3], [5]], r"width\[0\] = .* layers .* of \[1\]"),
        ([[32]], [[7]], "width: mobilenetv1-tiny has 3 stages"),
        (WIDTH, [[7], [3, 3], [5]], "width and kernel must have one number for each layer"),
        ([], [], r"width = \[\]: must be a list, one list a stage"),
        (32, KERNEL, "width = 32: must be a list, one list a stage"),
        (WIDTH, "753", "kernel = '753': must be a list, one list a stage"),
        ([32, 64, 128], KERNEL, r"width\[0\] = 32: must be a list of whole numbers, one a layer"),
        ([[32], [], [128]], KERNEL, r"width\[1\] = \[\]: must be a list of whole numbers"),
        ([[32], [64], [True]], KERNEL, r"width\[2\] = \[True\]: must be a list of whole numbers"),
        (WIDTH, [[7], [2.5], [5]], r"kernel\[1\] = \[2.5\]: must be a list of whole numbers"),
        (WIDTH, [[7], [-3], [5]], r"kernel\[1\] = \[-3\]: must be a list of whole numbers"),
        (WIDTH, [[7], [math.nan], [5]], r"kernel\[1\] = \[nan\]: must be a list of whole"),
        (WIDTH, [["7"], [3], [5]], r"kernel\[0\] = \['7'\]: must be a list of whole numbers"),
        ([[10**400], [64], [128]], KERNEL, r"width\[0\] = \[1000.*: must be a list of whole"),
    ],
    ids=map(str, itertools.count()),
)
def test_malformed_architectures_end_in_a_sentence(width: Any, kernel: Any, sentence: str) -> None:
    mobile().parse(json.dumps({"width": WIDTH, "kernel": KERNEL}))
    with pytest.raises(ValueError, match=f"^{sentence}"):
        mobile().parse(json.dumps({"width": width, "kernel": kernel}))  # NaN passes json
    with pytest.raises(ValueError, match=f"^{sentence}"):
        mobile().validate(MobileNetArchitecture(width, kernel))


@pytest.mark.parametrize(
    ("dimension", "width", "kernel", "sentence"),
    [
        ("width", 32, (7, 5), r"kernel\[1\]\[1\] = 5: must be one of \[7\]"),
        ("width", 24, (7,), r"width\[1\] = \(64,\): the number of layers must be one of \[2\]"),
        ("depth", 24, (7,), r"width\[0\]\[0\] = 24: must be one of \[32\]"),
        ("depth", 32, (3,), r"kernel\[1\]\[0\] = 3: must be one of \[7\]"),
        ("kernel", 24, (3, 5), r"width\[0\]\[0\] = 24: must be one of \[32\]"),
        ("kernel", 32, (3,), r"width\[1\] = \(64,\): the number of layers must be one of \[2\]"),
    ],
)
def test_what_is_not_elastic_is_fixed(
    dimension: str, width: int, kernel: tuple[int, ...], sentence: str
) -> None:
    widths = ((width,), (64,) * len(kernel), (128, 128))
    arch = MobileNetArchitecture(widths, ((7,), kernel, (7, 7)))
    mobile().validate(arch)
    with pytest.raises(ValueError, match=sentence):
        mobile(f"{TINY}-{dimension}").validate(arch)


@pytest.mark.parametrize("method", ["validate", "shapes", "boxes", "build", "macs", "params"])
@pytest.mark.parametrize(
    ("arch", "sentence"),
    [
        (MobileNetArchitecture(((40,),), ((3,),)), "width: mobilenetv1-tiny has 3 stages"),
        (
            ResNetArchitecture((0,), ((1.0,),)),
            "a ResNetArchitecture is no architecture of the space 'mobilenetv1-tiny'",
        ),
        (space(NARROW).smallest, "a WideResNetArchitecture is no architecture of the space"),
    ],
    ids=["stages", "resnet", "wide"],
)
def test_every_method_refuses_a_foreign_architecture(
    method: str, arch: Architecture, sentence: str
) -> None:
    call: Callable[[Architecture], object] = getattr(mobile(), method)
    with pytest.raises(ValueError, match=sentence):
        call(arch)
