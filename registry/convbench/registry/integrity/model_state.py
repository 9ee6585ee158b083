"""Checks that an op leaves tensors, models and optimizers as they were in all but their numbers.

An op could stop a weight from learning, hang a hook on it, point it to other memory, or change a layer's stride.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from convbench.registry.integrity.monkeypatch_guard import IntegrityError

_CHANGES_IN_A_STEP = (
    "training",
    "_parameters",
    "_buffers",
    "_modules",
)  # the latter three are compared apart
_VALUES = (bool, int, float, str, tuple, type(None))


@contextmanager
def tensors_kept(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise IntegrityError where the code in between changes more of a tensor than its numbers."""
    before = {name: _with_gradient(tensor) for name, tensor in tensors.items()}
    yield
    for name, tensor in tensors.items():
        _compare(name, before[name], _with_gradient(tensor))


class ModelState:
    """A model's parameters, buffers and layers as they are when this is made, but for their numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = _model_state(model)

    def check(self) -> None:
        """Raise IntegrityError that names the first change since."""
        now = _model_state(self._model)
        for name in self._before.keys() ^ now.keys():
            raise IntegrityError(f"{name} of the model was {'removed' if name in self._before else 'added'}")
        for name, before in self._before.items():
            _compare(name, before, now[name])


class OptimizerState:
    """An optimizer and its options as they are when this is made."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._before = _optimizer_state(optimizer)

    def check(self) -> None:
        """Raise IntegrityError that names the first change since."""
        _compare("the optimizer", self._before, _optimizer_state(self._optimizer))


def _compare(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for part in {**before, **now}:  # in order: a new class comes before what it has
        old, new = before.get(part), now.get(part)
        if new is not old and not (isinstance(old, _VALUES) and type(new) is type(old) and new == old):
            change = f" from {old} to {new}" if isinstance(old, _VALUES) and isinstance(new, _VALUES) else ""
            raise IntegrityError(f"{part} of {name} changed{change}")


def _tensor_state(tensor: Tensor) -> dict[str, Any]:
    return {
        "the class": type(tensor),
        "requires_grad": tensor.requires_grad,
        "the dtype": tensor.dtype,
        "the shape": tuple(tensor.shape),
        "the memory": tensor.untyped_storage().data_ptr(),
        "hooks": _hooks(tensor._backward_hooks),
        "hooks for its gradient": _hooks(getattr(tensor, "_post_accumulate_grad_hooks", None)),
    }


def _with_gradient(tensor: Tensor) -> dict[str, Any]:
    return _tensor_state(tensor) | {"grad": tensor.grad if tensor.is_leaf else None}


def _hooks(hooks: Mapping[Any, Any] | None) -> tuple[str, ...]:
    return tuple(f"{key} {getattr(hook, '__qualname__', hook)}" for key, hook in (hooks or {}).items())


def _model_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    state = {name: _tensor_state(tensor) | {"the tensor": tensor} for name, tensor in tensors}
    for path, module in model.named_modules():
        name = f"{path or 'the model'} ({type(module).__name__})"
        state[name] = {"the class": type(module)}
        if type(module).__module__.startswith("torch.nn.modules."):  # others may keep what they like
            state[name] |= {
                part: _hooks(value) if isinstance(value, dict) else value
                for part, value in vars(module).items()
                if part not in _CHANGES_IN_A_STEP
            }
    return state


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    state: dict[str, Any] = {"the class": type(optimizer)}
    for name, value in vars(optimizer).items():
        if not isinstance(value, bool):  # whether it has checked or warned already
            state[name] = _hooks(value) if name.endswith("_hooks") else value
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            state[f"{name} of group {number}"] = tuple(map(id, value)) if name == "params" else value
    return state
