"""The shared registration of pooling, with kernels that call torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import Backend, Unsupported, verify
from convbench.registry.authoring.conv_op import channels_last
from convbench.registry.authoring.pool_op import PoolKernels, pooling_ops
from convbench.registry.authoring.torch_library import Library

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "sigmoid": F.sigmoid, "tanh": F.tanh}


def laid_out(images: Tensor, last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def positions(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[Tensor, Tensor]:
    """The first row and column of each window, in the image."""
    return torch.arange(size[0])[:, None] * stride[0] - padding[0], torch.arange(size[1]) * stride[
        1
    ] - padding[1]


def pixels(places: Tensor, image: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Places in windows as torch's indices in the image."""
    rows, columns = positions(places.shape[2:], kernel, stride, padding, dilation)
    rows = rows + places.long() // kernel[1] * dilation[0]
    return rows * image[1] + columns + places.long() % kernel[1] * dilation[1]


def maximum(
    input: Tensor, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    input = FUNCTIONS[activation](input) if activation != "none" else input
    ceil = _ceil(input, size, kernel, stride, padding, dilation)
    found, indices = F.max_pool2d(input, kernel, stride, padding, dilation, ceil, return_indices=True)
    rows, columns = positions(size, kernel, stride, padding, dilation)
    row = (indices // input.shape[3] - rows) // dilation[0]
    column = (indices % input.shape[3] - columns) // dilation[1]
    return found.clone(), (row * kernel[1] + column).to(torch.int16)


def _ceil(input: Tensor, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether a window hangs over the padded image."""
    axes = zip(input.shape[2:], size, kernel, stride, padding, dilation, strict=True)
    return any(
        (rows - 1) * step + gap * (k - 1) + 1 > extent + 2 * pad for extent, rows, k, step, pad, gap in axes
    )


def maximum_gradient(grad_output: Tensor, places: Tensor, size: Any, last: bool, *window: Any) -> Tensor:
    gradient = grad_output.new_zeros(*grad_output.shape[:2], size[0] * size[1])
    index = pixels(places, size, *window).flatten(2)
    return laid_out(gradient.scatter_add(2, index, grad_output.flatten(2)).unflatten(2, tuple(size)), last)


def mean(
    input: Tensor, size: Any, kernel: Any, stride: Any, padding: Any, count: bool, divisor: int
) -> Tensor:
    ceil = _ceil(input, size, kernel, stride, padding, (1, 1))
    return F.avg_pool2d(input, kernel, stride, padding, ceil, count, divisor or None).clone()


def mean_gradient(
    grad_output: Tensor,
    size: Any,
    last: bool,
    kernel: Any,
    stride: Any,
    padding: Any,
    count: bool,
    divisor: int,
) -> Tensor:
    image = grad_output.new_zeros(*grad_output.shape[:2], *size)
    ceil = _ceil(image, grad_output.shape[2:], kernel, stride, padding, (1, 1))
    gradient = torch.ops.aten.avg_pool2d_backward(
        grad_output, image, kernel, stride, padding, ceil, count, divisor or None
    )
    return laid_out(gradient, last)


def activated_mean(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *call, activation = options
    return mean(FUNCTIONS[activation](input), *call), input.new_empty(0)


def gradient_at_the_input(grad_output: Tensor, input: Tensor, *options: Any) -> Tensor:
    gradient = gradient_at_the_output(grad_output, FUNCTIONS[options[-1]](input), *options)
    return laid_out(gradient, channels_last(input))


def mean_with_activations(input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    *call, activation = options
    activated = FUNCTIONS[activation](input).contiguous()
    return mean(activated, *call), input.new_empty(0) if activation == "relu" else activated


def gradient_at_the_output(grad_output: Tensor, kept: Tensor, *options: Any) -> Tensor:
    *call, activation = options
    shared = mean_gradient(grad_output, kept.shape[2:], False, *call)
    slopes = {"relu": (kept > 0).to(kept.dtype), "sigmoid": kept * (1 - kept), "tanh": 1 - kept * kept}
    return shared * slopes[activation]


def only_floats(input: Tensor) -> None:
    if input.dtype not in (torch.float32, torch.float64):
        raise Unsupported(str(input.dtype))


PARTS = maximum, maximum_gradient, mean, mean_gradient
FROM_INPUT = PoolKernels(*PARTS, tuple(FUNCTIONS), activated_mean, gradient_at_the_input, keeps_layout=True)
FROM_OUTPUT = PoolKernels(
    *PARTS, tuple(FUNCTIONS), mean_with_activations, gradient_at_the_output, keeps_activations=True
)
OPS = {
    name: pooling_ops(Library(f"convbench_test_pool_{name}", "cpu"), kernels, only_floats)
    for name, kernels in (
        ("plain", PoolKernels(*PARTS)),
        ("from_input", FROM_INPUT),
        ("from_output", FROM_OUTPUT),
    )
}
FUSED = "from_input", "from_output"


def test_it_keeps_the_contract() -> None:
    plain = OPS["plain"]
    assert set(plain) == {"max_pool2d", "avg_pool2d"}  # no fused ops without activations
    backend = Backend("registered", "", lambda: plain, dtypes=("float32",), second_order=tuple(plain))
    report = verify(backend, generated=5)
    assert report.passed, report.failures[:3]
    assert report.compiles == "passed"


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("name", FUSED)
def test_an_activation_and_its_gradients(name: str, activation: str) -> None:
    images = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    for pool, plain in (("max_pool2d", F.max_pool2d), ("avg_pool2d", F.avg_pool2d)):

        def call(input: Tensor, op: Any = OPS[name][f"activation_{pool}"]) -> Tensor:
            return op(input, (3, 2), stride=2, padding=1, ceil_mode=True, activation=activation)

        wanted = plain(FUNCTIONS[activation](images), (3, 2), stride=2, padding=1, ceil_mode=True)
        torch.testing.assert_close(call(images), wanted)
        assert torch.autograd.gradcheck(call, images)
        assert torch.autograd.gradgradcheck(call, images)


def test_no_images_have_gradients_of_gradients() -> None:
    images = torch.empty(0, 3, 6, 5, requires_grad=True)
    output = OPS["plain"]["max_pool2d"](images, 2)
    weights = torch.empty_like(output, requires_grad=True)
    (gradient,) = torch.autograd.grad(output, images, weights, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), weights)
    assert found.shape == output.shape


def test_gradients_have_the_layout_of_their_input() -> None:
    images = torch.randn(2, 3, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    for op in OPS["from_input"].values():
        for call in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
            output = call(images, 2)
            assert channels_last(output)
            assert channels_last(torch.autograd.grad(output.sum(), images)[0])


@pytest.mark.parametrize("name", FUSED)
def test_opcheck_finds_nothing(name: str) -> None:
    ops = getattr(torch.ops, f"convbench_test_pool_{name}")
    images, grad_output = torch.randn(2, 3, 7, 5), torch.randn(2, 3, 4, 3)
    window = (3, 3), (2, 2), (1, 1)
    places = maximum(images, (4, 3), *window, (1, 1))[1]
    calls: dict[str, tuple[Any, ...]] = {
        "max_pool2d": (images, (4, 3), *window, (1, 1)),
        "max_pool2d_gradient": (grad_output, places, (7, 5), False, *window, (1, 1)),
        "avg_pool2d": (images, (4, 3), *window, True, 0),
        "avg_pool2d_gradient": (grad_output, (7, 5), False, *window, True, 0),
        "activation_max_pool2d": (images, (4, 3), *window, (1, 1), "tanh"),
        "activation_avg_pool2d": (images, (4, 3), *window, True, 0, "tanh"),
        "activation_avg_pool2d_gradient": (grad_output, images, *window, True, 0, "tanh"),
    }
    for op, arguments in calls.items():
        given = [
            each.detach().requires_grad_(each.is_floating_point()) if isinstance(each, Tensor) else each
            for each in arguments
        ]
        torch.library.opcheck(getattr(ops, op).default, tuple(given))


def test_what_it_refuses() -> None:
    images = torch.randn(1, 1, 300, 300)
    with pytest.raises(Unsupported, match="windows of more than 65536 pixels"):
        OPS["plain"]["max_pool2d"](images, 257)
    with pytest.raises(Unsupported, match="float16"):
        OPS["plain"]["avg_pool2d"](images.half(), 2)
