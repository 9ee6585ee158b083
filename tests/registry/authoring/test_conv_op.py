"""The shared registration of a convolution, with kernels that call torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import Backend, Unsupported, verify
from convbench.registry.authoring.conv_op import (
    ConvKernels,
    activation_gradient,
    channels_last,
    convolution_ops,
)
from convbench.registry.authoring.conv_parts import parts_of, torchs_backward
from convbench.registry.authoring.torch_library import Library

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "sigmoid": F.sigmoid, "tanh": F.tanh}
ACTIVATIONS = tuple(FUNCTIONS)


def padded(input: Tensor, padding: Sequence[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(input, (left, right, top, bottom))


def convolve(input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, *rest: Any) -> Tensor:
    return F.conv2d(padded(input, padding), weight, bias, stride, 0, *rest)


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int,
    activation: str | None = None,
) -> Tensor:  # fmt: skip
    last = KEEPS[-1] and (channels_last(input) or channels_last(weight))
    output = convolve(input, weight, bias, stride, padding, dilation, groups)
    return laid_out(output if activation is None else FUNCTIONS[activation](output), last)


def laid_out(images: Tensor, last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def torchs_gradients(grad_output: Tensor, input: Tensor, weight: Tensor, *options: Any) -> tuple[Any, ...]:
    stride, padding, dilation, groups = options
    top, left = padding[:2]
    of_input, of_weight, of_bias = torchs_backward(
        grad_output, padded(input, padding), weight, stride, (0, 0), dilation, groups, (True, True, True)
    )
    assert of_input is not None
    height, width = input.shape[2:]
    return of_input[..., top : top + height, left : left + width], of_weight, of_bias


def input_gradient(grad_output: Tensor, weight: Tensor, size: Any, last: bool, *options: Any) -> Tensor:
    image = grad_output.new_zeros(grad_output.shape[0], weight.shape[1] * options[-1], *size)
    return laid_out(torchs_gradients(grad_output, image, weight, *options)[0], last).clone()


def weight_gradient(
    grad_output: Tensor, input: Tensor, size: Any, with_bias: bool, last: bool, *options: Any
) -> tuple[Tensor, Tensor]:
    weight = input.new_zeros(grad_output.shape[1], input.shape[1] // options[-1], *size)
    _, found, of_bias = torchs_gradients(grad_output, input, weight, *options)
    return laid_out(found, last), of_bias if with_bias else of_bias * float("nan")


KEEPS = [False]  # whether the kernels keep the layout; of the library in use


def only_floats(input: Tensor) -> None:
    if input.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise Unsupported(str(input.dtype))


def slope(grad_output: Tensor, output: Tensor, activation: str) -> Tensor:
    return activation_gradient(grad_output, output, activation).contiguous()


def kernels(**options: Any) -> ConvKernels:
    return ConvKernels(forward, input_gradient, weight_gradient, ACTIVATIONS, **options)


def made(name: str, of: ConvKernels, **options: Any) -> dict[str, Callable[..., Tensor]]:
    return convolution_ops(Library(f"convbench_test_{name}", "cpu"), of, only_floats, **options)


PLAIN = made("plain", kernels())
OWN_SLOPE = made("own_slope", kernels(activation_gradient=slope))
LAYOUT = made("layout", kernels(keeps_layout=True))
AUTOCAST = made("autocast", kernels(), autocast=True)


@pytest.fixture
def keeps_layout() -> Any:
    KEEPS[-1] = True
    yield
    KEEPS[-1] = False


def test_it_keeps_the_contract() -> None:
    backend = Backend("registered", "", lambda: PLAIN, dtypes=("float32",), second_order=tuple(PLAIN))
    report = verify(backend, generated=5)
    assert report.passed, report.failures[:3]
    assert report.compiles == "passed"


def leaves(groups: int = 1) -> list[Tensor]:
    shapes = (2, 2, 5, 4), (2, 2 // groups, 3, 2), (2,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_gradients(groups: int) -> None:
    options = {"stride": (2, 1), "padding": 1, "groups": groups}
    assert torch.autograd.gradgradcheck(lambda *given: PLAIN["conv2d"](*given, **options), leaves(groups))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ops", [PLAIN, OWN_SLOPE], ids=["torch's slope", "own slope"])
def test_an_activation_and_its_gradients(ops: dict[str, Callable[..., Tensor]], activation: str) -> None:
    def call(*given: Tensor) -> Tensor:
        return ops["conv2d_activation"](*given, padding=1, activation=activation)

    given = leaves()
    torch.testing.assert_close(call(*given), FUNCTIONS[activation](F.conv2d(*given, padding=1)))
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


def test_the_slope_of_a_relu_at_nan_and_beside_infinity_is_torchs() -> None:
    images = torch.tensor([[[[float("nan"), -1.0, 2.0]]]], requires_grad=True)
    one, upstream = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 3), float("inf"))
    output = PLAIN["conv2d_activation"](images, one)
    (found,) = torch.autograd.grad(output, images, upstream)
    (wanted,) = torch.autograd.grad(torch.relu(F.conv2d(images, one)), images, upstream)
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_gradients_that_are_not_needed_are_none(needs: tuple[int, ...]) -> None:
    tensors = [leaf.detach().requires_grad_(index in needs) for index, leaf in enumerate(leaves())]
    wanted = [tensors[index] for index in needs]
    found = torch.autograd.grad(PLAIN["conv2d"](*tensors).sum(), wanted)
    for got, want in zip(found, torch.autograd.grad(F.conv2d(*tensors).sum(), wanted), strict=True):
        torch.testing.assert_close(got, want)
    parts = parts_of(PLAIN["conv2d"])
    assert parts is not None
    upstream = torch.ones_like(F.conv2d(*tensors))
    asked = 0 in needs, 1 in needs, 2 in needs
    with torch.no_grad():
        given = parts.backward(upstream, tensors[0], tensors[1], (1, 1), (0, 0), (1, 1), 1, asked)
    assert [gradient is not None for gradient in given] == list(asked)
    for gradient, index in zip([each for each in given if each is not None], needs, strict=True):
        torch.testing.assert_close(gradient, found[needs.index(index)])


@pytest.mark.usefixtures("keeps_layout")
def test_gradients_have_the_layout_of_their_tensors() -> None:
    tensors = [torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3)]
    given = [each.to(memory_format=torch.channels_last).requires_grad_() for each in tensors]
    output = LAYOUT["conv2d"](*given)
    assert channels_last(output)
    assert all(map(channels_last, torch.autograd.grad(output.sum(), given)))
    compiled = torch.compile(LAYOUT["conv2d"], fullgraph=True, backend="aot_eager")(*given)
    assert channels_last(compiled)
    assert all(map(channels_last, torch.autograd.grad(compiled.sum(), given)))


@pytest.mark.parametrize("name", ["plain", "own_slope"])
def test_opcheck_finds_nothing(name: str) -> None:
    ops = getattr(torch.ops, f"convbench_test_{name}")
    images, weight, bias = (torch.randn(shape) for shape in ((2, 4, 9, 7), (6, 2, 3, 3), (6,)))
    options = (2, 1), (1, 1, 2, 1), (1, 1), 2
    upstream = torch.randn(2, 6, 5, 7)
    calls: dict[str, tuple[Any, ...]] = {
        "conv2d": (images, weight, bias, *options),
        "conv2d_activation": (images, weight, None, *options, "tanh"),
        "conv2d_input_gradient": (upstream, weight, (9, 7), False, *options),
        "conv2d_weight_gradient": (upstream, images, (3, 3), True, False, *options),
    }
    if name == "own_slope":
        calls["activation_gradient"] = upstream, torch.rand(upstream.shape), "sigmoid"
    for op, arguments in calls.items():
        given = [each.detach().requires_grad_() if isinstance(each, Tensor) else each for each in arguments]
        torch.library.opcheck(getattr(ops, op).default, tuple(given))


def test_autocast_casts_a_direct_call() -> None:
    images, weight = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert AUTOCAST["conv2d"](images, weight).dtype == torch.bfloat16
        output = AUTOCAST["conv2d_activation"](images, weight)
    assert output.dtype == torch.bfloat16
    assert torch.autograd.grad(output.sum(), weight)[0].dtype == torch.float32
    assert parts_of(AUTOCAST["conv2d"]) is not None
    assert AUTOCAST["conv2d"].__name__ == "conv2d"


def test_what_the_kernels_do_not_take_is_refused() -> None:
    with pytest.raises(Unsupported, match="float16"):
        PLAIN["conv2d"](torch.randn(1, 1, 4, 4).half(), torch.randn(1, 1, 3, 3).half())
    images, weight, bias = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3), torch.randn(1)
    with pytest.raises(ValueError, match="weight on meta"):
        PLAIN["conv2d"](images, weight.to("meta"))
    with pytest.raises(ValueError, match="bias on meta"):
        PLAIN["conv2d"](images, weight, bias.to("meta"))
    none = convolution_ops(
        Library("convbench_test_none", "cpu"),
        ConvKernels(forward, input_gradient, weight_gradient),
        only_floats,
    )
    assert list(none) == ["conv2d"]
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        PLAIN["conv2d_activation"](images, weight, activation="gelu")
