"""The ResNet spaces: closed forms against the modules, the paper's numbers, and bad input."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from superfednas.supernet import SPACES, Architecture, SearchSpace, load_space
from superfednas.supernet.families.resnet.spaces import (
    ResNetArchitecture,
    ResNetSpace,
    make_divisible,
    mid_channels,
)
from superfednas.supernet.norms import NORMS
from superfednas.supernet.space import count_macs
from superfednas.tasks.images import Images
from tests.support.reference import PUBLISHED
from tests.support.spaces import Crowded, Level
from tests.support.strategies import architectures, choices, norms, space

RATIOS = (0.1, 0.14, 0.18, 0.22, 0.25)
IMAGES = [(1, 8), (3, 32), (1, 9), (3, 28), (2, 33)]


def big(**options: Any) -> SearchSpace:
    return space(
        "resnet10-26", **({"num_classes": 10, "in_channels": 3, "image_size": 32} | options)
    )


def even(depth: str, ratio: float) -> ResNetArchitecture:
    """Give the architecture of one ratio in every block."""
    depths = tuple(int(d) for d in depth)
    return ResNetArchitecture(depths, tuple((ratio,) * (1 + d) for d in depths))


# Closed forms


def counted(of: SearchSpace, arch: Architecture) -> int:
    """Count operations, two a multiply-accumulate, over a batch of two."""
    with torch.device("meta"):
        module = of.module(arch)
        images = torch.empty(2, of.in_channels, of.image_size, of.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.train()(images)
    return int(counter.get_total_flops()) // 4


def check_closed_forms(of: SearchSpace, arch: Architecture) -> None:
    """Hold shapes, parameters and MACs against the module and torch's own counter."""
    with torch.device("meta"):
        state = of.module(arch).state_dict()
    slow = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert list(of.shapes(arch).items()) == list(slow.items())  # the order too
    assert of.params(arch) == sum(tensor.numel() for tensor in state.values())
    assert of.macs(arch) == counted(of, arch)
    assert type(of.params(arch)) is int and type(of.macs(arch)) is int


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(data=st.data(), norm=norms, image=st.sampled_from(IMAGES))
def test_tiny_costs_agree_with_the_module(
    data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = space(norm=norm, in_channels=image[0], image_size=image[1])
    check_closed_forms(of, data.draw(architectures(of)))


@settings(max_examples=6, deadline=None)
@given(data=st.data(), norm=norms, image=st.sampled_from(IMAGES))
def test_paper_space_costs_agree_with_the_module(
    data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    of = big(norm=norm, in_channels=image[0], image_size=image[1])
    check_closed_forms(of, data.draw(architectures(of)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("image", IMAGES)
def test_the_default_count_is_the_closed_form(norm: str, image: tuple[int, int]) -> None:
    of = space(norm=norm, in_channels=image[0], image_size=image[1])
    assert count_macs(of, of.smallest) == of.macs(of.smallest)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", [Level, Crowded])
def test_any_family_costs_agree_with_the_module(family: type[ResNetSpace], norm: str) -> None:
    of = family(Images(3, 2, 9), norm)
    for arch in (of.smallest, of.largest, *map(of.sample, map(np.random.default_rng, range(3)))):
        check_closed_forms(of, arch)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), norm=norms, image=st.sampled_from(IMAGES))
def test_output_is_one_logit_a_class(
    data: st.DataObject, norm: str, image: tuple[int, int]
) -> None:
    channels, size = image
    of = space(norm=norm, in_channels=channels, image_size=size, num_classes=7)
    module = of.build(data.draw(architectures(of))).train()
    assert module(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_costs_build_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    of = big()
    arch = of.parse("random:3")

    def refuse(_: Architecture) -> None:
        raise AssertionError("a module was built")

    monkeypatch.setattr(of, "module", refuse)
    assert of.shapes(arch) and of.boxes(arch) and of.params(arch) and of.macs(arch)
    with pytest.raises(AssertionError, match="a module was built"):
        of.build(arch)


def test_build_allocates_on_the_cpu() -> None:
    module = space().build(space().smallest)
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}


# Order and nesting


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_subnet_lies_between_smallest_and_largest(data: st.DataObject) -> None:
    of = data.draw(st.sampled_from([space(), big()]))
    arch = data.draw(architectures(of))
    for inner, outer in ((of.smallest, arch), (arch, of.largest)):
        large = of.shapes(outer)
        for name, shape in of.shapes(inner).items():
            assert all(a <= b for a, b in zip(shape, large[name], strict=True))
        assert of.macs(inner) <= of.macs(outer) and of.params(inner) <= of.params(outer)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_boxes_are_the_leading_part_of_every_shape(data: st.DataObject) -> None:
    arch = data.draw(architectures(space()))
    expected = {
        name: tuple(((0, size),) for size in shape) for name, shape in space().shapes(arch).items()
    }
    assert space().boxes(arch) == expected


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_full_width_keeps_depth_alone(data: st.DataObject) -> None:
    genes = data.draw(choices(space()))
    narrow, wide = space().decode(genes), space().decode(space().full_width(genes))
    assert isinstance(narrow, ResNetArchitecture) and isinstance(wide, ResNetArchitecture)
    assert wide.depth == narrow.depth
    assert {ratio for ratios in wide.expand for ratio in ratios} == {1.0}


# The published numbers


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (256, [24, 40, 48, 56, 64]),
        (512, [48, 72, 96, 112, 128]),
        (1024, [104, 144, 184, 224, 256]),
        (2048, [208, 288, 368, 448, 512]),
    ],
)
def test_middle_channels_of_the_paper(width: int, expected: list[int]) -> None:
    assert [mid_channels(width, ratio) for ratio in RATIOS] == expected


@given(value=st.integers(1, 5000))
def test_divisible_is_a_multiple_and_at_least_nine_tenths(value: int) -> None:
    rounded = make_divisible(value)
    assert rounded % 8 == 0 and 0.9 * value <= rounded < value + 8


def test_round_takes_ties_to_even() -> None:
    # 8 × 2.4375 = 19.5 and 8 × 2.5625 = 20.5 are both 20, the multiple above by 20 + 4 = 24
    assert [mid_channels(8, ratio) for ratio in (2.4375, 2.5625)] == [24, 24]
    assert mid_channels(8, 1.0625) == 8  # 8.5 to 8; rounding up, 9 × .9 = 8.1 would give 16
    assert mid_channels(8, 1.1875) == 8 + 8  # 9.5 to 10, whose 8 is below 9: one step more


@pytest.mark.parametrize(("depth", "ratio", "macs", "params"), PUBLISHED)
def test_costs_of_the_paper(depth: str, ratio: float, macs: int, params: int) -> None:
    arch = even(depth, ratio)
    assert (big().macs(arch), big().params(arch)) == (macs, params)
    assert (big(norm="batch").macs(arch), big(norm="batch").params(arch)) == (macs, params)


def test_paper_space_as_a_whole() -> None:
    assert big().size == (5 + 5**2 + 5**3) ** 4 == 577_200_625
    assert big().smallest == even("0000", 0.1) and big().largest == even("2222", 0.25)
    bare = big(norm="none")
    assert bare.params(bare.largest) == 71_689_930
    assert bare.macs(bare.largest) == big().macs(big().largest)


def test_mean_cost_of_uniform_draws() -> None:
    rng = np.random.default_rng(0)
    costs = np.array([big().macs(big().sample(rng)) for _ in range(4000)]) / 1e9
    assert costs.mean() == pytest.approx(1.604, abs=4 * 0.387 / math.sqrt(4000))
    assert costs.std() == pytest.approx(0.387, abs=0.02)
    assert np.quantile(costs, 0.01) == pytest.approx(0.76, abs=0.05)
    assert np.quantile(costs, 0.99) == pytest.approx(2.51, abs=0.06)


def test_tiny_by_hand() -> None:
    of = space(norm="none", num_classes=10, in_channels=3, image_size=32)
    stem, sides = 16, (16, 8, 4, 2)
    macs, params = 32**2 * 9 * 3 * stem + 192 * 10, 9 * 3 * stem + 192 * 10 + 10
    for width, inputs, side in zip((24, 48, 96, 192), (16, 24, 48, 96), sides, strict=True):
        mid = {24: 8, 48: 16, 96: 32, 192: 64}[width]  # .33 of each, to a multiple of 8
        weights = 9 * mid * (inputs + width) + inputs * width
        macs, params = macs + side**2 * weights, params + weights
    assert (of.macs(of.smallest), of.params(of.smallest)) == (macs, params)


def test_tiny_is_small() -> None:
    of = space(num_classes=10, in_channels=3, image_size=32)
    assert (of.macs(of.smallest), of.macs(of.largest)) == (3_491_712, 19_564_416)
    assert of.macs(of.largest) <= 20e6


# Size against enumeration


@pytest.mark.slow
def test_tiny_size_is_what_decoding_everything_gives() -> None:
    of = space()
    every = itertools.product(*(range(n) for n in of.genes))
    assert len({of.decode(genes) for genes in every}) == of.size == (3 + 3**2) ** 4 == 20_736


@pytest.mark.parametrize(("family", "size"), [(Level, (2 + 2**3) ** 2), (Crowded, 36)])
def test_size_counts_distinct_networks(family: type[ResNetSpace], size: int) -> None:
    of = family(Images(2, 1, 8))
    every = itertools.product(*(range(n) for n in of.genes))
    networks = {tuple(of.shapes(arch).items()) for arch in set(map(of.decode, every))}
    assert len(networks) == of.size == size


# Shortcuts


def test_shortcuts_follow_the_position_although_shapes_match() -> None:
    of = Level(Images(2, 1, 8))
    projections = [name for name in of.shapes(of.largest) if name.endswith("shortcut.conv.weight")]
    assert projections == [f"stages.{stage}.0.shortcut.conv.weight" for stage in (0, 1)]
    assert list(of.build(of.largest).state_dict()) == list(of.shapes(of.largest))


@pytest.mark.parametrize("name", [name for name in sorted(SPACES) if name.startswith("resnet")])
def test_one_projection_a_stage(name: str) -> None:
    of = space(name)
    found = [key for key in of.shapes(of.largest) if key.endswith("shortcut.conv.weight")]
    assert found == [f"stages.{stage}.0.shortcut.conv.weight" for stage in range(4)]


def test_block_by_hand() -> None:
    """Kernels that pass the pixel on; ReLU before the addition cuts a negative branch."""
    of = Level(Images(2, 1, 8), "none")
    module = of.build(of.smallest)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = torch.zeros_like(parameter)
            if parameter.ndim == 4:
                centre[:, :, parameter.shape[2] // 2, parameter.shape[3] // 2] = 1
            parameter.copy_(centre if name != "head.weight" else torch.ones_like(parameter))
        module.get_parameter("stages.0.0.conv2.weight").neg_()  # a negative branch counts as 0
        features, stem, mid, width = torch.full((1, 1, 8, 8), 2.0), 16, 8, 16
        first = 0 + stem * 2.0
        second = mid * (width * first) + width * first
        assert module(features)[0].tolist() == [width * second] * 2


# Canonical form


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_flat_and_nested_lists_are_equal(data: st.DataObject) -> None:
    genes = data.draw(choices(big()))
    arch = big().decode(genes)
    assert isinstance(arch, ResNetArchitecture)
    flat = [RATIOS[c] for c in genes[4:]]
    nested = [flat[3 * stage : 3 * stage + 3] for stage in range(4)]
    depth = [float(d) for d in arch.depth]
    for expand in (flat, nested, [row[: 1 + d] for row, d in zip(nested, arch.depth, strict=True)]):
        other = ResNetArchitecture(depth, expand)  # type: ignore[arg-type]
        assert other == arch and hash(other) == hash(arch)
        assert other.to_json() == arch.to_json()


def test_inactive_slots_are_dropped() -> None:
    flat = [0.14, 0.1, 0.1, 0.14, 0.14, 0.25, 0.14, 0.18, 0.22, 0.14, 0.14, 0.1]
    arch = ResNetArchitecture([0, 1, 0, 1], flat)  # type: ignore[arg-type]
    assert arch.to_json() == '{"depth":[0,1,0,1],"expand":[[0.14],[0.14,0.14],[0.14],[0.14,0.14]]}'
    assert big().validate(arch) is None


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_json_round_trip(data: st.DataObject) -> None:
    arch = data.draw(architectures(big()))
    text = arch.to_json()
    assert "\n" not in text
    for again in (
        Architecture.from_json(text),
        ResNetArchitecture.from_json(text),
        Architecture.from_json(json.loads(text)),
        big().parse(text),
        big().parse(f"  {text}"),
    ):
        assert type(again) is ResNetArchitecture and again == arch and hash(again) == hash(arch)


def test_parse_words() -> None:
    of = big()
    assert of.parse("largest") is of.largest and of.parse("smallest") is of.smallest
    assert of.parse("random:7") == of.sample(np.random.default_rng(7)) == of.parse("random:7")
    assert of.parse("random:7") != of.parse("random:8")


# Draws


def test_sample_is_uniform_over_genes() -> None:
    of, rng, draws = space(), np.random.default_rng(0), 3000
    drawn = [of.sample(rng) for _ in range(draws)]

    def check(values: list[Any], options: tuple[Any, ...]) -> None:
        counts, expected = Counter(values), len(values) / len(options)
        assert set(counts) == set(options)
        chi_square = sum((counts[option] - expected) ** 2 / expected for option in options)
        freedom = len(options) - 1
        assert chi_square < freedom + 4 * math.sqrt(2 * freedom)

    for stage in range(4):
        check([arch.depth[stage] for arch in drawn], (0, 1))  # type: ignore[attr-defined]
        rows = [arch.expand[stage] for arch in drawn]  # type: ignore[attr-defined]
        check([row[0] for row in rows], (0.33, 0.67, 1.0))
        check([row[1] for row in rows if len(row) > 1], (0.33, 0.67, 1.0))
    for gene, count in enumerate(of.genes):
        check([of.draw(rng)[gene] for _ in range(600)], tuple(range(count)))


# Refusals


HUGE = 10**400  # an integer that is no float
FOUR = [[1.0]] * 4


def bad(depth: object, expand: object, field: str) -> Any:
    return pytest.param(depth, expand, field, id=f"{depth}-{expand}".replace(str(HUGE), "HUGE"))


MALFORMED = [
    bad([0, 0, 0, 2], [[1.0], [1.0], [1.0], [1.0] * 3], r"depth\[3\] = 2: .*\[0, 1\]"),
    bad([0, 0, 0], [[1.0]] * 3, r"depth = \(0, 0, 0\): resnet-tiny has 4 stages"),
    bad([0] * 5, [[1.0]] * 5, "depth = .*: resnet-tiny has 4 stages"),
    bad([0] * 4, [[1.0], [1.0], [0.5], [1.0]], r"expand\[2\]\[0\] = 0.5: .*\[0.33, 0.67, 1.0\]"),
    bad([0, 1, 0, 0], FOUR, r"expand\[1\] = \[1.0\]: .*depth 1, so it needs 2 ratios"),
    bad([0] * 4, [[1.0]] * 3, "expand = .*: must hold one list"),
    bad([0] * 4, [[1.0]] * 5, "expand = .*: must hold one list"),
    bad([0] * 4, [1.0, [1.0], [1.0], [1.0]], "expand = .*: must hold one list"),
    bad([0] * 4, [1.0] * 6, "expand = .*: a flat list must have as many slots"),
    bad([0] * 4, [], "expand"),
    bad([], [], r"depth = \[\]: must be a list of whole numbers"),
    bad([True, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([-1, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([0.5, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([math.nan, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([math.inf, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([HUGE, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad(["0", 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([None, 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad([[0], 0, 0, 0], FOUR, "depth = .*whole numbers"),
    bad("0000", FOUR, "depth = '0000': must be a list"),
    bad(0, FOUR, "depth = 0: must be a list"),
    bad({"0": 0}, FOUR, "depth = .*must be a list"),
    bad([0] * 4, "1111", "expand = '1111': must be a list"),
    bad([0] * 4, 1.0, "expand = 1.0: must be a list"),
    bad([0] * 4, None, "expand = None: must be a list"),
    bad([0] * 4, [["1.0"], [1.0], [1.0], [1.0]], r"expand\[0\] = \['1.0'\]"),
    bad([0] * 4, [[True], [1.0], [1.0], [1.0]], r"expand\[0\] = \[True\]"),
    bad([0] * 4, [[1.0], [math.nan], [1.0], [1.0]], r"expand\[1\] = \[nan\]"),
    bad([0] * 4, [[1.0], [1.0], [-math.inf], [1.0]], r"expand\[2\] = \[-inf\]"),
    bad([0] * 4, [[1.0], [1.0], [1.0], [HUGE]], r"expand\[3\]"),
    bad([0] * 4, [[1.0], [1.0], [1.0], [None]], r"expand\[3\] = \[None\]"),
]


@pytest.mark.parametrize(("depth", "expand", "sentence"), MALFORMED)
def test_malformed_architectures_end_in_a_sentence(
    depth: object, expand: object, sentence: str
) -> None:
    text = json.dumps({"depth": depth, "expand": expand})  # NaN and Infinity pass json
    with pytest.raises(ValueError, match=sentence):
        space().parse(text)
    with pytest.raises(ValueError, match=sentence):
        space().validate(ResNetArchitecture(depth, expand))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must be largest, smallest, random:SEED or a JSON object"),
        ("Largest", "'Largest': must be largest, smallest"),
        ("[0, 1]", "must be largest, smallest, random:SEED or a JSON object"),
        ("random:", "random:SEED needs a whole number"),
        ("random:-1", "random:SEED needs a whole number"),
        ("random:1.5", "random:SEED needs a whole number"),
        ("{depth: 0}", "is not JSON"),
        ("{", "is not JSON"),
        ('{"depth":' + "[" * 100_000, "architecture"),
        ("{}", r"has the fields \[\]; allowed: .*depth.*expand"),
        ('{"depth":[0,0,0,0]}', r"the fields \['depth'\]; allowed: .*depth.*expand"),
        (
            '{"depth":[0,0,0,0],"expand":[[1],[1],[1],[1]],"kernel":3}',
            r"the fields \['depth', 'expand', 'kernel'\]; allowed",
        ),
    ],
)
def test_malformed_texts_end_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        space().parse(text)


@pytest.mark.parametrize("text", ["3", "null", '"largest"', "[]"])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(ValueError, match="must be a JSON object"):
        Architecture.from_json(text)


METHODS: list[Callable[[SearchSpace, Any], object]] = [
    lambda of, arch: of.validate(arch),
    lambda of, arch: of.shapes(arch),
    lambda of, arch: of.boxes(arch),
    lambda of, arch: of.build(arch),
    lambda of, arch: of.macs(arch),
    lambda of, arch: of.params(arch),
]
METHOD_NAMES = ["validate", "shapes", "boxes", "build", "macs", "params"]


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize(
    ("arch", "sentence"),
    [
        (even("0002", 1.0), r"depth\[3\] = 2"),
        (even("000", 1.0), "4 stages"),
        (even("0000", 0.5), r"expand\[0\]\[0\] = 0.5"),
        (even("2222", 0.25), "depth"),
        ("largest", "a str is no architecture of the space 'resnet-tiny'"),
        (Architecture(), "a Architecture is no architecture"),
    ],
    ids=["too deep", "stages", "ratio", "paper's", "text", "other family"],
)
def test_every_method_refuses_a_foreign_architecture(
    method: Callable[[SearchSpace, Any], object], arch: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        method(space(), arch)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
def test_a_depth_between_the_allowed_ones_is_refused(
    method: Callable[[SearchSpace, Any], object],
) -> None:
    of = Level(Images(2, 1, 8))
    with pytest.raises(ValueError, match=r"depth\[0\] = 1: must be one of \[0, 2\]"):
        method(of, even("10", 1.0))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 1}, "num_classes = 1: must be at least 2"),
        ({"in_channels": 0}, "in_channels = 0: must be at least 1"),
        ({"image_size": 7}, "image_size = 7: must be at least 8"),
        ({"norm": "layer"}, "norm = 'layer': must be one of group, none, batch"),
    ],
)
def test_space_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_space("resnet-tiny", **options)


def test_spaces_by_name_and_by_reference() -> None:
    assert type(load_space("resnet-tiny")) is SPACES["resnet-tiny"]
    own = load_space(f"{__name__}:Level", num_classes=4)
    assert isinstance(own, Level) and own.num_classes == 4


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet", "resnet-tiny, resnet10-26, resnet10-26-wide, or module:Class"),
        ("no_such_module:Space", "cannot be imported"),
        ("superfednas.supernet.families.resnet.spaces:NoSuch", "cannot be imported"),
        (":Space", "space"),
        (".resnet:ResNetTiny", "cannot be imported"),
        ("json:loads", "is no subclass of superfednas.supernet.SearchSpace"),
        ("json:JSONDecoder", "is no subclass of superfednas.supernet.SearchSpace"),
    ],
)
def test_unknown_spaces_end_in_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_space(name)
