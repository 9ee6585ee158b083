"""FashionMNIST: 60,000 training and 10,000 test images of clothes in 10 classes, 28x28 grey."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from convbench.plugins.datasets.fashion_mnist import embedded, files, sources
from convbench.plugins.datasets.idx import IdxFile
from convbench.registry import Dataset, Images, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def load(root: Path | None = None) -> Images:
    """Load FashionMNIST from the first of its sources that has it, verified to the last byte.

    The sources: `root` (`--data-dir`), the directory in CONVBENCH_DATA, the user's cache, the system copy of
    Debian's dataset-fashion-mnist; then a download through torchvision into the cache; and with none of them
    the embedded sample, under the name `fashion-mnist-sample` and with a warning logged.

    A download takes at most a minute, and one that failed is not tried again within the hour, whichever
    process tried it: the workers of a run go on to the sample at once. `convbench data fetch` fetches ahead.

    Raises:
        DataError: `root` or CONVBENCH_DATA does not hold the data, or the first copy found is damaged.
    """
    from convbench.plugins.datasets.fashion_mnist import acquire

    chosen = sources.chosen(root)
    if chosen is None:
        why = acquire.at_first_use(note=log.info)
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

    It lies in the package, so `root` is not looked at.
    """
    return _images(embedded.NAME, embedded.read(), embedded.FILES)


def _images(name: str, contents: tuple[bytearray, ...], files: tuple[IdxFile, ...]) -> Images:
    """Tensors over the verified contents, images without a copy."""
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
        Dataset(embedded.NAME, "10,000 + 2,000 of them, embedded in the package", load_sample, source=source),
    ]
