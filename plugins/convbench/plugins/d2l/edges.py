"""An edge detector, and learning it from its output by gradient descent (Dive into Deep Learning, 7.2).

The loss is (Ŷ - Y)² summed over the 6x7 output. Its curvature is largest in the direction in which both taps
change by the same amount. From most initial kernels, ten steps with learning rate 0.03 bring it below 0.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convbench.registry import Backend, discover

EDGE_KERNEL = (1.0, -1.0)  # the difference between horizontal neighbours
BOOK_KERNEL = (-0.3222, -0.2611)  # the initial kernel that gives the losses printed in the chapter


class Learned(NamedTuple):
    """The loss before each step, and the kernel (1, 2) after the last one."""

    losses: tuple[float, ...]
    kernel: Tensor


def edge_image() -> Tensor:
    """6x8 pixels, white with a black bar of four columns: an edge at column 2 and one at column 6."""
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    return image


def learn_kernel(
    backend: Backend | str,
    steps: int = 10,
    lr: float = 3e-2,
    seed: int = 0,
    *,
    initial: tuple[float, float] | None = None,
    true_convolution: bool = False,
) -> Learned:
    """Learn the edge detector with a backend's `conv2d`, forward and backward.

    Args:
        backend: a record, or the name of a registered one.
        steps: of plain gradient descent.
        lr: the learning rate.
        seed: of the initial kernel, drawn as `torch.nn.Conv2d` draws it.
        initial: the initial kernel, instead of a drawn one.
        true_convolution: flip the kernel before correlating, so that its flip is learned.

    Raises:
        UnknownName: no backend of that name is registered.
        Unsupported: the backend has no 1x2 kernels.
        ValueError: a negative number of steps, or an initial kernel that has not two values.
    """
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if initial is not None and len(initial) != len(EDGE_KERNEL):
        raise ValueError(f"the initial kernel has {len(EDGE_KERNEL)} values, not {len(initial)}: {initial}")
    backend = discover().backend(backend) if isinstance(backend, str) else backend
    conv2d = backend.ops["conv2d"]
    image = edge_image()[None, None]
    edges = image[..., :-1] - image[..., 1:]
    if initial is None:
        drawn = torch.rand(1, 2, generator=torch.Generator().manual_seed(seed))
        kernel = (2 * drawn - 1) / 2**0.5  # uniform up to 1/√(kh·kw)
    else:
        kernel = torch.tensor([initial])
    losses = []
    for _ in range(steps):
        weight = kernel.clone().requires_grad_()
        correlated = weight.flip(0, 1) if true_convolution else weight
        loss = (conv2d(image, correlated[None, None]) - edges).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        losses.append(loss.item())
        kernel = kernel - lr * gradient
    return Learned(tuple(losses), kernel)
