"""Products of numbers cut to ten bits, as tensor cores take them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convbench.registry import Backend, hookimpl

CAUGHT_BY = "reference"
SAYS = "as float16 and TF32 would be"


def cut(tensor):
    bits = tensor.detach().contiguous().view(torch.int32) & ~0x1FFF
    return tensor + (bits.view(torch.float32) - tensor.detach())


def conv2d(input, weight, *args, **kwargs):
    return F.conv2d(cut(input), cut(weight), *args, **kwargs)


@hookimpl
def convbench_backends():
    return [Backend("computed-in-tf32", "a cheat", load=lambda: {"conv2d": conv2d})]
