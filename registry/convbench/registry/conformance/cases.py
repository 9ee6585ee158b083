"""Cases to verify: op calls as shapes, options and memory layouts, from which fresh random arguments are made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convbench.registry.ops.activations import ACTIVATIONS
from convbench.registry.ops.contract import OPS


@dataclass(frozen=True)
class Case:
    """One call of one op, and what is asked of it. The text of a case is the call it stands for.

    Attributes:
        op: by name.
        shapes: of its tensors, by name.
        options: its other arguments.
        layout: how its input lies in memory.
        weight_layout: how its weight does.
        grad_output_layout: how the gradient of its output does.
        needs: the tensors that need a gradient; every one when None. With none, it is also called under `no_grad`.
        order: 2 asks for the gradients of the gradients too.
        special: the input holds an infinity and a NaN, that of max pooling also a corner of minus infinities.
    """

    op: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    options: tuple[tuple[str, Any], ...] = ()
    layout: Layout = "contiguous"
    weight_layout: Layout = "contiguous"
    grad_output_layout: Layout = "contiguous"
    needs: tuple[str, ...] | None = None
    order: int = 1
    special: bool = False

    def __str__(self) -> str:
        parts = [f"{name}={shape}" for name, shape in self.shapes]
        parts += [f"{name}={value!r}" for name, value in self.options]
        layouts = (
            (self.layout, "input"),
            (self.weight_layout, "weight"),
            (self.grad_output_layout, "incoming gradient"),
        )
        notes = [f"{layout} {name}" for layout, name in layouts if layout != "contiguous"]
        if self.needs is not None:
            notes.append(f"gradients of {' and '.join(self.needs) or 'nothing'} only")
        notes += ["second order"] if self.order == 2 else []
        notes += ["inf and nan in the input"] if self.special else []
        return ", ".join([f"{self.op}({', '.join(parts)})", *notes])

    def arguments(self, dtype: torch.dtype, device: torch.device, seed: int) -> dict[str, Any]:
        """Random normal tensors of these shapes, leaves without gradient, and the other arguments."""
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers for every device
        layouts: dict[str, Layout] = {"input": self.layout, "weight": self.weight_layout}
        arguments: dict[str, Any] = {}
        for name, shape in self.shapes:
            values = torch.randn(shape, generator=generator, dtype=_drawn(dtype))
            if OPS[self.op].chain and len(shape) > 1 and name != "input":
                values /= math.sqrt(max(1, math.prod(shape[1:])))  # numbers stay as large from layer to layer
            if name == "input" and self.special:
                if self.op == "max_pool2d":
                    values[:1, :, :3, :3] = -math.inf
                places = torch.randperm(values.numel(), generator=generator)[:2]
                values.view(-1)[places] = torch.tensor([math.inf, math.nan], dtype=values.dtype)[
                    : len(places)
                ]
            arguments[name] = laid_out(values.to(device, dtype), layouts.get(name, "contiguous"))
        return arguments | dict(self.options)

    def grad_output(self, shape: torch.Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
        """The gradient of an output of that shape: random, and in the layout of the case."""
        generator = torch.Generator().manual_seed(seed + 7919)
        values = torch.randn(shape, generator=generator, dtype=_drawn(dtype))
        return laid_out(values.to(device, dtype), self.grad_output_layout)


def _drawn(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers are drawn that are then converted: float32 is four times as fast as float64."""
    return torch.promote_types(dtype, torch.float32)


def conv2d(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    bias: bool = True,
    **rest: Any,
) -> Case:
    """A convolution of these shapes; what is no option of the op is a field of the case."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("input", input), ("weight", weight)]
    if bias:
        shapes.append(("bias", weight[:1]))
    return _call("conv2d", tuple(shapes), rest)


def pool(op: str, input: tuple[int, ...], **rest: Any) -> Case:
    """A pooling of this shape; what is no option of the op is a field of the case."""
    return _call(op, (("input", input),), rest)


def fused(op: str, like: Case, activation: str) -> Case:
    """A case of a fused op: what `like` is of the one without its activation."""
    return replace(like, op=op, options=(*like.options, ("activation", activation)))


def stage(op: str, like: Case, activation: str, kernel_size: Any, pool_stride: Any = None) -> Case:
    """A case of a fused op that ends with a pooling: the convolution is that of `like`."""
    case = fused(op, like, activation)
    window = ("kernel_size", kernel_size), ("pool_stride", pool_stride)
    return replace(case, options=(*case.options, *window))


def chain(
    input: tuple[int, ...],
    *layers: tuple[tuple[int, ...] | None, tuple[Any, ...]],
    bias: bool = True,
    **rest: Any,
) -> Case:
    """A case of `sequential`, of layers with the shapes of their weights; `rest` are fields of the case."""
    weights = [weight for weight, _ in layers if weight is not None]
    shapes: list[tuple[str, tuple[int, ...]]] = [("input", input)]
    for number, weight in enumerate(weights):
        shapes.append((f"weight{number}", weight))
        if bias:
            shapes.append((f"bias{number}", weight[:1]))
    options = (("layers", tuple(layer for _, layer in layers)),)
    return Case("sequential", tuple(shapes), options, **rest)


def has_output(case: Case) -> bool:
    """Whether torch takes the call: a pooling's window may be larger than what comes out of the convolution."""
    return output_shape(case) is not None


def output_shape(case: Case) -> torch.Size | None:
    """Of what comes out; None where torch does not take the call."""
    try:
        return OPS[case.op].on_meta(case.arguments(torch.float32, torch.device("meta"), 0))[1].shape
    except RuntimeError:
        return None


def _call(op: str, shapes: tuple[tuple[str, tuple[int, ...]], ...], rest: Mapping[str, Any]) -> Case:
    parameters = OPS[op].signature.parameters
    options = tuple((name, value) for name, value in rest.items() if name in parameters)
    return Case(op, shapes, options, **{name: rest[name] for name in rest if name not in parameters})


def conformance_cases(op: str) -> list[Case]:
    """The calls of one op that every backend is held against, or says that it does not support."""
    if op in _CASES:
        return list(_CASES[op]())
    base = OPS[op].base
    assert base is not None
    return list(_fused_cases(op, base.name) if OPS[op].pooled is None else _staged_cases(op))


def refused_calls(op: str) -> list[Case]:
    """Calls that torch refuses, and so must a backend."""
    base = OPS[op].base
    if op in _REFUSED or base is None:
        return list(_REFUSED[op])
    plain = next(_CASES[base.name]())
    refused = [fused(op, case, "relu") for case in _REFUSED[base.name]]
    if OPS[op].pooled is None:
        return [fused(op, plain, "none"), *refused]
    windows = ((0, None), (2, 0), (6, None))  # of no pixel, of no step, and larger than the image
    return [*(stage(op, plain, "relu", *window) for window in windows), *refused]


def model_cases(model: nn.Module, *inputs: Tensor) -> list[Case]:
    """The distinct calls of contract ops in one forward pass of a plain torch model, in order.

    The pass runs under `no_grad` in the model's own mode; what the calls are given is replaced by random
    numbers of the same shapes when they are verified.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        model(*inputs)
    return list(recorder.cases)


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.cases: dict[Case, None] = {}
        self._ops = {function: op for op in OPS.values() for function in op.functions}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self._ops:
            op = self._ops[func]
            call = {name: value for name, value in (kwargs or {}).items() if name != "return_indices"}
            self.cases[case_of(op.name, op.bind(args, call))] = None
        return func(*args, **(kwargs or {}))


def case_of(op: str, arguments: Mapping[str, Any]) -> Case:
    """The case that a call of an op stands for, from all its arguments by name."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    left_out = OPS[op].tensors if OPS[op].chain else tensors
    options = {
        name: _hashable(value)
        for name, value in arguments.items()
        if name not in tensors and name not in left_out
    }
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    weight = tensors.get("weight")
    return Case(
        op,
        shapes,
        tuple(options.items()),
        layout=_layout(tensors["input"]),
        weight_layout="contiguous" if weight is None else _layout(weight),
    )


def _layout(tensor: Tensor) -> Layout:
    last = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return "channels_last" if last else "contiguous"


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, torch.Size)) else value


def _conv2d_cases() -> Iterator[Case]:
    yield conv2d((2, 2, 4, 5), (4, 1, 3, 3), padding=1, groups=2)
    yield conv2d((2, 3, 8, 8), (4, 3, 3, 3))
    yield conv2d((32, 1, 28, 28), (6, 1, 5, 5), padding=2)  # LeNet's first
    for stride, padding, dilation in itertools.product((1, 2, (3, 2)), (0, 1, (2, 1)), (1, (2, 3))):
        yield conv2d((2, 3, 13, 11), (4, 3, 3, 2), stride=stride, padding=padding, dilation=dilation)
    for size, padding in itertools.product(
        ((13, 11), (12, 10)), (0, 1, (2, 1))
    ):  # to the last pixel, and short of it
        yield conv2d((2, 3, *size), (4, 3, 3, 3), stride=2, padding=padding, dilation=2)
    for groups in (1, 2, 6):
        for bias in (True, False):
            yield conv2d((2, 6, 7, 7), (12, 6 // groups, 3, 3), bias=bias, padding=1, groups=groups)
    for kernel in ((1, 1), (1, 5), (5, 1), (2, 2), (4, 3), (7, 7)):
        yield conv2d((2, 2, 7, 9), (3, 2, *kernel))
        yield conv2d((2, 2, 7, 9), (3, 2, *kernel), padding="same", bias=False)
    yield conv2d((2, 3, 7, 9), (4, 3, 3, 3), padding="valid", stride=2)
    yield conv2d((2, 3, 9, 9), (4, 3, 2, 4), padding="same", dilation=(3, 1))
    yield conv2d((2, 4, 7, 7), (8, 4, 1, 1), stride=2)  # 1x1, as in a residual shortcut
    yield conv2d((1, 1, 1, 1), (1, 1, 1, 1))
    yield conv2d((1, 1, 1, 1), (2, 1, 3, 3), padding=1)
    yield conv2d((1, 2, 2, 3), (1, 2, 2, 3))
    yield conv2d((0, 3, 8, 8), (4, 3, 3, 3), padding=1)  # an empty batch
    yield conv2d((3, 3, 5, 5), (4, 3, 3, 3), padding=3)
    yield conv2d((2, 3, 17, 31), (5, 3, 3, 3), stride=(2, 1))
    for layout in ("channels_last", "strided", "transposed", "expanded"):
        yield conv2d((2, 3, 8, 6), (4, 3, 3, 3), padding=1, layout=layout)
        yield conv2d((2, 3, 8, 6), (4, 3, 3, 3), padding=1, weight_layout=layout)
    for layout in ("channels_last", "strided", "scalar"):
        yield conv2d((2, 4, 8, 6), (4, 2, 3, 3), padding=1, groups=2, grad_output_layout=layout)
    for needs in (("input",), ("weight",), ("bias",), ("input", "bias"), ("weight", "bias"), ()):
        yield conv2d((2, 3, 6, 7), (4, 3, 3, 3), padding=1, needs=needs)
    yield conv2d((2, 4, 7, 6), (4, 4, 3, 3), order=2)
    yield conv2d((2, 4, 7, 6), (4, 4, 3, 3), stride=2, padding=1, order=2)
    yield conv2d((2, 4, 7, 6), (4, 2, 3, 3), padding=(2, 1), dilation=2, groups=2, order=2)
    yield conv2d((2, 3, 9, 8), (4, 3, 3, 3), padding=1, special=True)
    yield conv2d((1, 512, 4, 4), (16, 512, 3, 3), padding=1)  # sums so long that coarse products could hide


def _pool_cases(op: str) -> Iterator[Case]:
    yield pool(op, (2, 2, 4, 5), kernel_size=2, stride=2)
    yield pool(op, (2, 3, 8, 8), kernel_size=2)
    yield pool(op, (2, 3, 8, 8), kernel_size=2, stride=2)
    for kernel, stride, padding in (
        (3, 2, 1),
        (3, 1, 1),
        ((2, 3), (2, 3), (0, 1)),
        ((3, 1), (1, 2), (1, 0)),
        (2, 3, 0),
        (5, 2, 2),
    ):
        for ceil_mode in (False, True):
            yield pool(
                op,
                (2, 3, 9, 7),
                kernel_size=kernel,
                stride=stride,
                padding=padding,
                ceil_mode=ceil_mode,
            )
    yield pool(op, (1, 1, 1, 1), kernel_size=1)
    yield pool(op, (3, 2, 4, 4), kernel_size=4)
    yield pool(op, (0, 2, 4, 4), kernel_size=2)
    for layout in ("channels_last", "strided", "transposed", "expanded"):
        yield pool(op, (2, 3, 8, 6), kernel_size=2, stride=1, layout=layout)
    for layout in ("channels_last", "strided", "scalar"):
        yield pool(op, (2, 3, 8, 6), kernel_size=3, stride=2, padding=1, grad_output_layout=layout)
    yield pool(op, (2, 3, 8, 6), kernel_size=3, stride=2, needs=())
    yield pool(op, (2, 3, 8, 6), kernel_size=3, stride=2, padding=1, order=2)
    yield pool(op, (2, 3, 8, 6), kernel_size=3, stride=2, padding=1, special=True)


def _max_pool2d_cases() -> Iterator[Case]:
    yield from _pool_cases("max_pool2d")
    yield pool("max_pool2d", (2, 3, 9, 9), kernel_size=3, stride=1, padding=1, dilation=2)
    yield pool("max_pool2d", (2, 3, 9, 8), kernel_size=(2, 3), dilation=(3, 1), ceil_mode=True)
    for padding, ceil_mode in itertools.product((0, 1), (False, True)):
        yield pool(
            "max_pool2d",
            (2, 3, 9, 8),
            kernel_size=3,
            stride=2,
            padding=padding,
            dilation=2,
            ceil_mode=ceil_mode,
        )


def _avg_pool2d_cases() -> Iterator[Case]:
    yield from _pool_cases("avg_pool2d")
    for ceil_mode in (False, True):
        yield pool(
            "avg_pool2d",
            (2, 3, 9, 7),
            kernel_size=3,
            stride=2,
            padding=1,
            ceil_mode=ceil_mode,
            count_include_pad=False,
        )
    yield pool("avg_pool2d", (2, 3, 9, 7), kernel_size=3, padding=1, divisor_override=5)


def _fused_cases(op: str, base: str) -> Iterator[Case]:
    """The first case with every activation, the others with one after the other."""
    first, *others = _CASES[base]()
    yield from (fused(op, first, activation) for activation in ACTIVATIONS)
    for like, activation in zip(others, itertools.cycle(ACTIVATIONS), strict=False):
        yield fused(op, like, activation)
    yield replace(fused(op, first, "tanh"), order=2)


def _staged_cases(op: str) -> Iterator[Case]:
    """Those of a convolution, with one activation and one pooling window after the other."""
    windows: Iterator[tuple[Any, Any]] = itertools.cycle(
        ((2, None), (2, 2), (3, 2), ((1, 2), None), (2, (1, 3)))
    )
    first, *others = _conv2d_cases()
    yield from (stage(op, first, activation, 2) for activation in ACTIVATIONS)
    for like, activation in zip(others, itertools.cycle(ACTIVATIONS), strict=False):
        case = stage(op, like, activation, *next(windows))
        if has_output(case):
            yield case
    yield replace(stage(op, first, "tanh", 2), order=2)


_MEANS = ("conv2d_activation_avg_pool2d", 1, 1, 1, 1, "sigmoid", 2)
_MAXIMA = ("conv2d_activation_max_pool2d", 1, "same", 1, 1, "relu", 2, 2)
_FLATTEN: tuple[None, tuple[str]] = (None, ("flatten",))


def _chain_cases() -> Iterator[Case]:
    """Stages, linear layers, and both, of batches that are small, empty, or large enough for vectors."""
    linear = (_FLATTEN, ((7, 36), ("linear", "tanh")), ((3, 7), ("linear", "none")))
    for images in (2, 20):
        yield chain((images, 2, 6, 7), ((4, 2, 3, 3), _MEANS), *linear)
    for images in (1, 16, 0, 33):
        yield chain((images, 2, 13, 12), ((4, 2, 3, 3), _MEANS), ((4, 4, 3, 3), _MAXIMA), *linear)
    for activation in ACTIVATIONS:
        for pooling in ("max_pool2d", "avg_pool2d"):
            first = (f"conv2d_activation_{pooling}", 1, 2, 1, 1, activation, 2, 2)
            second = (f"conv2d_activation_{pooling}", (1, 1), (0, 1), (1, 2), 2, activation, (2, 1), None)
            yield chain((17, 1, 12, 12), ((6, 1, 5, 5), first), ((8, 3, 3, 2), second))
        last = _FLATTEN, ((33, 72), ("linear", activation)), ((9, 33), ("linear", activation))
        yield chain((20, 2, 12, 6), ((4, 2, 3, 3), _MEANS), *last, bias=False)
    lenet = ((6, 1, 5, 5), (*_MEANS[:2], 2, *_MEANS[3:])), ((16, 6, 5, 5), (*_MEANS[:2], 0, *_MEANS[3:]))
    yield chain(
        (32, 1, 28, 28),
        *lenet,
        _FLATTEN,
        ((120, 400), ("linear", "sigmoid")),
        ((10, 120), ("linear", "none")),
    )
    for layout in ("channels_last", "strided", "transposed", "expanded"):
        yield chain((20, 2, 6, 6), ((4, 2, 3, 3), _MEANS), *linear, layout=layout)
    for layout in ("strided", "transposed", "scalar"):
        yield chain((20, 2, 6, 6), ((4, 2, 3, 3), _MAXIMA), *linear, grad_output_layout=layout)
    for needs in (("input",), ("weight0", "bias1"), ("weight2", "bias2"), ()):
        yield chain((20, 2, 6, 6), ((4, 2, 3, 3), _MAXIMA), *linear, needs=needs)
    two = (((4, 2, 3, 3), _MEANS), ((4, 4, 3, 3), _MEANS))
    yield chain((20, 2, 12, 9), *two, grad_output_layout="channels_last")
    yield chain((20, 2, 12, 9), *two, special=True)
    yield chain((20, 2, 6, 7), ((4, 2, 3, 3), _MEANS), *linear, order=2)


_CASES: Mapping[str, Callable[[], Iterator[Case]]] = {
    "conv2d": _conv2d_cases,
    "max_pool2d": _max_pool2d_cases,
    "avg_pool2d": _avg_pool2d_cases,
    "sequential": _chain_cases,
}
_REFUSED: Mapping[str, tuple[Case, ...]] = {
    "conv2d": (
        conv2d((2, 3, 8, 8), (4, 2, 3, 3)),  # channels that do not match
        conv2d((2, 3, 8, 8), (4, 3, 3, 3), groups=2),
        conv2d((2, 4, 8, 8), (3, 2, 3, 3), groups=2),
        conv2d((2, 3, 2, 2), (4, 3, 3, 3)),  # a kernel larger than the image
        conv2d((2, 3, 8, 8), (4, 3, 3, 3), stride=0),
        conv2d((2, 3, 8, 8), (4, 3, 3, 3), dilation=0),
        conv2d((2, 3, 8, 8), (4, 3, 3, 3), padding=-1),
        conv2d((2, 3, 8, 8), (4, 3, 3, 3), padding="same", stride=2),
        conv2d((2, 3, 8, 8), (4, 3, 3, 3), padding="full"),
    ),
    "max_pool2d": (
        pool("max_pool2d", (2, 3, 8, 8), kernel_size=0),
        pool("max_pool2d", (2, 3, 8, 8), kernel_size=2, stride=0),
        pool("max_pool2d", (2, 3, 8, 8), kernel_size=2, padding=2),
        pool("max_pool2d", (2, 3, 2, 2), kernel_size=3),
    ),
    "avg_pool2d": (
        pool("avg_pool2d", (2, 3, 8, 8), kernel_size=0),
        pool("avg_pool2d", (2, 3, 8, 8), kernel_size=2, stride=0),
        pool("avg_pool2d", (2, 3, 8, 8), kernel_size=2, padding=2),
        pool("avg_pool2d", (2, 3, 2, 2), kernel_size=3),
        pool("avg_pool2d", (2, 3, 8, 8), kernel_size=2, divisor_override=0),
    ),
    "sequential": tuple(
        replace(next(_chain_cases()), options=(("layers", layers),))
        for layers in (
            (_MEANS, ("flatten",), ("linear", "relu")),  # too few for its parameters
            (_MEANS, ("flatten",), ("linear", "relu"), ("linear", "relu"), ("linear", "none")),
            (_MEANS, ("flatten",), ("linear", "relu"), ("linear", "gelu")),
            ((*_MEANS[:-1], 9), ("flatten",), ("linear", "relu"), ("linear", "none")),
            (_MEANS, ("linear", "relu"), ("linear", "none")),
        )
    ),
}


Layout = Literal["contiguous", "channels_last", "strided", "transposed", "expanded", "scalar"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
REPEATING: tuple[Layout, ...] = ("expanded", "scalar")  # values that repeat, and rounding errors with them


def laid_out(values: Tensor, layout: Layout) -> Tensor:
    """The values (N, C, H, W) in that layout; the two that repeat take some of them only.

    - `strided`: every other column of a wider tensor, whose gaps hold NaN, so that reading past the strides shows;
    - `transposed`: columns before rows in memory;
    - `expanded`: the first of the first dimension, repeated without a copy;
    - `scalar`: a single 1, repeated without a copy, as the gradient that `sum()` hands back.
    """
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), float("nan"))
        view = wide[..., ::2]
        view.copy_(values)
        return view
    if layout == "transposed":
        return values.transpose(-2, -1).contiguous().transpose(-2, -1)
    if layout == "expanded":
        return values[:1].expand_as(values) if len(values) else values
    if layout == "scalar":
        return values.new_ones(()).expand_as(values)
    return values
