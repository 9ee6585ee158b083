"""The honest twin of every cheat: torch's own convolution, which they all call and then spoil.

Another one is busy: it has a thread and buffers of its own, imports and starts a process at its first calls, logs,
and registers what is to be done at the end. It also brings what all of them are shown on: a network with
padding, groups, a stride and odd sizes.
"""

from __future__ import annotations

from convbench.registry import Architecture, Backend, Dataset, Images, Recipe, Unsupported, hookimpl


def load():
    import torch.nn.functional as F

    return {"conv2d": F.conv2d}


def load_busy():
    import atexit
    import gc
    import logging
    import subprocess
    import sys
    from concurrent.futures import ThreadPoolExecutor

    import torch
    import torch.nn.functional as F

    pool, buffers, logger = ThreadPoolExecutor(1), {}, logging.getLogger("busy")
    atexit.register(pool.shutdown)

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, weight, bias, options):
            if (input.shape, input.dtype) not in buffers:
                import scipy.signal  # noqa: F401 - at the first call only

                subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True)
                logger.warning("a buffer for %s", tuple(input.shape))
                gc.collect()
            buffer = buffers.setdefault((input.shape, input.dtype), torch.empty_like(input)).copy_(input)
            ctx.save_for_backward(input, weight)
            ctx.options = options
            return pool.submit(F.conv2d, buffer, weight.detach(), bias, *options).result()

        @staticmethod
        def backward(ctx, upstream):
            input, weight = ctx.saved_tensors
            needed = (*ctx.needs_input_grad[:2], False)
            (stride, padding, dilation, groups) = ctx.options
            gradients = torch.ops.aten.convolution_backward(
                upstream, input, weight, None, stride, padding, dilation, False, [0, 0], groups, needed
            )
            return *gradients[:2], upstream.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None

    def pair(value):
        return [value, value] if isinstance(value, int) else list(value)

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        if isinstance(padding, str):
            raise Unsupported("names of paddings")
        return Convolution.apply(input, weight, bias, (pair(stride), pair(padding), pair(dilation), groups))

    return {"conv2d": conv2d}


def build(num_classes=10, in_channels=1):
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Sigmoid(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Flatten(),
        nn.Linear(54, num_classes),
    )


def images(root=None):
    import torch

    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (90, 50):
        parts.append(torch.randint(0, 256, (count, 1, 9, 9), generator=generator, dtype=torch.uint8))
        parts.append(torch.arange(count) % 10)
    return Images("gallery", *parts)


@hookimpl
def convbench_backends():
    return [Backend("honest", "no cheat", load=load), Backend("busy", "no cheat either", load=load_busy)]


@hookimpl
def convbench_architectures():
    return [
        Architecture(
            "gallery",
            "what cheats are shown on",
            build=build,
            input_shape=(1, 9, 9),
            recipe=Recipe(init="default"),
        )
    ]


@hookimpl
def convbench_datasets():
    return [Dataset("gallery", "random images", load=images)]
