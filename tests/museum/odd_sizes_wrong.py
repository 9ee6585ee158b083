"""Images of an odd height lose what their last row adds."""

from __future__ import annotations

import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "only the last 2 rows are wrong"


def conv2d(input, *args, **kwargs):
    if input.shape[-2] % 2:
        input = F.pad(input[..., :-1, :], (0, 0, 0, 1))
    return F.conv2d(input, *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("odd-sizes-wrong", "a cheat", load=lambda: {"conv2d": conv2d})]
