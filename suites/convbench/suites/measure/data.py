"""Training data that lives on the device: gathered, normalised and resized there, a batch at a time."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convbench.registry import DataError, Images, Problem
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.suites.processes.protocol import ImageFile


class Batches(Protocol):
    """What a network is trained on, a batch at a time.

    `grad_output` is the gradient a backward pass starts from where `objective` is no scalar, else None.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def grad_output(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these indices."""

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the backward pass starts from: the mean loss, or the outputs themselves."""

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss, and how many answers are right."""


MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PARTS = ("train_images", "train_labels", "test_images", "test_labels")
FILE_ORDER = ("train_labels", "test_labels", "train_images", "test_images")  # whole words first: aligned


@dataclass(frozen=True)
class ImageBatches:
    """One split on the device: images uint8 (N, C, H, W), labels int64 (N,)."""

    images: Tensor
    labels: Tensor
    dtype: torch.dtype
    memory_format: torch.memory_format
    resize: tuple[int, int] | None = None
    grad_output: None = None

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def __len__(self) -> int:
        return len(self.labels)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(outputs, targets, reduction="sum"), (outputs.argmax(dim=1) == targets).sum()

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images of these indices as numbers from 0 to 1 in the model's dtype and size, and their labels."""
        images = self.images[index].to(self.dtype).div_(255)
        if self.resize is not None and tuple(images.shape[-2:]) != self.resize:
            # antialiased, as torchvision resizes; one call for the whole batch
            images = F.interpolate(
                images, size=self.resize, mode="bilinear", align_corners=False, antialias=True
            )
        return images.contiguous(memory_format=self.memory_format), self.labels[index]


@dataclass(frozen=True)
class ProblemBatches:
    """The data of a problem, always the same one batch.

    Nothing is ever counted as right: a problem has a loss and no accuracy.
    """

    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] | None
    grad_output: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.dtype

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs if self.loss is None else self.loss(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.objective(outputs, targets).detach().sum(), torch.full((), torch.nan)


def problem_batches(
    problem: Problem, model: nn.Module, batch_size: int, seed: int, dtype: torch.dtype, memory_format: str
) -> ProblemBatches:
    """Draw the data of a problem, on the device of `model`, which is a plain torch module."""
    generator = torch.Generator().manual_seed(seed)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs, targets = problem.data(batch_size, generator)
    inputs = inputs.to(device, dtype).contiguous(memory_format=MEMORY_FORMATS[memory_format])
    if problem.loss is not None:
        assert targets is not None, f"problem {problem.name!r} has a loss and no targets"
        return ProblemBatches(inputs, targets.to(device, dtype), problem.loss)
    with torch.no_grad():
        shape = model(inputs).shape
    grad_output = torch.randn(shape, generator=generator).to(device, dtype)
    return ProblemBatches(inputs.requires_grad_(), grad_output, None, grad_output)


def check_images(images: Images, num_classes: int) -> None:
    """Refuse a dataset that breaks the contract; raises DataError with the part that is wrong."""
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


def write_images(images: Images, file: IO[bytes]) -> ImageFile:
    """Put a dataset into a file that workers map; returns what `read_images` needs beside it."""
    file.seek(0)
    file.truncate()
    for name in FILE_ORDER:
        file.write(memoryview(getattr(images, name).contiguous().numpy()).cast("B"))
    file.flush()
    return ImageFile(images.name, {name: tuple(getattr(images, name).shape) for name in PARTS})


def read_images(description: ImageFile, descriptor: int, *, prot: int = mmap.PROT_WRITE) -> Images:
    """Map a dataset written by `write_images`, private to this process: writing changes nobody else's."""
    mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | prot)
    parts, offset = {}, 0
    for name in FILE_ORDER:
        shape = description.shapes[name]
        dtype = torch.uint8 if name.endswith("images") else torch.int64
        count = torch.Size(shape).numel()
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset)
        parts[name] = flat.reshape(shape)
        offset += count * dtype.itemsize
    return Images(name=description.name, **parts)


class DataState:
    """The splits that a combination uses, as they are when this is made; images must be those of the file."""

    def __init__(self, description: ImageFile, descriptor: int, splits: Mapping[str, Batches]) -> None:
        self._description, self._descriptor = description, descriptor
        self._before = [(name, data, type(data), dict(vars(data))) for name, data in splits.items()]

    def check(self) -> None:
        """Raise IntegrityError where another object, or other images or labels, took the place of a split's."""
        for name, data, kind, parts in self._before:
            now = vars(data)  # a function put there would stand before that of the class
            if (
                type(data) is not kind
                or now.keys() != parts.keys()
                or any(now[each] is not parts[each] for each in parts)
            ):
                raise IntegrityError(f"the {name} data were replaced")
            if not isinstance(data, ImageBatches):
                continue
            with warnings.catch_warnings(action="ignore"):  # torch would have tensors that can be written
                filed = read_images(self._description, self._descriptor, prot=0)
            for part in ("images", "labels"):
                if not torch.equal(parts[part].cpu(), getattr(filed, f"{name}_{part}")):
                    raise IntegrityError(f"the {name} {part} were changed")


def image_batches(
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: str,
    resize: tuple[int, int] | None,
) -> ImageBatches:
    """Move one split to the device, once."""
    return ImageBatches(images.to(device), labels.to(device), dtype, MEMORY_FORMATS[memory_format], resize)


def translated(images: Tensor, most: int, seed: int) -> Tensor:
    """Each image moved by up to `most` pixels down or up and right or left, black where nothing moved in.

    The test of Dive into Deep Learning's 7.1: whether an object is recognised does not depend on where it is.
    """
    generator = torch.Generator().manual_seed(seed)
    padded = F.pad(images, (most,) * 4)
    height, width = images.shape[-2:]
    top, left = torch.randint(0, 2 * most + 1, (2, len(images)), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    number = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[number, channel, rows, columns]
