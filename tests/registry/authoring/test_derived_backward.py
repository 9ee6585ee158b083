"""`derived_backward`: from a forward alone, a convolution with gradients, and the forward computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from conftest import exhaustive
from convbench.registry import (
    Backend,
    PluginError,
    Unsupported,
    backward_is_derived,
    derived_backward,
    use_backend,
    verify,
)
from convbench.registry.authoring.torch_library import opaque
from convbench.registry.conformance.cases import conformance_cases, conv2d

Pair = tuple[int, int]
Op = Callable[..., Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def by_torch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    assert not torch.is_grad_enabled()
    with torch.no_grad():
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def by_numpy(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    images = np.pad(input.numpy(), [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2])
    reach = [gap * (size - 1) + 1 for gap, size in zip(dilation, weight.shape[2:], strict=True)]
    windows = sliding_window_view(images, reach, axis=(2, 3))  # type: ignore[call-overload]
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    parts = zip(np.split(windows, groups, axis=1), np.split(weight.numpy(), groups), strict=True)
    output = np.concatenate(
        [np.tensordot(part, kernels, ((1, 4, 5), (1, 2, 3))) for part, kernels in parts], axis=-1
    )
    output = output if bias is None else output + bias.numpy()
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(output, -1, 1)))


def planted(op: Op, *dtypes: str) -> Backend:
    return Backend("derived", "for these tests", lambda: {"conv2d": op}, dtypes=dtypes or ("float32",))


def leaves(case_input: tuple[int, ...], case_weight: tuple[int, ...], bias: bool = True) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [case_input, case_weight, case_weight[:1]][: 3 if bias else 2]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("forward", [exhaustive(by_torch), by_numpy])
def test_it_conforms(forward: Op) -> None:
    report = verify(planted(derived_backward(forward), "float32", "float64"), generated=5)
    assert report.passed, report.failures
    assert {outcome.message for outcome in report.outcomes if outcome.state == "unsupported"} == {
        "not offered"
    }
    assert report.count("passed") >= 2 * len(conformance_cases("conv2d"))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((2, 3, 11, 10), (4, 3, 3, 3)), {"stride": 4}),  # rows and columns that no window reaches
        (((2, 3, 7, 7), (4, 3, 1, 1)), {"stride": 3, "padding": 2}),  # padding that only the bias sees
        (((1, 2, 4, 5), (2, 2, 2, 2)), {"padding": (5, 4)}),  # more padding than kernel
        (((2, 4, 6, 9), (6, 2, 2, 4)), {"padding": "same", "dilation": (3, 1), "groups": 2}),
        (((2, 6, 9, 8), (12, 1, 3, 2)), {"stride": (2, 3), "padding": 1, "dilation": (1, 2), "groups": 6}),
    ],
)
def test_gradients_at_the_edges(shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> None:
    op = derived_backward(by_torch)
    arguments = leaves(*shapes)
    for ours, theirs in zip(
        torch.autograd.grad(op(*arguments, **options).sin().sum(), arguments),
        torch.autograd.grad(F.conv2d(*arguments, **options).sin().sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (
            ((2, 4, 5, 4), (2, 2, 3, 2)),
            {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
        ),
        (((1, 2, 3, 3), (2, 2, 2, 2)), {"padding": "same"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_gradients_of_gradients(shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> None:
    op = derived_backward(by_torch)
    assert torch.autograd.gradgradcheck(lambda *tensors: op(*tensors, **options), leaves(*shapes))


def test_the_forward_of_the_author_computes_everything() -> None:
    calls: list[tuple[Any, ...]] = []

    def counted(input: Tensor, weight: Tensor, *others: Any) -> Tensor:
        calls.append((tuple(input.shape), tuple(weight.shape), *others[1:]))
        assert input.is_contiguous()
        assert weight.is_contiguous()
        assert not input.requires_grad
        return by_torch(input, weight, *others)

    op = derived_backward(counted)
    images, kernels, bias = leaves((2, 4, 8, 8), (6, 2, 3, 3))
    output = op(images.to(memory_format=torch.channels_last), kernels, bias, 2, 1, 1, 2)
    assert calls == [((2, 4, 8, 8), (6, 2, 3, 3), (2, 2), (1, 1), (1, 1), 2)]
    output.sum().backward()
    assert calls[1:] == [
        ((2, 6, 8, 8), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 2),  # of the input: spread by the stride
        (
            (2, 4, 9, 9),
            (6, 2, 4, 4),
            (1, 1),
            (0, 0),
            (2, 2),
            2,
        ),  # of the weight: batch and channels exchanged
    ]

    calls.clear()
    op(images.detach(), kernels, groups=2).sum().backward()
    assert len(calls) == 2  # nobody asked for the input's gradient
    calls.clear()
    op(images, kernels.detach(), bias.detach(), groups=2).sum().backward()
    assert len(calls) == 2
    calls.clear()
    op(images.detach(), kernels.detach(), bias, groups=2).sum().backward()
    assert len(calls) == 1  # the bias's is a sum
    with torch.no_grad():
        assert not op(images, kernels, groups=2).requires_grad


def test_there_is_nothing_to_ask_of_an_empty_batch() -> None:
    def never(*arguments: Any) -> Tensor:
        raise AssertionError("asked")

    arguments = leaves((0, 3, 8, 8), (4, 3, 3, 3))
    output = derived_backward(never)(*arguments, stride=2, padding=1)
    assert output.shape == (0, 4, 4, 4)
    output.sum().backward()
    assert [tensor.grad.shape for tensor in arguments if tensor.grad is not None] == [
        tensor.shape for tensor in arguments
    ]
    assert not any(tensor.grad.any() for tensor in arguments if tensor.grad is not None)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (lambda i, w, *others: by_torch(i, w.flip(-1), *others), "the output is"),
        (lambda i, w, b, *others: by_torch(i, w, None, *others), "the output is"),
        (lambda i, w, b, s, p, d, g: by_torch(i, w, b, s, (p[0], 0), d, g), "shape"),
        (lambda i, w, b, s, p, d, g: by_torch(i, w, b, s, p, (1, 1), g), "gets wrong: the output has shape"),
        (lambda i, w, *others: by_torch(i, w, *others) * (2 if w.shape[2] > 3 else 1), "gradient of weight"),
        (lambda i, w, *others: by_torch(i.add_(1), w, *others), "input was changed in place"),
    ],
    ids=["flipped", "no bias", "padding ignored", "dilation ignored", "large kernels wrong", "input changed"],
)
def test_a_wrong_forward_is_caught(fault: Op, sentence: str) -> None:
    case = conv2d((2, 3, 9, 9), (4, 3, 3, 3), stride=2, padding=1)
    report = verify(planted(derived_backward(fault)), cases={"conv2d": [case]})
    (outcome,) = report.failures
    assert sentence in outcome.message


def test_a_refusal_in_the_backward_says_what_was_refused() -> None:
    def small_kernels(input: Tensor, weight: Tensor, *others: Any) -> Tensor:
        if weight.shape[2] > 3:
            raise Unsupported("kernels of up to 3x3")
        return by_torch(input, weight, *others)

    report = verify(
        planted(derived_backward(small_kernels)), cases={"conv2d": [conv2d((2, 3, 9, 9), (4, 3, 3, 3))]}
    )
    (outcome,) = report.outcomes
    assert (outcome.state, outcome.message) == (
        "unsupported",
        "the gradient of weight is a convolution with kernels of 7x7, which the forward refuses: "
        "kernels of up to 3x3",
    )


def test_swapped_axes_are_found_at_the_output() -> None:
    def swapped(i: Tensor, w: Tensor, b: Any, s: Any, p: Any, d: Any, g: int) -> Tensor:
        return by_torch(i, w, b, s, p[::-1], d, g)

    op = derived_backward(swapped)
    images, weight = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3, requires_grad=True)
    sentence = (
        r"the output has shape \(1, 1, 3, 1\), not \(1, 1, 1, 3\), for an input of \(1, 1, 3, 3\), a weight of "
        r"\(1, 1, 3, 3\), stride \(1, 1\), padding \(0, 1\) and dilation \(1, 1\)"
    )
    for call in (op, torch.compile(op, backend="eager")):
        with pytest.raises(PluginError, match=sentence):
            call(images, weight, padding=(0, 1))


def test_a_forward_of_other_arguments_is_refused_at_once() -> None:
    def conv1(input: Tensor, weight: Tensor) -> Tensor:
        return input

    with pytest.raises(PluginError, match=r"conv1 must take \(input, weight, bias, stride, .*, groups\)"):
        derived_backward(conv1)  # type: ignore[arg-type]


def test_the_record_that_it_is_derived() -> None:
    op = derived_backward(by_numpy)
    assert backward_is_derived(op)
    assert op.__wrapped__ is by_numpy  # type: ignore[attr-defined]
    assert op.__name__ == "by_numpy"
    assert not backward_is_derived(by_numpy)
    assert not backward_is_derived(F.conv2d)


def test_it_trains_a_network_as_torch_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten())
    images = torch.randn(3, 1, 12, 12)
    gradients = []
    for network in (model, use_backend(model, planted(derived_backward(by_numpy)))):
        model.zero_grad()
        network(images).square().mean().backward()
        gradients.append(
            [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        )
    assert len(gradients[0]) == 4
    torch.testing.assert_close(*gradients)


def test_a_compiler_takes_it_whole() -> None:
    op = derived_backward(by_numpy)
    images, kernels, bias = arguments = leaves((2, 3, 8, 8), (4, 3, 3, 3))
    compiled = torch.compile(lambda *tensors: op(*tensors, 2, 1), backend="aot_eager", fullgraph=True)
    output, expected = compiled(*arguments), F.conv2d(images, kernels, bias, 2, 1)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        torch.autograd.grad(output.sum(), arguments), torch.autograd.grad(expected.sum(), arguments)
    )


def test_what_the_compiler_takes_keeps_its_word() -> None:
    call = (*(tensor.detach() for tensor in leaves((2, 3, 8, 8), (4, 3, 3, 3))), [2, 1], [1, 1], [1, 2], 1)
    results = torch.library.opcheck(opaque(by_numpy), call)  # type: ignore[arg-type]
    assert set(results.values()) == {"SUCCESS"}


def test_gradients_of_complex_numbers_are_torchs() -> None:
    torch.manual_seed(0)
    shapes = ((2, 4, 7, 6), (4, 2, 3, 3), (4,))
    tensors = [torch.randn(shape, dtype=torch.complex128, requires_grad=True) for shape in shapes]
    options = (2, (1, 2), 1, 2)
    outputs = [op(*tensors, *options) for op in (derived_backward(by_torch), F.conv2d)]
    grad_output = torch.randn_like(outputs[0])
    mine, torchs = (torch.autograd.grad(output, tensors, grad_output) for output in outputs)
    for one, other in zip(mine, torchs, strict=True):
        torch.testing.assert_close(one, other)
