"""Count the work of a network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """FLOPs of the forward pass, and of the whole step, on this batch.

    Two for every multiplication and addition of convolutions and matrix products, as torch's own counter has
    it; element-wise work and pooling are not counted. The model is run as plain torch.
    """
    with FlopCounterMode(display=False) as forward:
        scores = model(images)
    with FlopCounterMode(display=False) as backward:
        if scores.requires_grad:  # a pooling alone has no parameters
            scores.sum().backward()
    model.zero_grad()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()
