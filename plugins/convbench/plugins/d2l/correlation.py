"""Cross-correlation and convolution of single images by their definitions (Dive into Deep Learning, 7.2, 7.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def corr2d(image: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlation: (H, W), (kh, kw) -> (H - kh + 1, W - kw + 1).

    Raises:
        ValueError: not two matrices, an empty kernel, or one larger than the image.
    """
    if image.dim() != 2 or kernel.dim() != 2:
        raise ValueError(
            f"corr2d takes two matrices, not shapes {tuple(image.shape)} and {tuple(kernel.shape)}"
        )
    (height, width), (kh, kw) = image.shape, kernel.shape
    if not kernel.numel():
        raise ValueError(f"a kernel of {kh}x{kw} has no values")
    if kh > height or kw > width:
        raise ValueError(f"a kernel of {kh}x{kw} is larger than the image of {height}x{width}")
    rows = [
        torch.stack([(image[i : i + kh, j : j + kw] * kernel).sum() for j in range(width - kw + 1)])
        for i in range(height - kh + 1)
    ]
    return torch.stack(rows)


def conv2d_true(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolution in the mathematical sense: cross-correlation with the kernel flipped in both directions."""
    return corr2d(image, kernel.flip(0, 1))


def corr2d_multi_in(image: Tensor, kernel: Tensor) -> Tensor:
    """Several input channels: (C, H, W), (C, kh, kw) -> (H', W'), the sum over channels.

    Raises:
        ValueError: not three dimensions each, or other numbers of channels.
    """
    if image.dim() != 3 or kernel.dim() != 3 or len(image) != len(kernel):
        raise ValueError(
            "corr2d_multi_in takes (C, H, W) and (C, kh, kw) of the same C, "
            f"not {tuple(image.shape)} and {tuple(kernel.shape)}"
        )
    return torch.stack([corr2d(x, k) for x, k in zip(image, kernel, strict=True)]).sum(dim=0)


def corr2d_multi_in_out(image: Tensor, kernels: Tensor) -> Tensor:
    """Several output channels too: (C, H, W), (O, C, kh, kw) -> (O, H', W'), one kernel for each."""
    return torch.stack([corr2d_multi_in(image, kernel) for kernel in kernels])


def corr2d_multi_in_out_1x1(image: Tensor, kernels: Tensor) -> Tensor:
    """A 1x1 kernel is a matrix over the channels of each pixel: (C, H, W), (O, C, 1, 1) -> (O, H, W).

    Raises:
        ValueError: kernels that are not 1x1, or not of the image's channels.
    """
    if image.dim() != 3 or kernels.shape[1:] != (len(image), 1, 1):
        raise ValueError(
            f"an image (C, H, W) takes kernels (O, C, 1, 1), not {tuple(image.shape)} and {tuple(kernels.shape)}"
        )
    return (kernels.flatten(1) @ image.flatten(1)).view(-1, *image.shape[1:])
