"""A forward pass of stock layers as a list of calls: these layers call nothing unknown, and need no mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from convbench.registry.routing.fusion import FusedStep, Steps
from convbench.registry.routing.routes import Routes
from convbench.registry.routing.stock import LAYERS, are_untouched, call_of, has_stock_class, is_stock


class Plan:
    """The calls of a model, for as long as it `holds`.

    Args:
        model: any model.
        view: the same with `steps` in its Sequentials; see `convbench.registry.routing.fusion`.
        steps: what these run.
        routes: where calls go.
    """

    def __init__(
        self,
        model: nn.Module,
        view: nn.Module,
        steps: Steps,
        routes: Routes,
    ) -> None:
        self._steps, self._routes = steps, routes
        self._stock: list[nn.Module] = []
        self._children: list[tuple[Mapping[str, Any], list[Any]]] = []
        self.calls: list[Callable[[Any], Any]] = []
        self._add(model, view)
        for module in model.modules() if steps else ():  # whose view has the children that there are now
            if any(each in steps for each in module.modules()):
                self._children.append((module._modules, [*module._modules.values()]))
        self._types = [type(module) for module in self._stock]
        self._kinds = set(self._types)

    def holds(self) -> bool:
        """Whether all modules are there, and as stock as they were."""
        return (
            are_untouched(self._stock)
            and all(map(has_stock_class, self._kinds))
            and [*map(type, self._stock)] == self._types
            and all([*children.values()] == before for children, before in self._children)
        )

    def _add(self, module: nn.Module, view: nn.Module) -> None:
        if not is_stock(module):
            self.calls.append(partial(self._routes.run, view))
            return
        self._stock.append(module)
        op = LAYERS.get(type(module))
        if op is not None:
            self.calls.append(call_of(module, self._routes.by_op[op]))
        elif type(module) is nn.Sequential:
            self._add_children(module, view)
        else:
            self.calls.append(module.forward)

    def _add_children(self, module: nn.Sequential, view: nn.Module) -> None:
        self._children.append((module._modules, list(module)))
        views: dict[Any, Any] = dict(zip(module, view._modules.values(), strict=True))
        steps: Iterable[Any] = self._steps.get(module, module)
        for step in steps:
            if not isinstance(step, FusedStep):
                self._add(step, views[step])
            elif all(map(is_stock, step.layers)):
                self._stock.extend(step.layers)
                self.calls.append(step.fused)
            else:
                for layer in step.layers:
                    self._add(layer, layer)
