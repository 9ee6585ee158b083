"""Usual mistakes of a backend's author: the first line of the failure says what is wrong, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from conftest import exhaustive
from convbench.registry import Backend, PluginError, verify
from convbench.registry.conformance.report import Outcome, grouped

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_late")

Ops = Mapping[str, Callable[..., Any]]


def conv(make: Callable[..., Any]) -> Ops:
    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
        return make(input, weight, bias, stride, padding, dilation, groups)

    return {"conv2d": conv2d}


def largest(make: Callable[..., Any]) -> Ops:
    def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):  # type: ignore[no-untyped-def]
        return make(input, kernel_size, stride, padding, dilation, ceil_mode)

    return {"max_pool2d": max_pool2d}


def mean(make: Callable[..., Any]) -> Ops:
    def avg_pool2d(  # type: ignore[no-untyped-def]
        input,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        return make(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    return {"avg_pool2d": avg_pool2d}


def turned(option: Any) -> Any:
    return option[::-1] if isinstance(option, tuple) else option


class Differentiated(Function):
    """A convolution whose gradients are those of `seen`, changed by `change`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, options: Any, seen: Any, change: Any
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.call = options, seen, change
        return F.conv2d(x, w, b, *options)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        options, seen, change = ctx.call
        x, w = (each.detach().requires_grad_() for each in ctx.saved_tensors)
        with torch.enable_grad():
            output = seen(x, w, *options)
            rows, columns = map(min, zip(output.shape[2:], grad_output.shape[2:], strict=True))
            common = ..., slice(rows), slice(columns)
            gradients = torch.autograd.grad(output[common], (x, w), grad_output[common])
        changed = change(*gradients, grad_output, options)
        return *changed[:2], changed[2] if ctx.needs_input_grad[2] else None, None, None, None


def backward(
    seen: Callable[..., Tensor] = lambda x, w, *options: F.conv2d(x, w, None, *options),
    change: Callable[..., Any] = lambda gx, gw, g, options: (gx, gw, g.sum((0, 2, 3))),
) -> Ops:
    return conv(lambda x, w, b, *options: Differentiated.apply(x, w, b, options, seen, change))


def unpadded_with_swapped_axes(gx: Tensor, gw: Tensor, g: Tensor, options: Any) -> Any:
    down, across = (options[1],) * 2 if isinstance(options[1], int) else options[1]
    padded = F.pad(gx, (across, across, down, down))
    return padded[..., across : padded.shape[2] - across, down : padded.shape[3] - down], gw, g.sum((0, 2, 3))


class WithoutBackward(Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return F.conv2d(*arguments)


class TooFewGradients(WithoutBackward):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, g


def edited(edit: Callable[[Tensor], Any]) -> Ops:
    """A convolution whose output is edited."""
    return conv(lambda *call: edit(F.conv2d(*call)))


def blank(*index: Any) -> Callable[[Tensor], Tensor]:
    def edit(output: Tensor) -> Tensor:
        mask = torch.ones_like(output)
        mask[index] = 0
        return output * mask

    return edit


def from_number(start: int) -> Callable[[Tensor], Tensor]:
    def edit(output: Tensor) -> Tensor:
        return torch.where(torch.arange(output.numel()).view(output.shape) < start, output, 0)

    return edit


def not_all_written(output: Tensor) -> Tensor:
    memory = torch.empty_like(output)
    return torch.cat([memory[..., :1], output[..., 1:]], -1)


def in_place(x: Tensor, *call: Any) -> Tensor:
    output = F.conv2d(x, *call)
    x.data.mul_(2)
    return output


def padded_with(value: float, x: Tensor, k: Any, s: Any, p: Any, d: Any, c: bool) -> Tensor:
    F.max_pool2d(x, k, s, p, d, c)  # refuses what torch refuses
    down, across = (p, p) if isinstance(p, int) else p
    return F.max_pool2d(F.pad(x, (across, across, down, down), value=value), k, s, 0, d, c)


def mixed_up(x: Tensor, w: Tensor, b: Any, s: Any, p: Any, d: Any, g: int) -> Tensor:
    if x.shape[1] == w.shape[1] * g:
        x = x.unflatten(1, (-1, g)).transpose(1, 2).flatten(1, 2)
    return F.conv2d(x, w, b, s, p, d, g)


def fits(x: Tensor, output: Tensor) -> bool:
    return x.is_contiguous() and x.numel() >= output.numel()


KERNELS = {(3, 3): F.conv2d, (1, 1): F.conv2d, (3, 2): F.conv2d}


def positional(input, weight, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def without_groups(input, weight, bias=None, stride=1, padding=0, dilation=1):  # type: ignore[no-untyped-def]
    return F.conv2d(input, weight, bias, stride, padding, dilation)


def other_names(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    return F.conv2d(x, w, b, stride, padding, dilation, groups)


def other_order(weight, input, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


SWAPPED = "the two numbers of {} are swapped: the first is for rows, the second for columns"
LIKE_TORCH = (
    "it cannot be called as torch's function: write "
    "conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)"
)
RAISES = "it raises {} where torch answers: raise Unsupported for calls that it does not implement"

# mistake -> its ops, and the first line of the first failure
MISTAKES: dict[str, tuple[Ops, str]] = {
    "padding swapped": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, s, turned(p), d, g)),
        SWAPPED.format("padding"),
    ),
    "stride swapped": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, turned(s), p, d, g)),
        SWAPPED.format("stride"),
    ),
    "dilation swapped": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, s, p, turned(d), g)),
        SWAPPED.format("dilation"),
    ),
    "kernel_size swapped": (
        largest(lambda x, k, s, *rest: F.max_pool2d(x, turned(k), k if s is None else s, *rest)),
        SWAPPED.format("kernel_size"),
    ),
    "padding wins a draw": (
        largest(partial(padded_with, -math.inf)),
        "in the gradient of input, that of a window of minus infinities is lost: of equals the first pixel has "
        "it, and no padding",
    ),
    "padding swapped in the backward": (
        backward(lambda x, w, s, p, d, g: F.conv2d(x, w, None, s, turned(p), d, g)),
        "in the gradient of input, " + SWAPPED.format("padding"),
    ),
    "gradient cut off with swapped padding": (
        backward(change=unpadded_with_swapped_axes),
        "in the gradient of input, " + SWAPPED.format("padding"),
    ),
    "stride ignored in the backward": (
        backward(lambda x, w, s, p, d, g: F.conv2d(x, w, None, 1, p, d, g)),
        "in the gradient of input, stride is ignored: step from window to window by it",
    ),
    "kernel flipped in the backward": (
        backward(lambda x, w, *options: F.conv2d(x, w.flip(2, 3), None, *options)),
        "in the gradient of input, the kernel is flipped: torch's convolution does not flip it",
    ),
    "gradient keeps the padding": (
        backward(
            change=lambda gx, gw, g, o: (F.pad(gx, (1, 1, 1, 1)) if o[1] == 1 else gx, gw, g.sum((0, 2, 3)))
        ),
        "in the gradient of input, the padding is not cut off: return the pixels of the image alone",
    ),
    "stride ignored": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, 1, p, d, g)),
        "stride is ignored: step from window to window by it",
    ),
    "stride ignored, in the right shape": (
        conv(lambda *c: F.conv2d(*c[:3], 1, *c[4:])[(..., *map(slice, F.conv2d(*c).shape[2:]))]),
        "stride is ignored: step from window to window by it",
    ),
    "padding ignored": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, s, 0, d, g)),
        "padding is ignored: pad the image on all four sides",
    ),
    "dilation ignored": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, s, p, 1, g)),
        "dilation is ignored: it is the distance between neighbours in a window",
    ),
    "groups ignored": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x[:, : w.shape[1]], w, b, s, p, d, 1)),
        "groups is ignored: the filters of a group see its own channels only",
    ),
    "channels of groups": (
        conv(mixed_up),
        "the channels of groups are mixed up: a group has channels that follow each other",
    ),
    "bias forgotten": (
        conv(lambda x, w, b, *options: F.conv2d(x, w, None, *options)),
        "bias is not added: add bias[:, None, None] to the output",
    ),
    "kernel flipped": (
        conv(lambda x, w, *rest: F.conv2d(x, w.flip(2, 3), *rest)),
        "the kernel is flipped: torch's convolution does not flip it",
    ),
    "kernel transposed": (
        conv(lambda x, w, *rest: F.conv2d(x, w.mT if w.shape[2] == w.shape[3] else w, *rest)),
        "rows and columns of the kernel are swapped: a weight is (filter, channel, row, column)",
    ),
    "loop over the kernel ends early": (
        conv(lambda x, w, *rest: F.conv2d(x, blank(..., -1, slice(None))(w) if w.shape[2] > 1 else w, *rest)),
        "the last row of the kernel is left out: check the bounds of the loop over it",
    ),
    "border": (
        edited(blank(..., -1)),
        "the output is wrong at its last columns only: check the bounds there",
    ),
    "output too small": (
        edited(lambda output: output[..., :-1]),
        "the output has a wrong shape: (size + 2*padding - dilation*(kernel - 1) - 1) // stride + 1 is right",
    ),
    "index overflows": (
        edited(from_number(65536)),
        "the output is wrong from element 65536 on: do indices overflow?",
    ),
    "not all written": (
        edited(not_all_written),
        "the output is not written everywhere: check the bounds of the loops",
    ),
    "half": (
        edited(lambda output: output * 0.5),
        "the output is wrong: it is 0.5 times what is right, throughout",
    ),
    "gradient of a wrong shape": (
        backward(change=lambda gx, gw, g, options: (gx, gw.transpose(0, 1), g.sum((0, 2, 3)))),
        "backward returns a gradient of a wrong shape: it is that of the tensor itself",
    ),
    "gradient missing": (
        backward(change=lambda gx, gw, g, options: (gx, None, g.sum((0, 2, 3)))),
        "no gradient reaches weight: return it from backward, and cut it off by no .detach(), .data or no_grad",
    ),
    "too few gradients": (
        conv(TooFewGradients.apply),
        "backward returns another number of values: one for each argument of forward, None for options",
    ),
    "no backward": (
        conv(WithoutBackward.apply),
        "there is no backward: write one, or let derived_backward make it of the forward",
    ),
    "cut off": (
        edited(Tensor.detach),
        "the output is cut off from the gradient: use torch's operations, an autograd.Function, or "
        "derived_backward",
    ),
    "incoming gradient changed": (
        backward(change=lambda gx, gw, g, options: (gx, gw, g.zero_().sum((0, 2, 3)))),
        "the incoming gradient was changed in place: work on a copy, such as gradient.clone()",
    ),
    "dtype": (
        edited(Tensor.double),
        "the output has another dtype than the input: make it with dtype=input.dtype",
    ),
    "device": (
        edited(lambda output: output.to("meta")),
        "the output is on meta, not on cpu: make it on input.device",
    ),
    "view of the input": (
        conv(
            lambda x, *rest: x.view(-1)[: y.numel()].view(y.shape) if fits(x, y := F.conv2d(x, *rest)) else y
        ),
        "the output shares the memory of input: return a new tensor, such as output.clone()",
    ),
    "input changed": (conv(in_place), "input was changed in place: work on a copy, such as input.clone()"),
    "input changed by an operation of torch": (
        conv(lambda x, *rest: F.conv2d(x.mul_(1), *rest)),
        "an argument is changed in place: work on a copy, such as input.clone()",
    ),
    "ceil_mode ignored": (
        largest(lambda *call: F.max_pool2d(*call[:-1])),
        "ceil_mode is ignored: round the size of the output up",
    ),
    "stride=None": (
        largest(lambda x, k, s, *rest: F.max_pool2d(x, k, s or 1, *rest)),
        "stride=None is taken for 1: it stands for kernel_size",
    ),
    "count_include_pad ignored": (
        mean(lambda x, k, s, p, c, counted, divisor: F.avg_pool2d(x, k, s, p, c, True, divisor)),
        "count_include_pad=False is ignored: divide by the pixels that are no padding",
    ),
    "padding is never counted": (
        mean(lambda x, k, s, p, c, counted, divisor: F.avg_pool2d(x, k, s, p, c, False, divisor)),
        "padding is not counted: count_include_pad=True divides by all pixels of a window",
    ),
    "divisor_override ignored": (
        mean(lambda *call: F.avg_pool2d(*call[:-1])),
        "divisor_override is ignored: divide by it",
    ),
    "padding takes part": (
        largest(partial(padded_with, 0.0)),
        "padding takes part in the maximum: pad with -inf, not with 0",
    ),
    "numpy": (
        edited(lambda output: output.detach().numpy()),
        "the output is of type ndarray, not a tensor: return one torch.Tensor and nothing else",
    ),
    "None": (
        conv(lambda *call: None),
        "the output is None, not a tensor: return one torch.Tensor and nothing else",
    ),
    "tuple": (
        largest(lambda *call: F.max_pool2d_with_indices(*call)),
        "the output is of type tuple, not a tensor: return one torch.Tensor and nothing else",
    ),
    "a parameter is missing": ({"conv2d": without_groups}, LIKE_TORCH),
    "a parameter has another name": ({"conv2d": other_names}, LIKE_TORCH),
    "a parameter has no default": ({"conv2d": positional}, LIKE_TORCH),
    "parameters in another order": ({"conv2d": other_order}, LIKE_TORCH),
    "parameters by name only": ({"conv2d": lambda *, input, weight, **rest: None}, LIKE_TORCH),
    "parameters in another order, and others": (
        {"conv2d": lambda input, weight, bias=None, padding=0, **rest: None},
        LIKE_TORCH,
    ),
    "parameters in another order, and any": (
        {"conv2d": lambda weight, input, *rest, **named: None},
        LIKE_TORCH,
    ),
    "KeyError": (
        conv(lambda x, w, *rest: KERNELS[tuple(w.shape[2:])](x, w, *rest)),
        RAISES.format("KeyError"),
    ),
    "TypeError": (
        conv(lambda x, w, b, s, p, d, g: F.conv2d(x, w, b, s, p + 0, d, g)),
        RAISES.format("TypeError"),
    ),
    "op misspelt": (
        {"conv_2d": F.conv2d},
        "it offers an unknown op 'conv_2d'; did you mean 'conv2d'? available: activation_avg_pool2d, "
        "activation_max_pool2d, avg_pool2d, conv2d, conv2d_activation, conv2d_activation_avg_pool2d, "
        "conv2d_activation_max_pool2d, max_pool2d, sequential",
    ),
    "random": (
        edited(lambda output: output + torch.rand_like(output) * 1e-3),
        "two runs on the same data differ: sum in a fixed order, or declare deterministic=False",
    ),
}


def first_lines(ops: Ops, **options: Any) -> list[tuple[str, Outcome]]:
    """What `convbench verify` prints first of each failure, the largest group first."""
    once = ops is not MISTAKES["random"][0]
    report = verify(Backend("mine", "", lambda: ops, **options), generated=0, once=once)
    groups = sorted(grouped(report.failures), key=len, reverse=True)
    return [(group[0].cause or group[0].message, group[0]) for group in groups]


@pytest.mark.parametrize(
    "mistake", [exhaustive(name) if at % 3 else name for at, name in enumerate(MISTAKES)]
)
def test_the_first_line_says_what_is_wrong_and_what_to_do(mistake: str) -> None:
    ops, expected = MISTAKES[mistake]
    (line, _), *others = first_lines(ops)
    assert line == expected
    assert len(others) <= 4, others


def test_an_answer_where_torch_raises_is_one_failure_that_says_what_torch_raises() -> None:
    def lenient(*call: Any) -> Tensor:
        try:
            return F.conv2d(*call)
        except RuntimeError:
            return torch.zeros(())

    ((line, _),) = first_lines(conv(lenient))
    assert line.startswith(
        "an answer was given where torch raises RuntimeError: Given groups=1, weight of size "
    )
    assert line.endswith("; raise an exception as well")


def test_an_exception_says_where_it_was_raised() -> None:
    (_, outcome), *_ = first_lines(MISTAKES["KeyError"][0])
    assert outcome.message.startswith("KeyError: ")
    assert f"{__file__}, line " in outcome.message


def test_an_op_that_ends_the_process_fails() -> None:
    def exiting(*call: Any) -> Tensor:
        raise SystemExit("no such kernel")

    (line, outcome), (refusal, _) = first_lines(conv(exiting))
    assert line == RAISES.format("SystemExit")
    assert outcome.message.startswith("it called sys.exit('no such kernel') (")
    assert refusal.startswith("it called sys.exit('no such kernel') (")


def test_what_does_not_compile_has_one_short_line() -> None:
    def guarded(x: Tensor, *rest: Any) -> Tensor:
        return x if float(x.sum()) > 1e30 else F.conv2d(x, *rest)

    (line, outcome), *others = first_lines(conv(guarded))
    assert not others
    assert line == "torch.compile does not take it: register it with torch.library, or declare compiles=False"
    assert outcome.message.startswith("torch.compile: Could not guard on data-dependent expression")
    assert outcome.message.endswith(f"({__file__}, line {guarded.__code__.co_firstlineno + 1})")
    assert len(outcome.message) < 400


def test_failures_in_half_precision_only_are_one_group() -> None:
    def coarse(x: Tensor, *rest: Any) -> Tensor:
        return F.conv2d(x, *rest) * (1.25 if x.dtype == torch.float16 else 1)

    (line, outcome), *others = first_lines(conv(coarse), dtypes=("float32", "float16"))
    assert line == "the output is wrong: it is 1.25 times what is right, throughout"
    assert outcome.dtype == "float16"
    assert len(others) <= 1


@pytest.mark.parametrize(
    ("loaded", "words"),
    [
        (
            ["conv2d"],
            "load() must return a mapping of op names to callables, such as {'conv2d': conv2d}, not ['conv2d']",
        ),
        (None, "not None"),
        (
            {"conv2d": "my_conv"},
            "load() must return a mapping of op names to callables; it has 'conv2d': 'my_conv'",
        ),
        ({F.conv2d: "conv2d"}, "it has <built-in"),
    ],
)
def test_what_load_returned_is_named(loaded: Any, words: str) -> None:
    with pytest.raises(PluginError) as raised:
        Backend("mine", "", lambda: loaded).ops  # noqa: B018 - it is loaded here
    assert str(raised.value).startswith("backend 'mine': ")
    assert words in str(raised.value)


def test_an_output_that_lacks_a_column_is_not_blamed_on_other_mistakes() -> None:
    lines = [line for line, _ in first_lines(edited(lambda output: output[..., 1:]))]
    assert [line.partition(":")[0] for line in lines] == ["the output has a wrong shape"]
