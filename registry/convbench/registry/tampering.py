"""Has a plugin replaced the functions that verification and measurements rest on?

A plugin lives in the process that judges it. What it may not do there is to put functions of its own in the
place of torch's, the clock's or convbench's: the reference would be the plugin's own answer, or the time its own
invention. So the originals are noted while no plugin is loaded, and looked at again whenever something is
concluded.
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

from convbench.registry.ops import OPS

Owner = ModuleType | type
_TORCH = os.path.dirname(torch.__file__) + os.sep
_OTHERS: tuple[Owner, ...] = (builtins, math, time)  # not torch's to change

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


class Misconduct(Exception):
    """What no backend may do, whatever it answers; the text says what was done."""


class Originals:
    """The functions and classes of some modules and classes, as they are when this is made."""

    def __init__(self, owners: Iterable[Owner] = FOUNDATIONS) -> None:
        self._of = [(owner, _callables(owner)) for owner in owners]

    def replaced(self) -> list[str]:
        """A sentence for each one that something else has taken the place of."""
        return [
            f"{_name(owner)}.{name} was replaced{_by(now.get(name))}"
            for owner, originals in self._of
            for now in (_callables(owner),)
            for name, original in originals.items()
            if now.get(name) is not original and not _torchs_own(owner, now.get(name))
        ]

    def check(self) -> None:
        """Raise Misconduct where one was replaced, or where the references are wrong."""
        replaced = self.replaced()
        if replaced:
            more = f", and {len(replaced) - 1} more were" if len(replaced) > 1 else ""
            raise Misconduct(f"{replaced[0]}{more}")
        check_references()


def check_references() -> None:
    """Hold the float64 references themselves against sums in Python's own numbers, exactly.

    Kernels can be replaced inside torch, where no name of Python changes.

    Raises:
        Misconduct: a reference is wrong.
    """
    for name, call in _KNOWN.items():
        answer = OPS[name].reference(*(_tensor(part) for part in call.tensors), **call.options)
        if answer.tolist() != call.answer:
            raise Misconduct(
                f"the float64 reference of {name} itself is wrong: a kernel of torch's was replaced"
            )


class _Known:
    """A call whose answer is known: lists of whole numbers, nested as tensors are."""

    def __init__(self, tensors: list[Any], answer: Any, **options: Any) -> None:
        self.tensors, self.answer, self.options = tensors, answer, options


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_IMAGE = [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 10.0]]]]
_SIGNED = [[[[-1.0, -2.0, 3.0], [-4.0, -5.0, -6.0], [7.0, -8.0, 10.0]]]]
_KNOWN: Mapping[str, _Known] = {
    "conv2d": _Known([_IMAGE, [[[[1.0, -2.0], [3.0, 5.0]]]], [0.5]], [[[[34.5, 41.5], [55.5, 67.5]]]]),
    "max_pool2d": _Known([_IMAGE], [[[[5.0, 6.0], [8.0, 10.0]]]], kernel_size=2, stride=1),
    "avg_pool2d": _Known([_IMAGE], [[[[3.0, 4.0], [6.0, 7.25]]]], kernel_size=2, stride=1),
    "conv2d_activation": _Known(
        [_IMAGE, [[[[1.0, -2.0], [-3.0, 4.0]]]], [-6.0]], [[[[0.0, 0.0], [0.0, 3.0]]]]
    ),
    "activation_max_pool2d": _Known([_SIGNED], [[[[0.0, 3.0], [7.0, 10.0]]]], kernel_size=2, stride=1),
    "activation_avg_pool2d": _Known([_SIGNED], [[[[0.0, 0.75], [1.75, 2.5]]]], kernel_size=2, stride=1),
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


def _torchs_own(owner: Owner, replacement: Any) -> bool:
    """Whether torch replaced a function of its own, as its compiler does when it is loaded."""
    code = getattr(replacement, "__code__", None)
    return owner not in _OTHERS and code is not None and str(code.co_filename).startswith(_TORCH)


def _name(owner: Owner) -> str:
    if isinstance(owner, ModuleType):
        return owner.__name__
    return "torch.Tensor" if owner is Tensor else f"{owner.__module__}.{owner.__qualname__}"


def _by(replacement: Any) -> str:
    if replacement is None:
        return " by nothing"
    name = getattr(replacement, "__qualname__", type(replacement).__qualname__)
    module = getattr(replacement, "__module__", None)
    return f" by {name}" + (f" of {module}" if module else "")
