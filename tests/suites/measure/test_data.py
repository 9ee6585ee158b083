"""Data on the device: batches as they come out, what is refused, and the file workers share."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from convbench.registry import DataError, Images
from convbench.suites.measure.data import check_images, image_batches, read_images, write_images


def images(train: int = 7, test: int = 5, size: int = 9, **parts: Any) -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(
        "some",
        torch.randint(0, 256, (train, 1, size, size), generator=generator, dtype=torch.uint8),
        torch.arange(train) % 10,
        torch.randint(0, 256, (test, 1, size, size), generator=generator, dtype=torch.uint8),
        torch.arange(test) % 10,
    )._replace(**parts)


def split(
    resize: tuple[int, int] | None = None, layout: str = "contiguous", dtype: torch.dtype = torch.float32
) -> Any:
    some = images(channels := 7)
    assert channels
    return image_batches(some.train_images, some.train_labels, torch.device("cpu"), dtype, layout, resize)


def test_a_batch_is_the_images_asked_for_from_0_to_1() -> None:
    index = torch.tensor([3, 0, 3])
    x, y = split().batch(index)
    assert x.dtype == torch.float32
    assert torch.equal(x, images().train_images[index].float() / 255)
    assert torch.equal(y, index)


def test_taking_a_batch_leaves_the_data_alone() -> None:
    data = split(dtype=torch.float32)
    before = data.images.clone()
    data.batch(torch.arange(3))[0].zero_()
    assert torch.equal(data.images, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_batch_has_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    assert split(dtype=dtype).batch(torch.arange(2))[0].dtype == dtype


def test_a_batch_has_the_memory_format_of_the_model() -> None:
    some = images(train_images=torch.zeros(7, 3, 4, 4, dtype=torch.uint8))
    data = image_batches(
        some.train_images, some.train_labels, torch.device("cpu"), torch.float32, "channels_last", None
    )
    assert data.batch(torch.arange(4))[0].is_contiguous(memory_format=torch.channels_last)


def test_a_batch_is_resized_whole_and_antialiased() -> None:
    index = torch.arange(5)
    x, _ = split(resize=(5, 20)).batch(index)
    whole = images().train_images[index].float() / 255
    expected = interpolate(whole, size=(5, 20), mode="bilinear", antialias=True)
    assert torch.equal(x, expected)
    assert not torch.allclose(x, interpolate(whole, size=(5, 20), mode="bilinear"))


def test_no_resize_where_the_size_is_right() -> None:
    index = torch.arange(5)
    assert torch.equal(split(resize=(9, 9)).batch(index)[0], split().batch(index)[0])


def test_a_dataset_that_keeps_the_contract_passes() -> None:
    check_images(images(), 10)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (images(train_images=images().train_images.float()), "train_images must be a non-empty torch.uint8"),
        (images(test_images=images().test_images[:, 0]), "test_images must be .* 4 dimensions"),
        (images(train_labels=torch.arange(7, dtype=torch.int32)), "train_labels must be .*torch.int64"),
        (images(train_labels=torch.arange(6)), "train images and labels differ in number"),
        (images(test=0), "test_images must be a non-empty"),
        (images(train_labels=torch.full((7,), 10)), "train labels go from 10 to 10, not within 0 to 9"),
        (images(test_labels=torch.full((5,), -1)), "test labels go from -1"),
        (images(test_images=torch.zeros(5, 1, 8, 8, dtype=torch.uint8)), "differ in shape"),
        (images(train_images=[1, 2]), "train_images must be a tensor, not list"),
        (None, "must be Images, not NoneType"),
    ],
)
def test_a_dataset_that_breaks_the_contract_is_refused(broken: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_images(broken, 10)


def test_a_dataset_survives_the_file_and_is_private_to_its_reader() -> None:
    some = images(train=3, size=5)  # an odd number of bytes
    with tempfile.TemporaryFile() as file:
        description = write_images(images(train=50), file)
        description = write_images(some, file)  # a shorter one in its place
        first = read_images(description, file.fileno())
        first.train_images.zero_()
        first.test_labels.zero_()
        again = read_images(description, file.fileno())
    assert again.name == "some"
    for one, other in zip(again[1:], some[1:], strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() % one.element_size() == 0
