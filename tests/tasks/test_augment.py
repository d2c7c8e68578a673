"""Augmentation: laws, and a slow oracle that treats image by image with the same draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superfednas.tasks.images import Augment, Images
from superfednas.tasks.images.augment import Draws
from superfednas.tasks.task import TaskError
from tests.support.pictures import normalise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def pictures(batch: int, size: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, size, size)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augmented_batch(images: torch.Tensor, augment: Augment, draws: torch.Generator) -> torch.Tensor:
    channels, size = images.shape[1:3]
    task = Images(2, channels, size, mean=MEAN, std=STD, augment=augment)
    targets = {"labels": torch.zeros(len(images), dtype=torch.int64)}
    (read,), _ = task.batch({"images": images}, targets, slice(None), images.device, draws)
    return read


def oracle(images: torch.Tensor, augment: Augment, draws: Draws) -> torch.Tensor:
    """Crop, flip, normalise and cut image by image, pixel by pixel, as the text says."""
    batch, channels, size, _ = images.shape
    out = torch.empty(images.shape)
    for b in range(batch):
        for y in range(size):
            for x in range(size):
                at_x = size - 1 - x if draws.flipped[b] else x
                from_y = y + int(draws.top[b]) - augment.crop
                from_x = at_x + int(draws.left[b]) - augment.crop
                black = not (0 <= from_y < size and 0 <= from_x < size)
                y0 = int(draws.row[b]) - augment.cutout // 2
                x0 = int(draws.column[b]) - augment.cutout // 2
                hole = y0 <= y < y0 + augment.cutout and x0 <= x < x0 + augment.cutout
                for c in range(channels):
                    pixel = 0.0 if black else float(images[b, c, from_y, from_x])
                    out[b, c, y, x] = 0.0 if hole else (pixel / 255 - MEAN[c]) / STD[c]
    return out


@settings(max_examples=15, deadline=None)
@given(
    crop=st.integers(0, 4),
    flip=st.booleans(),
    cutout=st.integers(0, 8),
    size=st.integers(4, 8),
    seed=st.integers(0, 2**31),
)
def test_batch_agrees_with_the_oracle(
    crop: int, flip: bool, cutout: int, size: int, seed: int
) -> None:
    augment, images = Augment(crop, flip, cutout), pictures(4, size, seed=seed)
    draws = augment.draw(4, size, seeded(seed))
    batch = augmented_batch(images, augment, seeded(seed))
    assert batch.dtype == torch.float32 and batch.shape == images.shape
    torch.testing.assert_close(batch, oracle(images, augment, draws), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    crop=st.integers(0, 4),
    flip=st.booleans(),
    cutout=st.integers(0, 12),
    size=st.integers(4, 9),
    seed=st.integers(0, 2**31),
)
def test_image_by_image_is_what_accelerators_do_for_a_batch(
    crop: int, flip: bool, cutout: int, size: int, seed: int
) -> None:
    augment, images = Augment(crop, flip, cutout), pictures(5, size, seed=seed)
    draws = augment.draw(5, size, seeded(seed))
    before = images.clone()
    with pytest.MonkeyPatch.context() as patch:
        here = augment.cut(augment.move(images, draws), draws)
        patch.setattr("superfednas.tasks.images.augment._by_numpy", lambda images: False)
        there = augment.cut(augment.move(images, draws), draws)
    assert torch.equal(here, there) and torch.equal(images, before)


def test_no_augmentation_is_normalisation() -> None:
    images = pictures(3, 8)
    batch = augmented_batch(images, Augment(), seeded(0))
    assert torch.equal(batch, normalise(images, MEAN, STD))


def test_normalise_against_arithmetic() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    expected = torch.tensor([-0.5 / 0.25, (0.2 - 0.5) / 0.25, 0.5 / 0.25])
    torch.testing.assert_close(normalise(images, (0.5,), (0.25,)).ravel(), expected)


def test_flipping_twice_is_the_identity() -> None:
    images, augment = pictures(16, 8), Augment(flip=True)
    once = augment(images, seeded(4))
    assert torch.equal(augment(once, seeded(4)), images)
    flipped = augment.draw(16, 8, seeded(4)).flipped
    assert 0 < int(flipped.sum()) < 16
    assert torch.equal(once[flipped], images[flipped].flip(-1))
    assert torch.equal(once[~flipped], images[~flipped])


def test_crop_in_the_middle_is_the_identity() -> None:
    images = pictures(2, 8)
    middle = torch.tensor([3, 3])
    draws = Draws(middle, middle, torch.tensor([False, False]), middle, middle)
    assert torch.equal(Augment(crop=3).move(images, draws), images)


def test_cut_square_is_whole_inside_and_clipped_at_the_corner() -> None:
    ones, zero = torch.ones(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    centres = torch.tensor([4, 0])
    cut = Augment(cutout=4).cut(ones, Draws(zero, zero, zero.bool(), centres, centres))
    assert (cut[0] == 0).sum() == 4 * 4 and (cut[0, 0, 2:6, 2:6] == 0).all()
    assert (cut[1] == 0).sum() == 2 * 2 and (cut[1, 0, :2, :2] == 0).all()
    assert ones.min() == 1  # the input is left as it was


def test_draws_cover_their_ranges_evenly() -> None:
    draws = Augment(4, True, 16).draw(20_000, 32, seeded(0))
    for values, count in ((draws.top, 9), (draws.left, 9), (draws.row, 32), (draws.column, 32)):
        shares = torch.bincount(values, minlength=count) / 20_000
        assert len(shares) == count
        assert (shares - 1 / count).abs().max() < 0.01
    assert abs(draws.flipped.float().mean() - 0.5) < 0.01


def test_switching_one_part_off_leaves_the_other_draws() -> None:
    full, partial = (a.draw(50, 32, seeded(1)) for a in (Augment(4, True, 16), Augment(4)))
    assert torch.equal(full.top, partial.top) and torch.equal(full.row, partial.row)
    assert not partial.flipped.any()


def test_same_seed_same_batch_and_the_input_is_kept() -> None:
    images, augment = pictures(8, 32), Augment(4, True, 16)
    kept = images.clone()
    first, second, other = (augmented_batch(images, augment, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(images, kept)


def test_call_keeps_the_type_and_cuts_to_zero() -> None:
    out = Augment(4, True, 16)(pictures(8, 32), seeded(0))
    assert out.dtype == torch.uint8 and out.shape == (8, 3, 32, 32)
    assert (out == 0).any(dim=(1, 2, 3)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_batch_of_the_cpu() -> None:
    images, augment = pictures(64, 32), Augment(4, True, 16)
    here = augmented_batch(images, augment, seeded(5))
    there = augmented_batch(images.cuda(), augment, seeded(5))
    torch.testing.assert_close(there.cpu(), here)


@pytest.mark.parametrize(
    ("text", "channels", "size", "name", "expected"),
    [
        ("auto", 3, 32, "toy", Augment(4, True, 16)),
        ("auto", 3, 64, "cifar10", Augment(4, True, 16)),
        ("auto", 1, 32, "toy", Augment()),
        ("auto", 3, 8, "toy", Augment()),
        ("none", 3, 32, "toy", Augment()),
        ("crop:2", 3, 8, "toy", Augment(crop=2)),
        (" flip , cutout:8", 3, 8, "toy", Augment(flip=True, cutout=8)),
    ],
)
def test_parse(text: str, channels: int, size: int, name: str, expected: Augment) -> None:
    assert Augment.parse(text, channels, size, name) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flop",
        "flip:1",
        "flip,flip",
        "crop",
        "crop:0",
        "crop:-1",
        "cutout:9",
        "crop:1.5",
        "flip,",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(TaskError, match=r"augment = .* allowed is auto, none, .* image size 8"):
        Augment.parse(text, 3, 8)
