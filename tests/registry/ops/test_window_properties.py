"""Windows of any convolution and pooling: torch's shapes, torch's numbers, and its refusals."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from convbench.registry import Unsupported
from convbench.registry.ops.window import conv2d_window, pool2d_window
from fuzzing import fuzzed

option = st.one_of(
    st.integers(-1, 4), st.tuples(st.integers(0, 4), st.integers(0, 4)), st.tuples(st.integers(1, 3))
)
unusual = st.sampled_from(
    [2**31, 2**62, 2**64, True, 1.0, "2", "same", "valid", "full", (1, 2, 3), [], None, [2, 1]]
)
any_option = option | unusual
any_padding = option | st.sampled_from(
    ["same", "valid", "full", (1, 2, 3), [], None, True]
)  # memory ends larger ones
# of tensors without images, channels or pixels torch itself has wrong shapes, and it checks less
sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def answer(call: Any) -> Any:
    """What a call returns, or that it is refused; `Unsupported` is left to torch, whatever that says."""
    try:
        return call()
    except Unsupported:
        return Unsupported
    except Exception:  # noqa: BLE001 - any exception is a refusal
        return None


def overflows(dilation: Any, kernel: tuple[int, ...]) -> bool:
    """Whether the reach of a kernel is beyond 64 bits."""
    gaps = dilation if isinstance(dilation, (tuple, list)) else [dilation]
    numbers = [gap for gap in gaps if isinstance(gap, int)]
    return any(abs(gap) * size >= 1 << 62 for gap in numbers for size in kernel)


@fuzzed(
    200,
    3000,
    input=sizes,
    weight=sizes,
    bias=st.sampled_from([None, None, 0, 1, 4]),
    stride=any_option,
    padding=any_padding,
    dilation=any_option,
    groups=st.sampled_from([1, 1, 2, 0, -1, 3]),
    fits=st.booleans(),
)
def test_a_convolution_has_torchs_shape_or_is_refused_as_by_torch(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int, fits: bool
) -> None:
    if fits and groups > 0:
        input, weight = (input[0], weight[1] * groups, *input[2:]), (weight[0] * groups, *weight[1:])
        bias = None if bias is None else weight[0]
    shapes = (input, weight, bias)
    call = (
        *(None if shape is None else torch.zeros(shape) for shape in shapes),
        stride,
        padding,
        dilation,
        groups,
    )
    window = answer(lambda: conv2d_window(*call))
    if window is Unsupported:
        return
    output = answer(lambda: F.conv2d(*call))
    if window is None and overflows(dilation, weight[2:]):
        return  # torch computes with what is left of the number, and has an output
    assert (window is None) == (output is None), window
    if window is not None:
        assert (input[0], weight[0], *window.output_size) == tuple(output.shape)


@fuzzed(
    200,
    3000,
    input=sizes,
    kernel_size=any_option,
    stride=any_option,
    padding=option,
    dilation=any_option,
    ceil_mode=st.booleans(),
)
def test_a_pooling_has_torchs_shape_or_is_refused_as_by_torch(
    input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> None:
    image = torch.zeros(input)
    window = answer(lambda: pool2d_window(image, kernel_size, stride, padding, dilation, ceil_mode))
    if window is Unsupported:
        return
    by_torch = answer(lambda: F.max_pool2d(image, kernel_size, stride, padding, dilation, ceil_mode))
    assert (window is None) == (by_torch is None), window
    if window is not None:
        assert (*input[:2], *window.output_size) == tuple(by_torch.shape)
