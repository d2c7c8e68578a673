"""Chains of blocks and peak activations: laws over all families, and small cases by hand."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from superfednas.supernet import Architecture, SearchSpace, load_space
from superfednas.supernet.activations import peak_activations
from superfednas.supernet.chain import Block, Chain, Inventory, Segment
from superfednas.supernet.families.ends import head_block
from superfednas.supernet.families.resnet.chain import residual_block
from superfednas.supernet.families.resnet.family import ResNetFamily
from superfednas.supernet.norms import NORMS, StaticBatchNorm2d
from superfednas.supernet.space import count_macs
from tests.extend.test_examples import EXAMPLES
from tests.support.pictures import blank
from tests.support.spaces import CROWDED, LEVEL, NARROW
from tests.support.strategies import architectures, norms, space

FAMILIES = ["resnet-tiny", "resnet10-26", "resnet10-26-wide", NARROW, LEVEL, CROWDED]
SMALL = ["resnet-tiny", NARROW, LEVEL, CROWDED]
IMAGES = [(1, 8), (3, 32), (2, 9), (1, 17)]

every_family = pytest.mark.parametrize("name", FAMILIES)
images = st.sampled_from(IMAGES)
channels = st.integers(1, 8).map(lambda groups: 8 * groups)
sides = st.integers(3, 9)


def family(name: str, image: tuple[int, int] = (1, 8), norm: str = "group") -> ResNetFamily:
    of = space(name, in_channels=image[0], image_size=image[1], norm=norm)
    assert isinstance(of, ResNetFamily)
    return of


def vectors(chain: Chain) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw one option a segment."""
    return st.tuples(*(st.integers(0, len(s.options) - 1) for s in chain.segments))


def walk(chain: Chain, options: Sequence[int]) -> list[tuple[int, int, int]]:
    """Give (segment, state, option) of every link."""
    links, state = [], 0
    for s, option in enumerate(options):
        links.append((s, state, option))
        state = int(chain.segments[s].leaves[option])
    return links


def blocks_of(chain: Chain, options: Sequence[int]) -> list[Block]:
    return [block for link in walk(chain, options) for block in chain.blocks(*link)]


def on_meta(block: Block) -> nn.Module:
    with torch.device("meta"):
        return block.module()


def meta_images(shape: tuple[int, ...]) -> torch.Tensor:
    """Two: one image has no batch statistics."""
    return torch.empty(2, *shape, device="meta")


# Options and architectures


@every_family
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_assemble_and_locate_undo_each_other(name: str, data: st.DataObject) -> None:
    of = family(name)
    options = data.draw(vectors(of.chain))
    assert of.chain.locate(of.chain.assemble(options)) == options
    arch = data.draw(architectures(of))
    back = of.chain.assemble(of.chain.locate(arch))
    of.validate(back)
    if name == CROWDED:  # .1 and .14 round alike: the network comes back, spelt with the least
        assert of.shapes(back) == of.shapes(arch)
        assert "0.14" not in back.to_json()
    else:
        assert back == arch


@pytest.mark.parametrize("name", SMALL)
def test_options_are_the_networks(name: str) -> None:
    of = family(name)
    assert math.prod(len(s.options) for s in of.chain.segments) == of.size
    for segment in of.chain.segments:
        assert len(set(segment.options)) == len(segment.options)


@every_family
def test_segments_fit_together(name: str) -> None:
    chain = family(name).chain
    assert [s.name for s in chain.segments][:3] == ["stem", "stage0", "stage1"]
    assert chain.states(0) == 1
    for s, segment in enumerate(chain.segments):
        assert segment.leaves.shape == (len(segment.options),)
        assert len(segment.features) == len(segment.options)
        channels = [o if s == 0 else o[0] for o in segment.options]
        assert [chain.channels[s][state] for state in segment.leaves] == channels
        if s:
            before = chain.segments[s - 1]
            assert set(before.leaves.tolist()) == set(range(chain.states(s)))


def test_locate_refuses_a_foreign_architecture() -> None:
    with pytest.raises(ValueError, match="is no architecture of the space 'narrow'"):
        family(NARROW).chain.locate(family("resnet-tiny").smallest)


# Blocks


@pytest.mark.slow
@every_family
@settings(max_examples=6, deadline=None)
@given(data=st.data(), norm=norms, image=images)
def test_blocks_add_up_to_the_network(
    name: str, data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = family(name, image, norm)
    arch = data.draw(architectures(of))
    blocks = blocks_of(of.chain, of.chain.locate(arch))
    assert tuple(blocks) == of.blocks(arch)
    with torch.device("meta"):
        module = of.module(arch)
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert sum(block.params for block in blocks) == of.params(arch) == counted
    assert sum(block.macs for block in blocks) == of.macs(arch) == count_macs(of, arch)


@every_family
@settings(max_examples=6, deadline=None)
@given(data=st.data(), norm=norms, image=images)
def test_the_highest_block_is_the_networks_peak(
    name: str, data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = family(name, image, norm)
    arch = data.draw(architectures(of))
    peak = max(block.activations for block in blocks_of(of.chain, of.chain.locate(arch)))
    assert peak == of.activations(arch)
    assert peak == SearchSpace.activations(of, arch)  # of the whole module, traced


def check_block(block: Block) -> None:
    """Hold a block against its module: parameters, MACs, peak."""
    module = on_meta(block)
    assert block.params == sum(parameter.numel() for parameter in module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.train()(meta_images(block.inputs))
    assert block.macs == int(counter.get_total_flops()) // 4
    assert block.activations == peak_activations(module, blank(*block.inputs))


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=4, deadline=None)
@given(data=st.data(), norm=norms, image=images)
def test_a_block_is_what_its_module_is(
    name: str, data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    blocks = family(name, image, norm).chain.inventory.blocks
    for block in data.draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=4)):
        check_block(block)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_head_is_what_its_module_is(side: int) -> None:
    """Pooling writes a new tensor even where there is only one pixel to pool."""
    block = head_block(24, 3, side)
    check_block(block)
    assert block.activations == 24 * side**2 + 24


@settings(max_examples=8, deadline=None)
@given(
    inputs=channels,
    mid=channels,
    outputs=channels,
    stride=st.integers(1, 3),
    side=sides,
    norm=norms,
)
# Where the peak is: input, middle and output; input, output and what is pooled; the last addition.
@example(inputs=8, mid=64, outputs=8, stride=2, side=8, norm="none")
@example(inputs=8, mid=8, outputs=8, stride=2, side=8, norm="none")
@example(inputs=8, mid=8, outputs=64, stride=2, side=8, norm="none")
@example(inputs=8, mid=8, outputs=16, stride=1, side=8, norm="none")
def test_any_residual_block_is_what_its_module_is(
    inputs: int, mid: int, outputs: int, stride: int, side: int, norm: str
) -> None:
    check_block(residual_block(inputs, mid, outputs, stride, side, norm, project=True))
    check_block(residual_block(inputs, mid, inputs, 1, side, norm, project=False))


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_of_the_papers_spaces(norm: str) -> None:
    of = family("resnet10-26-wide", (3, 32), norm)
    for arch in (of.smallest, of.largest, of.parse("random:0")):
        for block in of.blocks(arch):
            check_block(block)


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=10, deadline=None)
@given(data=st.data(), norm=norms, image=images)
def test_blocks_read_what_the_one_before_gives(
    name: str, data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = family(name, image, norm)
    arch = data.draw(architectures(of))
    features = meta_images((of.in_channels, of.image_size, of.image_size))
    for block in of.blocks(arch):
        assert tuple(features.shape[1:]) == block.inputs
        features = on_meta(block).train()(features)
    assert tuple(features.shape) == (2, of.num_classes)


def test_blocks_hold_the_networks_weights() -> None:
    """Blocks filled in order with a network's tensors compute what the network does."""
    of = family("resnet-tiny")
    arch = of.parse("random:5")
    whole = of.build(arch)
    whole.load_state_dict({n: torch.randn(s) for n, s in of.shapes(arch).items()})
    tensors = iter(whole.state_dict().values())
    image = torch.randn(2, 1, 8, 8)
    features = image
    for block in of.blocks(arch):
        module = block.module()
        module.load_state_dict({name: next(tensors) for name in module.state_dict()})
        features = module(features)
    torch.testing.assert_close(features, whole(image))


# Inventory


@every_family
def test_an_inventory_holds_each_block_once_and_all_are_used(name: str) -> None:
    chain = family(name).chain
    inventory = chain.inventory
    assert len({block.name for block in inventory.blocks}) == len(inventory.blocks)
    assert len(set(inventory.blocks)) == len(inventory.blocks)
    used: set[int] = set()
    for s, use in enumerate(inventory.used):
        assert use.shape[:2] == (chain.states(s), len(chain.segments[s].options))
        used |= set(use.ravel().tolist())
    assert used - {len(inventory.blocks)} == set(range(len(inventory.blocks)))


@every_family
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_inventory_covers_exactly_a_networks_blocks(name: str, data: st.DataObject) -> None:
    of = family(name)
    arch = data.draw(architectures(of))
    inventory = of.chain.inventory
    found = []
    for s, state, option in walk(of.chain, of.chain.locate(arch)):
        found += [n for n in inventory.used[s][state, option] if n < len(inventory.blocks)]
    assert [inventory.blocks[n] for n in found] == list(of.blocks(arch))


def test_equal_names_are_equal_blocks_although_segments_differ() -> None:
    """Two stages of equal channels and sides share their blocks."""
    inventory = family(LEVEL).chain.inventory
    names = sorted(block.name for block in inventory.blocks)
    assert names == [
        "block 16>16>16 at 8",
        "block 16>16>16 at 8, stride 1, projected",
        "block 16>8>16 at 8",
        "block 16>8>16 at 8, stride 1, projected",
        "head 16>3 at 8",
        "stem 1>16 at 8",
    ]


def test_totals_and_peaks_by_hand() -> None:
    block = Block("a", (1,), 1, 1, 1, nn.Identity)
    used = (
        np.array([[[0, 1], [1, 2]]]),
        np.array([[[2, 2], [0, 0]], [[1, 0], [1, 2]]]),
    )
    inventory = Inventory((block, block), used)  # 2 stands for no block
    first, second = inventory.totals([10, 3])
    assert first.tolist() == [[13, 3]] and second.tolist() == [[0, 20], [13, 3]]
    first, second = inventory.peaks([10.5, 3])
    assert first.tolist() == [[10.5, 3]] and second.tolist() == [[0, 10.5], [10.5, 3]]


class Letters(Chain):
    """Two segments whose blocks' cost depends on the option before."""

    def __init__(self) -> None:
        none = np.empty((2, 0))
        self._segments = (
            Segment("first", ("a", "b"), np.array([1, 0]), np.array([[1.0], [2.0]])),
            Segment("second", ("c", "d"), np.array([0, 0]), none),
        )

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def blocks(self, segment: int, state: int, option: int) -> tuple[Block, ...]:
        name = "abcd"[2 * segment + option] + str(state)
        block = Block(name, (1,), 10 * segment + state, 1, 1, nn.Identity)
        return (block,) * (1 + option)

    def assemble(self, options: Sequence[int]) -> Architecture:
        raise NotImplementedError

    def locate(self, arch: Architecture) -> tuple[int, ...]:
        raise NotImplementedError


def test_a_chain_by_hand() -> None:
    chain = Letters()
    assert [chain.states(s) for s in (0, 1)] == [1, 2]
    inventory = chain.inventory
    assert [block.name for block in inventory.blocks] == ["a0", "b0", "c0", "d0", "c1", "d1"]
    assert inventory.used[0].tolist() == [[[0, 6], [1, 1]]]
    assert inventory.used[1].tolist() == [[[2, 6], [3, 3]], [[4, 6], [5, 5]]]
    tables = inventory.totals([block.macs for block in inventory.blocks])
    options = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    # After "a" (which leaves 1) "c" costs 11 and "d" twice that; after "b" 10 and twice that.
    assert chain.gather(tables, options).tolist() == [[0, 0, 0, 0], [11, 22, 10, 20]]
    assert chain.features(options).tolist() == [[1.0], [1.0], [2.0], [2.0]]


# Tables


@every_family
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_gathered_tables_are_the_networks_costs(name: str, data: st.DataObject) -> None:
    of = family(name)
    chain, inventory = of.chain, of.chain.inventory
    options = data.draw(st.lists(vectors(chain), min_size=1, max_size=4))
    archs = [chain.assemble(vector) for vector in options]
    rows = np.array(options)
    for cost in ("macs", "params"):
        tables = inventory.totals([getattr(block, cost) for block in inventory.blocks])
        found = chain.gather(tables, rows)
        assert found.shape == (len(chain.segments), len(archs))
        assert found.sum(axis=0).tolist() == [getattr(of, cost)(arch) for arch in archs]
    peaks = inventory.peaks([block.activations for block in inventory.blocks])
    found = chain.gather(peaks, rows).max(axis=0)
    assert found.tolist() == [of.activations(arch) for arch in archs]


@pytest.mark.parametrize("name", [NARROW, "resnet10-26-wide"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_gather_is_a_walk_along_the_chain(name: str, data: st.DataObject) -> None:
    chain = family(name).chain
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tables = [
        rng.integers(1000, size=(chain.states(s), len(segment.options), 2))
        for s, segment in enumerate(chain.segments)
    ]
    options = data.draw(st.lists(vectors(chain), min_size=1, max_size=5))
    found = chain.gather(tables, np.array(options))
    for row, vector in enumerate(options):
        for s, state, option in walk(chain, vector):
            assert found[s, row].tolist() == tables[s][state, option].tolist()


# Features


@every_family
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_features_are_segment_after_segment(name: str, data: st.DataObject) -> None:
    of = family(name)
    chain = of.chain
    vector, other = data.draw(vectors(chain)), data.draw(vectors(chain))
    row = chain.features(np.array([vector]))[0]
    assert row.dtype == np.float64 and np.isfinite(row).all()
    assert len(row) == len(of.features(of.smallest)) == len(of.features(of.largest))
    assert np.array_equal(of.features(chain.assemble(vector)), row)
    start = 0
    for s, segment in enumerate(chain.segments):  # another option moves its own columns alone
        width = segment.features.shape[1]
        moved = [*vector[:s], other[s], *vector[s + 1 :]]
        differs = chain.features(np.array([moved]))[0] != row
        assert not differs[:start].any() and not differs[start + width :].any()
        assert differs.any() == (vector[s] != other[s])
        start += width
    assert start == len(row)


def test_features_by_hand() -> None:
    """Stage 0 has 32 channels with mids 16 and 32, stage 1 has 24 of 48 with mid 8."""
    of = family(NARROW)
    arch = of.parse('{"stem":8,"width":[32,24],"mid":[[16,32],[8]]}')
    ln = math.log
    expected = [
        *(0.5, ln(0.5)),
        *(1, 0.5, 1.0, ln(0.5), 0.0, 1.0, 0.0),  # second block, ratios, logarithms, width
        *(0, 1 / 3, 0.0, ln(1 / 3), 0.0, 0.5, ln(0.5)),
    ]
    assert of.features(arch) == pytest.approx(expected)


def test_what_cannot_vary_is_no_feature() -> None:
    chain = family("resnet-tiny").chain
    assert [s.features.shape[1] for s in chain.segments] == [0, 5, 5, 5, 5]


# Peak activations by hand: 2 channels of 4×4 are 32 numbers, 3 are 48


def net(forward: Callable[[Any, torch.Tensor], torch.Tensor], **parts: Any) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, value in parts.items():
                setattr(self, key, value)

    Net.forward = forward  # type: ignore[method-assign,assignment]
    return Net()


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, device="meta")


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))


def relu_and_view(self: Any, x: torch.Tensor) -> torch.Tensor:
    features = self.a(x)
    flat = features.flatten(1)
    return functional.relu(features).sum() + flat.sum()


def kept(self: Any, x: torch.Tensor) -> torch.Tensor:
    features = self.a(x)
    return functional.relu(features) + features


CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "a chain frees its input": (
        net(lambda self, x: self.b(functional.relu(self.a(x))), a=conv(2, 3), b=conv(3, 2)),
        (2, 4, 4),
        48 + 32,
    ),
    "a shortcut holds the input": (
        net(lambda self, x: self.b(functional.relu(self.a(x))) + x, a=conv(2, 3), b=conv(3, 2)),
        (2, 4, 4),
        32 + 48 + 32,
    ),
    "a shortcut through an identity": (
        net(
            lambda self, x: self.i(x) + self.b(self.a(x)),
            i=nn.Identity(),
            a=conv(2, 3),
            b=conv(3, 2),
        ),
        (2, 4, 4),
        32 + 48 + 32,
    ),
    "an operand that is needed again is kept": (net(kept, a=conv(2, 3)), (2, 4, 4), 48 + 48),
    "so is one that a view shows": (net(relu_and_view, a=conv(2, 3)), (2, 4, 4), 48 + 48),
    "parameters are no activations": (
        net(lambda self, x: x + self.w, w=weights(2, 4, 4)),
        (2, 4, 4),
        32,
    ),
    "nor are views of them": (
        net(lambda self, x: self.w.flatten(0) + x.flatten(1), w=weights(2, 4, 4)),
        (2, 4, 4),
        32,
    ),
    "functional convolutions write anew": (
        net(lambda self, x: functional.conv2d(x, self.w, padding=1), w=weights(2, 2, 3, 3)),
        (2, 4, 4),
        32 + 32,
    ),
    "so do matrix products": (
        net(lambda self, x: torch.matmul(self.a(x), x), a=nn.Identity()),
        (1, 4, 4),
        16 + 16,
    ),
    "equal convolutions do not work in place": (nn.Sequential(conv(2, 2)), (2, 4, 4), 32 + 32),
    "norms and activations do": (
        nn.Sequential(nn.GroupNorm(1, 2, device="meta"), nn.ReLU(), nn.Flatten()),
        (2, 4, 4),
        32,
    ),
    "static batch norm too": (
        nn.Sequential(conv(2, 3), StaticBatchNorm2d(3).to("meta"), nn.ReLU()),
        (2, 4, 4),
        32 + 48,
    ),
    "pooling reads all and writes less": (nn.Sequential(nn.AvgPool2d(2)), (2, 4, 4), 32 + 8),
}


@pytest.mark.parametrize("case", CASES)
def test_peaks_by_hand(case: str) -> None:
    module, inputs, expected = CASES[case]
    assert peak_activations(module, blank(*inputs)) == expected


def test_a_module_that_cannot_be_traced_is_named() -> None:
    module = net(lambda self, x: x if x.sum() > 0 else -x)
    with pytest.raises(ValueError, match="peak activations: the module cannot be traced"):
        peak_activations(module, blank(2, 4, 4))


def test_peaks_of_residual_blocks_by_hand() -> None:
    """Stem 16, stages of 16 channels at 8×8 = 64 pixels: 1,024 numbers each, middle 512."""
    of = family(LEVEL)
    arch = of.smallest
    peaks = [block.activations for block in of.blocks(arch)]
    image, tensor, middle = 64, 1024, 512
    first = max(tensor + middle + tensor, tensor + 2 * tensor)  # input, then branch and shortcut
    assert peaks == [image + tensor, first, first, tensor + 16]


# A space of somebody's own


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_space.py").write_text(EXAMPLES["my_space.py"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return load_space(
            "my_space:MLPSpace", norm="none", image_size=8, in_channels=1, num_classes=3
        )


def test_a_plain_space_is_one_block(mlp: SearchSpace) -> None:
    assert mlp.chain is None
    for text in ("smallest", "largest", "random:1"):
        arch = mlp.parse(text)
        (block,) = mlp.blocks(arch)
        assert block.name == arch.to_json() and block.inputs == (1, 8, 8)
        assert (block.macs, block.params) == (mlp.macs(arch), mlp.params(arch))
        check_block(block)


def test_peak_of_a_plain_space(mlp: SearchSpace) -> None:
    assert mlp.activations(mlp.smallest) == 64 + 16
    assert mlp.activations(mlp.largest) == 64 + 64  # between layers: 64 in, 64 out


def test_features_of_a_plain_space(mlp: SearchSpace) -> None:
    """Names, shares and logarithms of shares of the supernet's eight tensors."""
    arch = mlp.parse('{"layers":2,"width":32}')
    half, quarter = [1, 0.5, math.log(0.5)], [1, 0.25, math.log(0.25)]
    expected = [
        *[*half, *half],  # 32 of 64 units that read the image
        *[*quarter, *half],  # 32 × 32 of 64 × 64
        *[0, 0, 0] * 2,  # no third layer
        *[*half, 1, 1, 0],  # the head's bias is whole
    ]
    assert mlp.features(arch) == pytest.approx(expected)
    assert mlp.features(mlp.largest).reshape(-1, 3).tolist() == [[1, 1, 0]] * 8
