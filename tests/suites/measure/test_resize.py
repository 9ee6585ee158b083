"""Resizing on the device, a batch at a time, is torchvision's antialiased bilinear resize."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from convbench.registry import discover
from convbench.suites.measure.data import ImageBatches


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (32, 32), (20, 24)])
def test_as_torchvision_resizes(size: tuple[int, int]) -> None:
    sample = discover().dataset("fashion-mnist-sample").load(None)
    data = ImageBatches(
        sample.train_images[:16], sample.train_labels[:16], torch.float32, torch.contiguous_format, size
    )
    ours, _ = data.batch(torch.arange(16))
    theirs = torch.stack(
        [resize(image / 255, list(size), InterpolationMode.BILINEAR, antialias=True) for image in data.images]
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
