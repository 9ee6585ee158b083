"""Routes the convolutions and poolings of a torch model to a backend, without changing the model.

While a routed model runs forward, calls of the contract's ops go to the backend. All other calls, and those that
the backend's record does not claim or the backend refuses with `Unsupported`, run on torch. The model is run as it
is (`convbench.registry.routing.routes`): nothing is put into its modules, and another thread may use it meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

import torch
from torch import nn

from convbench.registry.discovery.plugins import discover
from convbench.registry.errors import PluginError, UsageError, choices, shown
from convbench.registry.ops.contract import OPS
from convbench.registry.records import Backend
from convbench.registry.routing.fusion import fused_copy, fused_steps, fused_view
from convbench.registry.routing.plan import Plan
from convbench.registry.routing.routes import Routes, Tally, is_watched
from convbench.registry.routing.stock import nothing_is_global

_OWN = (
    "model."  # what names of the model's parameters begin with in `named_parameters`, and not in `state_dict`
)
_MEMBERS = ("_parameters", "_buffers", "_modules")
_MADE = (
    "backend",
    "_routes",
    "_eager",
    "_to_compile",
)  # attributes that a copy does not take over as they are


class Routed(nn.Module):
    """A model whose contract ops are computed by `backend`; `unroute` gives back the plain one.

    `model` is the module that was given, its code and parameters as they were, and `state_dict()` is the model's
    own. With `fuse`, neighbours that one op of the backend computes together are one call (see
    `convbench.registry.routing.fusion`); after a change of the modules of a compiled model call `train()` or
    `eval()`, which look at them anew. The counts cover every forward pass since the last `reset_counts()`,
    `passes` of them, except compiled and traced ones, which run no Python to count in. What a checkpoint computes
    again in backward is counted again.
    """

    def __init__(self, model: nn.Module, backend: Backend, fuse: bool = False) -> None:
        super().__init__()
        self.model = model
        self.backend = backend
        self.fuse = fuse
        self.register_load_state_dict_post_hook(_with_names_of_model)  # type: ignore[no-untyped-call]
        self._start()

    def _start(self) -> None:
        """Routes of its own, with nothing counted."""
        self._routes = Routes(self.backend)
        self._look_at_model()

    def _look_at_model(self) -> None:
        """Find what can be fused. Forms of the model are in tuples, which torch does not search for parameters."""
        offered = self.backend.ops if self.fuse else {}
        wanted = {name for name, op in OPS.items() if op.base and name in offered}
        steps = fused_steps(self.model, self._routes.by_op, wanted)
        view = fused_view(self.model, steps)
        self._eager = (self.model, view, Plan(self.model, view, steps, self._routes))
        self._to_compile = (fused_copy(self.model, steps),)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(args, tuple):
            raise UsageError("torch.fx cannot trace a routed model; give it unroute(model)")
        if torch.compiler.is_compiling():
            with self._routes:
                return self._to_compile[0](*args, **kwargs)
        model, view, plan = self._eager
        # a replica of `DataParallel` has layers of its own
        if self._modules["model"] is not model or not plan.holds():
            self._look_at_model()
            model, view, plan = self._eager
        self._routes.begin_pass()
        if len(args) != 1 or kwargs or not nothing_is_global() or is_watched() or self._routes.is_active():
            return self._routes.run(view, *args, **kwargs)
        (output,) = args
        for call in plan.calls:
            output = call(output)
        return output

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._look_at_model()
        return self

    # --- weights ------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """The model's, with its names, wherever the routed model is; and what was put on the routed one itself."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        inner = prefix + _OWN
        for names in (state, state._metadata):
            for name in [name for name in names if f"{name}.".startswith(inner)]:
                names[(prefix + name[len(inner) :]).removesuffix(".")] = names.pop(name)
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._loading = prefix
        own = {*self._parameters, *self._buffers, *self._modules}
        if hasattr(self.model, "model"):
            own.discard("model")
        for name in [name for name in state_dict if name.startswith(prefix)]:
            if (rest := name[len(prefix) :]).partition(".")[0] not in own:
                state_dict[prefix + _OWN + rest] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Also the model's layers, parameters and buffers, for which `torch.func.functional_call` puts others."""
        held = self._held_by_model(name, *_MEMBERS)
        if held is None or _has_tied_tensors(self.model):
            return super().__getattr__(name)
        return held[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """A parameter or buffer of the model is set in the model."""
        held = self._held_by_model(name, "_parameters", "_buffers")
        if held is None:
            super().__setattr__(name, value)
        elif _has_tied_tensors(self.model):
            raise UsageError(
                f"the model has tied weights: call its tensors as named_parameters() does, and not {name!r}"
            )
        else:
            held[name] = value

    def _held_by_model(self, name: str, *kinds: str) -> dict[str, Any] | None:
        """Where the model keeps what has that name; None where it keeps nothing, or the routed one does."""
        own = vars(self).get("_modules", {})
        if "model" not in own or any(name in vars(self)[kind] for kind in _MEMBERS):
            return None
        model = _innermost(self)
        return next((vars(model)[kind] for kind in kinds if name in vars(model)[kind]), None)

    # --- copies -------------------------------------------------------------------------------------------------

    def __copy__(self) -> Routed:
        copy = object.__new__(type(self))
        vars(copy).update(self._kept(), backend=self.backend)
        copy._start()
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Routed:
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        vars(copy).update(deepcopy(self._kept(), memo), backend=self.backend)
        copy._start()
        return copy

    def __getstate__(self) -> dict[str, Any]:
        name = self.backend.name
        known = discover().backends.get(name)
        if known is None or _origin(known) != _origin(self.backend):
            raise UsageError(
                f"backend {name!r} is not registered by a plugin, and a pickle holds a backend by its name; "
                "save unroute(model) or its state_dict() instead"
            )
        return {**self._kept(), "backend": name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "backend": discover().backend(state["backend"])})  # type: ignore[no-untyped-call]
        self._start()

    def _kept(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _MADE}

    def __prepare_scriptable__(self) -> nn.Module:
        raise UsageError("torch.jit.script cannot compile a routed model; give it unroute(model)")

    # --- counts -------------------------------------------------------------------------------------------------

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """The counts of each op, by name."""
        return self._routes.tallies

    @property
    def passes(self) -> int:
        """Forward passes that were counted."""
        return self._routes.passes

    @property
    def calls(self) -> int:
        """Calls of the contract's ops, on the backend and on torch."""
        return sum(tally.calls for tally in self.tallies.values())

    @property
    def served_calls(self) -> int:
        """Those that the backend computed; the others fell back to torch."""
        return sum(tally.served_calls for tally in self.tallies.values())

    @property
    def served_flops_fraction(self) -> float | None:
        """The backend's share of the FLOPs of these calls, 0 to 1; None where there was no such call."""
        total = sum(tally.flops for tally in self.tallies.values())
        served = sum(tally.served_flops for tally in self.tallies.values())
        return served / total if total else None

    @property
    def served(self) -> str:
        """The share of every op that was called, such as `conv2d 2/2, avg_pool2d 0/2`."""
        return ", ".join(
            f"{name} {tally.served_calls}/{tally.calls}"
            for name, tally in self.tallies.items()
            if tally.calls
        )

    @property
    def served_flops(self) -> str:
        """The share of every op's FLOPs, 0 to 1, such as `conv2d 0.853, avg_pool2d 0`."""
        return ", ".join(
            f"{name} {tally.served_flops / tally.flops:.9g}"
            for name, tally in self.tallies.items()
            if tally.flops
        )

    @property
    def refusals(self) -> list[str]:
        """Why calls fell back to torch, each reason once."""
        return sorted({reason for tally in self.tallies.values() for reason in tally.refusals})

    @property
    def workarounds(self) -> list[str]:
        """What torch computed in another dtype because of a known fault, each once."""
        return sorted({workaround for tally in self.tallies.values() for workaround in tally.workarounds})

    def reset_counts(self) -> None:
        """Start counting anew."""
        self._routes.reset_counts()


def use_backend(model: nn.Module, backend: Backend | str, *, fuse: bool = False) -> Routed:
    """Route the contract's ops in `model` to `backend`, given as a record or by its registered name.

    With `fuse`, its fused ops serve the layers that they stand for, where these are next to each other.

    Raises:
        UnknownName: no backend of that name is registered.
        PluginError: the backend offers an op that is not in the contract.
        UsageError: `model` is no torch module, or `backend` neither a record nor a name.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"use_backend takes a torch model, not {shown(model)}; create_model makes one of an architecture"
        )
    if not isinstance(backend, (Backend, str)):
        raise UsageError(f"use_backend takes a backend's name or record, not {shown(backend)}")
    backend = discover().backend(backend) if isinstance(backend, str) else backend
    for name in backend.ops:
        if name not in OPS:
            raise PluginError(f"backend {backend.name!r} offers an unknown op {name!r}; {choices(name, OPS)}")
    return Routed(model, backend, fuse)


def unroute(model: nn.Module) -> nn.Module:
    """The plain model of a routed one. Routed models inside of another one are replaced by theirs, in place."""
    model = _innermost(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Routed):
                setattr(module, name, unroute(child))
    return model


def _innermost(model: nn.Module) -> nn.Module:
    while isinstance(model, Routed):
        model = model.model
    return model


def _has_tied_tensors(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return len(every) > len(tensors)


def _origin(backend: Backend) -> tuple[Any, ...]:
    """Where the code of a backend is: a plugin makes its records anew each time that it is asked for them."""
    load = getattr(backend.load, "func", backend.load)  # of a partial
    return getattr(load, "__module__", None), getattr(load, "__qualname__", None)


def _with_names_of_model(routed: Any, problems: Any) -> None:
    """Name what was missing or unexpected in a state as the model itself would."""
    inner = routed._loading + _OWN
    for names in problems:
        names[:] = [
            routed._loading + name.removeprefix(inner) if name.startswith(inner) else name for name in names
        ]
