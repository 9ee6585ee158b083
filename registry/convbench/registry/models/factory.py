"""Make a registered network by name, on any registered backend."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from convbench.registry.discovery.plugins import Registry, discover
from convbench.registry.errors import UsageError, choices
from convbench.registry.records import Architecture, Backend

if TYPE_CHECKING:
    from torch import nn

INITS = ("default", "xavier_uniform")


def list_models(pattern: str | None = None, registry: Registry | None = None) -> list[str]:
    """The names of the registered architectures that match a glob such as `resnet*`, sorted; all when None.

    A `*` does not cross a `/`: torchvision's are `torchvision/*`.
    """
    architectures = (registry or discover()).architectures
    return list(architectures) if pattern is None else architectures.glob(pattern)


def create_model(
    name: str | Architecture,
    backend: str | Backend | None = None,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    registry: Registry | None = None,
    **options: Any,
) -> nn.Module:
    """Build an architecture with its recipe's initial weights, routed to `backend` where one is given.

    Weights are drawn from torch's global generator: seed it first for the same ones.

    Raises:
        UnknownName: no architecture or backend of that name; with the nearest match.
        UsageError: the architecture has no such option.
    """
    from convbench.registry.routing.dispatch import use_backend

    registry = registry or (discover() if isinstance(name, str) or isinstance(backend, str) else None)
    if isinstance(name, str):
        assert registry is not None
        name = registry.architecture(name)
    if isinstance(backend, str):
        assert registry is not None
        backend = registry.backend(backend)
    options = {"num_classes": num_classes, "in_channels": in_channels, **options}
    try:
        signature(name.build).bind(**options)
    except TypeError as error:
        raise UsageError(f"architecture {name.name!r}: {error}") from None
    model = name.build(**options)
    initialise(model, name.recipe.init)
    return model if backend is None else use_backend(model, backend)


def initialise(model: nn.Module, init: str) -> None:
    """Draw the weights of convolution and linear layers anew; biases keep torch's own initial values.

    Raises:
        UsageError: no initialiser of that name.
    """
    from torch import nn

    if init not in INITS:
        raise UsageError(f"unknown init {init!r}; {choices(init, INITS)}")
    if init == "xavier_uniform":  # Glorot and Bengio (2010), as the book applies it
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
