"""Detects plugins that replace functions on which verification and timing rest.

A plugin runs in the process that verifies it. It must not replace functions of torch, the clock or convbench: the
reference could then return the plugin's own answer, and the clock any time. So the originals are recorded
before any plugin is loaded, and compared again before every conclusion.
"""

from __future__ import annotations

import builtins
import math
import os
import time
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry.ops.contract import OPS

Owner = ModuleType | type
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OTHERS: tuple[Owner, ...] = (builtins, math, time)  # which torch itself never changes

# whatever verification and timing call, and where a replacement would be found by name
FOUNDATIONS: tuple[Owner, ...] = (
    *_OTHERS,
    torch,
    F,
    torch.autograd,
    torch.optim,
    torch.optim.SGD,
    torch.random,
    torch.testing,
    torch.accelerator,
    torch._C._nn,
    Tensor,
    torch.Generator,
    torch.nn.Module,
    torch.nn.Conv2d,
    torch.nn.MaxPool2d,
    torch.nn.AvgPool2d,
)


class IntegrityError(Exception):
    """A backend did what no backend may do; the text says what."""


class Originals:
    """The functions and classes of some modules and classes, as they are when this is made."""

    def __init__(self, owners: Iterable[Owner] = FOUNDATIONS) -> None:
        self._of = [(owner, _callables(owner)) for owner in owners]

    def replaced(self) -> list[str]:
        """A sentence for each function that was replaced."""
        return [
            f"{_owner_name(owner)}.{name} was replaced{_replaced_by(now.get(name))}"
            for owner, originals in self._of
            for now in (_callables(owner),)
            for name, original in originals.items()
            if now.get(name) is not original and not _is_torchs_own(owner, now.get(name))
        ]

    def check(self) -> None:
        """Raise IntegrityError where one was replaced, or where the references are wrong."""
        replaced = self.replaced()
        if replaced:
            more = f", and {len(replaced) - 1} more were" if len(replaced) > 1 else ""
            raise IntegrityError(f"{replaced[0]}{more}")
        check_references()


def check_references() -> None:
    """Compare the float64 references with results computed by hand, exactly.

    Kernels can be replaced inside torch without changing any Python name.

    Raises:
        IntegrityError: a reference is wrong.
    """
    for name, call in _KNOWN_ANSWERS.items():
        answer = OPS[name].reference(*(_tensor(part) for part in call.tensors), **call.options)
        if answer.tolist() != call.answer:
            raise IntegrityError(
                f"the float64 reference of {name} itself is wrong: a kernel of torch's was replaced"
            )


class _KnownAnswer:
    """A call whose answer is known: lists of whole numbers, nested as tensors are."""

    def __init__(self, tensors: list[Any], answer: Any, **options: Any) -> None:
        self.tensors, self.answer, self.options = tensors, answer, options


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_IMAGE = [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 10.0]]]]
_SIGNED = [[[[-1.0, -2.0, 3.0], [-4.0, -5.0, -6.0], [7.0, -8.0, 10.0]]]]
_KNOWN_ANSWERS: Mapping[str, _KnownAnswer] = {
    "conv2d": _KnownAnswer([_IMAGE, [[[[1.0, -2.0], [3.0, 5.0]]]], [0.5]], [[[[34.5, 41.5], [55.5, 67.5]]]]),
    "max_pool2d": _KnownAnswer([_IMAGE], [[[[5.0, 6.0], [8.0, 10.0]]]], kernel_size=2, stride=1),
    "avg_pool2d": _KnownAnswer([_IMAGE], [[[[3.0, 4.0], [6.0, 7.25]]]], kernel_size=2, stride=1),
    "conv2d_activation": _KnownAnswer(
        [_IMAGE, [[[[1.0, -2.0], [-3.0, 4.0]]]], [-6.0]], [[[[0.0, 0.0], [0.0, 3.0]]]]
    ),
    "activation_max_pool2d": _KnownAnswer([_SIGNED], [[[[0.0, 3.0], [7.0, 10.0]]]], kernel_size=2, stride=1),
    "activation_avg_pool2d": _KnownAnswer([_SIGNED], [[[[0.0, 0.75], [1.75, 2.5]]]], kernel_size=2, stride=1),
}


def _callables(owner: Owner) -> dict[str, Any]:
    """What of an owner can be called, by name; of a class with what it inherits, which may be shadowed."""
    if isinstance(owner, ModuleType):
        members = vars(owner)
    else:
        members = {}
        for each in reversed(owner.__mro__):
            members |= vars(each)
    return {
        name: member for name, member in members.items() if callable(member) or hasattr(member, "__get__")
    }


def _is_torchs_own(owner: Owner, replacement: Any) -> bool:
    """Whether torch replaced a function of its own, as its compiler does when it is loaded."""
    code = getattr(replacement, "__code__", None)
    return owner not in _OTHERS and code is not None and str(code.co_filename).startswith(_TORCH)


def _owner_name(owner: Owner) -> str:
    if isinstance(owner, ModuleType):
        return owner.__name__
    return "torch.Tensor" if owner is Tensor else f"{owner.__module__}.{owner.__qualname__}"


def _replaced_by(replacement: Any) -> str:
    if replacement is None:
        return " by nothing"
    name = getattr(replacement, "__qualname__", type(replacement).__qualname__)
    module = getattr(replacement, "__module__", None)
    return f" by {name}" + (f" of {module}" if module else "")
