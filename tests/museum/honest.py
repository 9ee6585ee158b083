"""The honest twin of every cheat: torch's own convolution, which they all call and then spoil.

It also brings what all of them are shown on: a network with padding, groups, a stride and odd sizes.
"""

from __future__ import annotations

from convbench.registry import Architecture, Backend, Dataset, Images, Recipe, hookimpl


def load():
    import torch.nn.functional as F

    return {"conv2d": F.conv2d}


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
    return [Backend("honest", "no cheat", load=load)]


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
