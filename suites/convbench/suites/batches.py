"""Training data that lives on the device: gathered, normalised and resized there, a batch at a time."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import DataError, Images, UsageError

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
FILE_ORDER = ("train_labels", "test_labels", "train_images", "test_images")  # whole words first: aligned


@dataclass(frozen=True)
class Resident:
    """One split on the device: images uint8 (N, C, H, W), labels int64 (N,)."""

    images: Tensor
    labels: Tensor
    dtype: torch.dtype
    memory_format: torch.memory_format
    resize: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images of these indices as numbers from 0 to 1 in the model's dtype and size, and their labels."""
        images = self.images[index].to(self.dtype).div_(255)
        if self.resize is not None and tuple(images.shape[-2:]) != self.resize:
            # antialiased, as torchvision resizes; one call for the whole batch
            images = F.interpolate(
                images, size=self.resize, mode="bilinear", align_corners=False, antialias=True
            )
        return images.contiguous(memory_format=self.memory_format), self.labels[index]


def check_images(images: Images, num_classes: int) -> None:
    """Refuse a dataset that breaks the contract.

    Raises:
        DataError: with the part that is wrong.
    """
    if not isinstance(images, Images):
        raise DataError(f"a dataset must be Images, not {type(images).__name__}")
    for name in PARTS:
        part = getattr(images, name)
        if not isinstance(part, Tensor):
            raise DataError(f"dataset {images.name!r}: {name} must be a tensor, not {type(part).__name__}")
        dtype, dimensions = (torch.uint8, 4) if name.endswith("images") else (torch.int64, 1)
        if part.dtype != dtype or part.dim() != dimensions or not len(part):
            raise DataError(
                f"dataset {images.name!r}: {name} must be a non-empty {dtype} tensor of {dimensions} dimensions, "
                f"not {part.dtype} of shape {tuple(part.shape)}"
            )
    for split in ("train", "test"):
        if len(getattr(images, f"{split}_images")) != len(getattr(images, f"{split}_labels")):
            raise DataError(f"dataset {images.name!r}: {split} images and labels differ in number")
        least, most = (int(bound) for bound in getattr(images, f"{split}_labels").aminmax())
        if least < 0 or most >= num_classes:
            raise DataError(
                f"dataset {images.name!r}: {split} labels go from {least} to {most}, not within 0 to "
                f"{num_classes - 1}"
            )
    if images.train_images.shape[1:] != images.test_images.shape[1:]:
        raise DataError(f"dataset {images.name!r}: train and test images differ in shape")


def write_images(images: Images, file: IO[bytes]) -> dict[str, Any]:
    """Put a dataset into a file that workers map; returns what `read_images` needs beside it."""
    file.seek(0)
    file.truncate()
    for name in FILE_ORDER:
        file.write(memoryview(getattr(images, name).contiguous().numpy()).cast("B"))
    file.flush()
    return {"name": images.name, "shapes": {name: list(getattr(images, name).shape) for name in PARTS}}


def read_images(description: Mapping[str, Any], descriptor: int) -> Images:
    """Map a dataset written by `write_images`, private to this process: writing changes nobody else's."""
    mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    parts, offset = {}, 0
    for name in FILE_ORDER:
        shape = description["shapes"][name]
        dtype = torch.uint8 if name.endswith("images") else torch.int64
        count = torch.Size(shape).numel()
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset)
        parts[name] = flat.reshape(shape)
        offset += count * dtype.itemsize
    return Images(name=description["name"], **parts)


def resident(
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: str,
    resize: tuple[int, int] | None,
) -> Resident:
    """Move one split to the device, once.

    Raises:
        UsageError: no such memory format.
    """
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    if memory_format not in formats:
        raise UsageError(f"unknown memory format {memory_format!r}; available: {', '.join(formats)}")
    return Resident(images.to(device), labels.to(device), dtype, formats[memory_format], resize)
