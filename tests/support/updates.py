"""Small supernets, updates and boxes that the tests of several aggregations share."""

from collections.abc import Mapping

import numpy as np
import torch
from hypothesis import strategies as st

from superfednas.supernet.boxes import Placement, placement_shape
from superfednas.supernet.families.resnet.spaces import ResNetSpace
from superfednas.tasks.images import Images

Update = dict[str, torch.Tensor]
Fold = tuple[Update, float, Mapping[str, Placement]]


class Small(ResNetSpace):
    """A ResNet family of a few thousand parameters."""

    name = "small-for-tests"
    stem = 8
    widths = (8, 16)
    strides = (1, 2)
    depths = (0, 1)
    ratios = (0.5, 1.0)


SPACE = Small(Images(3, 1, 8))
GENES = st.tuples(*(st.integers(0, choices - 1) for choices in SPACE.genes))
ARCHS = GENES.map(SPACE.decode)
WEIGHTS = st.floats(1e-3, 10)


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().numpy().view(np.uint32)


def same_bits(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(bits(a[n]), bits(b[n])) for n in a)


def positions(placement: Placement) -> list[list[int]]:
    """List, for every dimension, where each index of the subnet's tensor lies."""
    return [[p for start, stop in part for p in range(start, stop)] for part in placement]


def random_update(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Update:
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).reshape(shape)
        for name, shape in shapes.items()
    }


def intervals(size: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """One interval inside ``size``, or two where a window rolls over the end."""
    cuts = st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)
    return cuts.flatmap(lambda c: st.sampled_from([((c[0], c[1]),), ((c[1], size), (0, c[0]))]))


@st.composite
def boxed_clients(draw: st.DrawFn) -> tuple[Update, list[Fold]]:
    shapes = draw(
        st.dictionaries(
            st.sampled_from("abc"),
            st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
            min_size=1,
        )
    )
    state = random_update(shapes, draw(st.integers(0, 2**31)))
    folds: list[Fold] = []
    for _ in range(draw(st.integers(1, 5))):
        held = draw(st.sets(st.sampled_from(sorted(shapes)), min_size=1))
        boxes = {n: tuple(draw(intervals(size)) for size in shapes[n]) for n in sorted(held)}
        inner = {name: placement_shape(placement) for name, placement in boxes.items()}
        weight = draw(st.sampled_from([0.0, 1.0]) | WEIGHTS)
        folds.append((random_update(inner, draw(st.integers(0, 2**31))), weight, boxes))
    return state, folds
