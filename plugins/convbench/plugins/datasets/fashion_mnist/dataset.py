"""FashionMNIST: 60,000 training and 10,000 test images of clothes in 10 classes, 28x28 grey."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from convbench.plugins.datasets.fashion_mnist import files, sources
from convbench.plugins.datasets.idx import IdxFile
from convbench.registry import Dataset, Images, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def load(root: Path | None = None) -> Images:
    """Load FashionMNIST from the first of its sources that has it, verified to the last byte.

    The sources: `root` (`--data-dir`), the directory in CONVBENCH_DATA, the user's cache, the system copy of
    Debian's dataset-fashion-mnist, and a download through torchvision into the cache. If all fail, the embedded
    sample is loaded under the name `fashion-mnist-sample`, and a warning is logged.

    A download takes at most a minute. If it fails, no process tries again within the hour. `convbench data fetch`
    fetches ahead of a run.

    Raises:
        DataError: `root` or CONVBENCH_DATA does not hold the data, or the first copy found is damaged.
    """
    from convbench.plugins.datasets.fashion_mnist import fetch

    chosen = sources.chosen(root)
    if chosen is None:
        why = fetch.at_first_use(note=log.info)
        chosen = sources.chosen(root)
        if chosen is None:
            log.warning(
                "full FashionMNIST not found, so the embedded sample of 12,000 images is used, as"
                " fashion-mnist-sample; `convbench data fetch` gets the full data (%s)",
                why,
            )
            return load_sample()
    return _images(files.NAME, sources.read(*chosen), files.FULL)


def load_sample(root: Path | None = None) -> Images:
    """Load the embedded sample: 10,000 training and 2,000 test images, balanced over the classes.

    It is a part of the package; `root` is not used.
    """
    return _images(files.SAMPLE_NAME, files.read_sample(), files.SAMPLE)


def _images(name: str, contents: tuple[bytearray, ...], files: tuple[IdxFile, ...]) -> Images:
    """Tensors of the verified contents; images are not copied."""
    tensors = [_tensor(content, file) for content, file in zip(contents, files, strict=True)]
    train_images, train_labels, test_images, test_labels = tensors
    return Images(
        name, train_images.unsqueeze(1), train_labels.long(), test_images.unsqueeze(1), test_labels.long()
    )


def _tensor(content: bytearray, file: IdxFile) -> Tensor:
    import torch

    return torch.frombuffer(content, dtype=torch.uint8, offset=len(file.header)).view(file.shape)


@hookimpl
def convbench_datasets() -> list[Dataset]:
    source = "Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747"
    return [
        Dataset(files.NAME, "60,000 + 10,000 grey images of clothes, 28x28, 10 classes", load, source=source),
        Dataset(
            files.SAMPLE_NAME, "10,000 + 2,000 of them, embedded in the package", load_sample, source=source
        ),
    ]
