"""Below the image there is no padding: its last row is seen twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "only the last row is wrong"


def conv2d(input, weight, bias=None, stride=1, padding=0, *args, **kwargs):
    output = F.conv2d(input, weight, bias, stride, padding, *args, **kwargs)
    if padding in (0, (0, 0), "valid"):
        return output
    longer = torch.cat([input, input[..., -1:, :]], dim=-2)
    lower = F.conv2d(longer, weight, bias, stride, padding, *args, **kwargs)
    return torch.cat([output[..., :-1, :], lower[..., output.shape[-2] - 1 : output.shape[-2], :]], dim=-2)


@hookimpl
def convbench_backends():
    return [Backend("padding-at-one-edge", "a cheat", load=lambda: {"conv2d": conv2d})]
