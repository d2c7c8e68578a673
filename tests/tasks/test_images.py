"""The images task: batches to the bit, counts, refusals, options."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from superfednas.common.imports import NotImportableError
from superfednas.tasks import Input, TaskError, load_task
from superfednas.tasks.images import ACCURACY, LOSS, Augment, Images

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(rows: int, task: Images, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    shape = (rows, *task.inputs["images"].shape)
    images = torch.randint(256, shape, generator=seeded(seed), dtype=torch.uint8)
    return {"images": images}, {"labels": torch.arange(rows) % task.num_classes}


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels by constants that are rounded once, as every earlier version did."""
    deviation = torch.tensor(STD, dtype=torch.float64)
    scale = (1 / (255 * deviation)).float()[:, None, None]
    shift = (-torch.tensor(MEAN, dtype=torch.float64) / deviation).float()[:, None, None]
    return images.to(torch.float32) * scale + shift


@settings(max_examples=25, deadline=None)
@given(
    crop=st.integers(0, 4),
    flip=st.booleans(),
    cutout=st.integers(0, 8),
    size=st.integers(4, 9),
    seed=st.integers(0, 2**31),
)
def test_a_batch_is_moved_normalised_and_cut_to_the_bit(
    crop: int, flip: bool, cutout: int, size: int, seed: int
) -> None:
    augment = Augment(crop, flip, cutout)
    task = Images(3, 3, size, mean=MEAN, std=STD, augment=augment)
    fields, targets = split(7, task, seed)
    kept, rows = fields["images"].clone(), torch.tensor([5, 1, 1, 6])
    (read,), learned = task.batch(fields, targets, rows, CPU, seeded(seed))
    draws = augment.draw(4, size, seeded(seed))
    expected = augment.cut(normalised(augment.move(kept[rows], draws)), draws)
    assert torch.equal(read, expected) and read.dtype == torch.float32
    assert torch.equal(learned["labels"], targets["labels"][rows])
    assert torch.equal(fields["images"], kept)


@given(start=st.integers(0, 4), stop=st.integers(5, 9), seed=st.integers(0, 2**31))
def test_without_draws_nothing_is_augmented(start: int, stop: int, seed: int) -> None:
    task = Images(3, 3, 8, mean=MEAN, std=STD, augment=Augment(2, True, 4))
    fields, targets = split(9, task, seed)
    (read,), learned = task.batch(fields, targets, slice(start, stop), CPU)
    assert torch.equal(read, normalised(fields["images"][start:stop]))
    assert torch.equal(learned["labels"], targets["labels"][start:stop])


@given(rows=st.integers(1, 20), cut=st.integers(0, 20), seed=st.integers(0, 2**31))
def test_counts_of_parts_add_up_to_those_of_the_whole(rows: int, cut: int, seed: int) -> None:
    task, generator = Images(4, 1, 8), seeded(seed)
    outputs = torch.randn(rows, 4, generator=generator)
    labels = torch.randint(4, (rows,), generator=generator)
    whole = task.count(outputs, {"labels": labels})
    assert whole.examples == rows
    assert whole.value(ACCURACY) == int((outputs.argmax(1) == labels).sum()) / rows
    assert whole.value(LOSS) == pytest.approx(float(functional.cross_entropy(outputs, labels)))
    if 0 < cut < rows:
        parts = [
            task.count(outputs[part], {"labels": labels[part]})
            for part in (slice(0, cut), slice(cut, rows))
        ]
        assert (parts[0] + parts[1]).value(ACCURACY) == whole.value(ACCURACY)
        assert (parts[0] + parts[1]).value(LOSS) == pytest.approx(whole.value(LOSS), rel=1e-6)


def test_a_perfect_teacher_is_learned_as_labels_are() -> None:
    outputs, labels = torch.randn(5, 3, generator=seeded(1)), torch.tensor([0, 2, 1, 1, 0])
    task = Images(3, 1, 8)
    teacher = 1e4 * functional.one_hot(labels, 3).float()
    expected = task.loss(outputs, {"labels": labels})
    torch.testing.assert_close(task.distil(outputs, teacher), expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_example_has_the_shape_that_networks_read(device: str) -> None:
    (example,) = Images(10, 3, 16).example(2, device)
    assert example.shape == (2, 3, 16, 16) and example.dtype == torch.float32
    assert example.device.type == device


def test_options_make_a_task_of_the_same_networks() -> None:
    task = Images(2, 3, 16, classes=("cat", "dog"), mean=MEAN, std=STD, augment=Augment(2))
    again = load_task(task.reference, task.options)
    assert not task.differences(again) and not again.differences(task)
    other = Images(2, 1, 16)
    assert task.differences(other) == [("image channels", 3, 1)]


def test_what_a_task_says_of_itself_is_rounded_to_the_constants_of_training() -> None:
    task = Images(2, 3, 8, classes=("cat", "dog"), mean=MEAN, std=STD)
    one = task.inputs["images"]
    assert isinstance(one, Input) and (one.low, one.high, one.dtype) == (0, 255, "uint8")
    assert one.scale == tuple(1 / (255 * s) for s in STD)
    assert task.outputs["logits"].names == ("cat", "dog") and task.answer == (2,)
    assert task.metrics[0] is ACCURACY


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"image_size": 0}, "image_size"),
        ({"num_classes": 2, "classes": ("a",)}, "classes"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.2, 0.2)}, "std"),
        ({"std": (0.2, 0.2, 0.0)}, "std"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(TaskError, match=key):
        Images(**options)


@pytest.mark.parametrize("reference", ["pictures", "no.such:Task", "json:dumps", "json:nothing"])
def test_what_is_no_task_is_refused(reference: str) -> None:
    with pytest.raises((TaskError, NotImportableError), match="task"):
        load_task(reference)


def test_options_that_a_task_does_not_take_are_refused() -> None:
    with pytest.raises(TaskError, match="options"):
        load_task("images", {"words": 3})


def test_an_incomplete_task_is_refused() -> None:
    with pytest.raises(TaskError, match="lacks"):
        load_task("superfednas.tasks.task:Task")
