"""Detects plugins that replace functions on which verification and timing rest.

A plugin runs in the process that verifies it. It must not replace functions of torch, the clock or convbench: the
reference could then return the plugin's own answer, and the clock any time. So the originals are recorded
before any plugin is loaded, and compared again before every conclusion.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from convbench.registry.integrity import fingerprint
from convbench.registry.integrity.fingerprint import Change, loaded, private_copy
from convbench.registry.integrity.foundations import ROOMS, foundations
from convbench.registry.ops.contract import OPS

_PRIVATE: Any = private_copy(fingerprint)
# functions from there wrap others: the compiler's where it is loaded, the optimizers' where one is made
_WRAPPERS = tuple(
    os.path.join(os.path.dirname(torch.__file__), part)
    for part in ("_dynamo/", "_compile.py", "optim/optimizer.py")
)

# functions of torch's dispatcher that layers, losses, optimizers and evaluations call
_TRAINED_WITH = """
_adaptive_avg_pool2d _adaptive_avg_pool2d_backward _convolution _foreach_add_ _log_softmax
_log_softmax_backward_data _softmax _softmax_backward_data _to_copy _unsafe_view add add_ addmm argmax
as_strided avg_pool2d avg_pool2d_backward batch_norm bernoulli_ bmm cat clone col2im constant_pad_nd conv2d
convolution convolution_backward copy_ cross_entropy_loss detach div div_ dropout empty empty_like
empty_strided eq expand fill_ flatten gelu gelu_backward hardsigmoid hardsigmoid_backward hardswish_
hardswish_backward im2col index index_put index_select leaky_relu linear masked_fill matmul max_pool2d
max_pool2d_with_indices max_pool2d_with_indices_backward mean mkldnn_convolution mkldnn_linear mm mul mul_
native_batch_norm native_batch_norm_backward native_dropout native_layer_norm native_layer_norm_backward ne
new_zeros nll_loss_backward nll_loss_forward nll_loss_nd ones_like pad permute relu relu_ reshape select
select_backward sigmoid sigmoid_backward silu silu_ silu_backward slice slice_backward split squeeze sub
sub_ sum t tanh tanh_backward threshold_backward transpose unsqueeze view where zero_ zeros zeros_like
"""


class IntegrityError(Exception):
    """A backend did what no backend may do; the text says what."""


class Originals:
    """Functions, classes and constants, as they are when this is made."""

    def __init__(self) -> None:
        own = [module.__name__ for module in loaded(ROOMS)]
        before = _PRIVATE.Fingerprint(foundations(), own, _WRAPPERS)
        self.changes: Callable[[], list[Change]] = before.changes
        self._kernels = _kernels()

    def replaced(self) -> list[str]:
        """A sentence for each that was replaced."""
        return [change.text for change in self.changes()]

    def check(self) -> None:
        """Raise IntegrityError where one was replaced, or where the references are wrong."""
        replaced = self.replaced()
        if replaced:
            more = f", and {len(replaced) - 1} more were" if len(replaced) > 1 else ""
            raise IntegrityError(f"{replaced[0]}{more}")
        try:
            check_references()
        except IntegrityError:
            self.check_kernels()  # which says more
            raise

    def check_kernels(self) -> None:
        """Raise IntegrityError where torch's dispatcher has another kernel for what networks are trained with.

        No name of Python changes with it, and references need not use it. This takes some 5 ms.
        """
        now = _kernels()
        for name, kernels in self._kernels.items():
            if now.get(name) != kernels:
                raise IntegrityError(f"a kernel of {name} was replaced")


@cache
def originals() -> Originals:
    """What no plugin may replace, as it is at the first call."""
    return Originals()


def _kernels() -> dict[str, str]:
    """The kernels of functions that networks are trained with, by device and purpose, and where they come from."""
    return {name: torch._C._dispatch_dump(name) for name in _names_of_kernels()}


@cache
def _names_of_kernels() -> tuple[str, ...]:
    wanted = {f"aten::{name}" for name in _TRAINED_WITH.split()}
    return tuple(name for name in torch._C._dispatch_get_all_op_names() if name.partition(".")[0] in wanted)


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
    "conv2d_activation_max_pool2d": _KnownAnswer(
        [_IMAGE, [[[[1.0, -2.0], [3.0, 5.0]]]], [0.5]], [[[[67.5]]]]
    ),
    "conv2d_activation_avg_pool2d": _KnownAnswer(
        [_IMAGE, [[[[1.0, -2.0], [3.0, 5.0]]]], [0.5]], [[[[49.75]]]]
    ),
    "sequential": _KnownAnswer(
        [_IMAGE, [[[[1.0, -2.0], [3.0, 5.0]]]], [0.5], [[2.0], [-1.0]], [1.0, 0.5]],
        [[136.0, 0.0]],
        layers=(
            ("conv2d_activation_max_pool2d", 1, 0, 1, 1, "relu", 2),
            ("flatten",),
            ("linear", "relu"),
        ),
    ),
    "activation_max_pool2d": _KnownAnswer([_SIGNED], [[[[0.0, 3.0], [7.0, 10.0]]]], kernel_size=2, stride=1),
    "activation_avg_pool2d": _KnownAnswer([_SIGNED], [[[[0.0, 0.75], [1.75, 2.5]]]], kernel_size=2, stride=1),
}
