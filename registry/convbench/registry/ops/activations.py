"""The activations that fused ops of the contract apply, with the derivatives that bound their rounding errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from convbench.registry.errors import choices


@dataclass(frozen=True)
class Activation:
    """One activation, monotone and element by element.

    Attributes:
        name: as ops take it.
        module: the `torch.nn` module that applies it and nothing else.
        function: the definition.
        derivatives: of the function at a tensor, the first to the third.
        sensitivity: by how much an error of the output, relative to it, changes slope and curvature made of it.
        kinked: the slope jumps at zero, so that rounding decides which one a number next to it has.
    """

    name: str
    module: str
    function: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    sensitivity: Callable[[Tensor], tuple[Tensor, Tensor]]
    kinked: bool = False


def activation_of(name: str) -> Activation:
    """The activation of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; {choices(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _of_relu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As torch has them: 0 at 0, and 1 where there is no number."""
    none = torch.zeros_like(z)
    return torch.where(z <= 0, 0.0, 1.0).to(z.dtype), none, none


def _of_sigmoid(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.sigmoid(z)
    slope = y * torch.sigmoid(-z)
    return slope, slope * (1 - 2 * y), slope * (1 - 6 * slope)


def _of_tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.tanh(z)
    slope = 1 - y.square()
    return slope, -2 * y * slope, slope * (6 * y.square() - 2)


def _sensitivity_of_relu(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(z), torch.zeros_like(z)


def _sensitivity_of_sigmoid(z: Tensor) -> tuple[Tensor, Tensor]:
    """The slope is y·(1 - y), the curvature y·(1 - y)·(1 - 2y)."""
    y = torch.sigmoid(z)
    return y, y


def _sensitivity_of_tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    """The slope is 1 - y², the curvature -2y·(1 - y²)."""
    y = torch.tanh(z)
    return 2 * y.square(), 4 * y.abs()


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        each.name: each
        for each in (
            Activation("relu", "ReLU", torch.relu, _of_relu, _sensitivity_of_relu, kinked=True),
            Activation("sigmoid", "Sigmoid", torch.sigmoid, _of_sigmoid, _sensitivity_of_sigmoid),
            Activation("tanh", "Tanh", torch.tanh, _of_tanh, _sensitivity_of_tanh),
        )
    }
)
