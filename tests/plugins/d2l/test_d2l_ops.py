"""The printed values of Dive into Deep Learning, sections 7.2 to 7.5, from convbench."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convbench.plugins.d2l import (
    BOOK_KERNEL,
    EDGE_KERNEL,
    Conv2D,
    Learned,
    conv2d_true,
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
    edge_image,
    learn_kernel,
    pool2d,
)
from convbench.registry import Backend, Unsupported, discover, use_backend

IMAGE = torch.arange(9.0).view(3, 3)
KERNEL = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
BACKENDS = list(discover().backends)

with_every_backend = pytest.mark.parametrize("name", BACKENDS)


def backend_on_this_machine(name: str) -> Backend:
    backend = discover().backend(name)
    if "cpu" not in backend.devices:
        pytest.skip(f"{name} runs on {', '.join(backend.devices)} only")
    if reason := backend.unavailable():
        pytest.skip(reason)
    return backend


def learned_by(name: str, **options: Any) -> Learned:
    """`learn_kernel`, skipped where the backend says that it has no such kernels."""
    try:
        return learn_kernel(backend_on_this_machine(name), **options)
    except Unsupported as refusal:
        pytest.skip(f"{name}: {refusal}")


def offered(name: str, op: str) -> Any:
    implementation = backend_on_this_machine(name).ops.get(op)
    if implementation is None:
        pytest.skip(f"{name} has no {op}")
    return implementation


def answer(implementation: Any, *args: Any, **options: Any) -> Tensor:
    """What a backend's op answers, skipped where it says that it does not."""
    try:
        output: Tensor = implementation(*args, **options)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    return output


# 7.2 Convolutions for images


def test_the_worked_example() -> None:
    assert corr2d(IMAGE, KERNEL).tolist() == [[19, 25], [37, 43]]


@with_every_backend
def test_the_worked_example_with_a_backend(name: str) -> None:
    output = answer(offered(name, "conv2d"), IMAGE[None, None], KERNEL[None, None])
    torch.testing.assert_close(output[0, 0], corr2d(IMAGE, KERNEL), rtol=0, atol=2e-5)


def test_convolution_proper_flips_the_kernel() -> None:
    assert conv2d_true(IMAGE, KERNEL).tolist() == [
        [5, 11],
        [23, 29],
    ]  # by hand: 0·3 + 1·2 + 3·1 + 4·0 and so on
    polynomial = conv2d_true(torch.tensor([[0.0, 1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0]]))
    assert polynomial.tolist() == [[3, 7, 2]]  # (1 + 2x)(3 + x)


def test_a_kernel_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a kernel of 4x4 is larger than the image of 3x3"):
        corr2d(IMAGE, torch.ones(4, 4))
    with pytest.raises(ValueError, match="two matrices"):
        corr2d(IMAGE[None], KERNEL)


@with_every_backend
def test_the_layer_is_kernel_and_bias(name: str) -> None:
    backend = backend_on_this_machine(name)
    layer = Conv2D((2, 2), backend)
    assert layer.weight.shape == (2, 2)
    assert layer.bias.tolist() == [0.0]
    with torch.no_grad():
        layer.bias.fill_(0.5)
    output = answer(layer, IMAGE)
    torch.testing.assert_close(output, corr2d(IMAGE, layer.weight) + 0.5)
    output.sum().backward()
    assert layer.bias.grad is not None
    assert layer.bias.grad.item() == pytest.approx(4.0)
    assert repr(layer) == f"Conv2D(kernel_size=(2, 2), backend={backend.name!r})"


def test_the_edge_detector() -> None:
    image, kernel = edge_image(), torch.tensor([EDGE_KERNEL])
    assert image.tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]] * 6
    assert corr2d(image, kernel).tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6
    assert corr2d(image.t(), kernel).tolist() == [[0] * 5] * 8  # horizontal edges are not seen


@with_every_backend
def test_the_edge_detector_with_a_backend(name: str) -> None:
    conv2d, kernel = offered(name, "conv2d"), torch.tensor([[[EDGE_KERNEL]]])
    output = answer(conv2d, edge_image()[None, None], kernel)
    torch.testing.assert_close(output[0, 0], torch.tensor([[0.0, 1, 0, 0, 0, -1, 0]] * 6), rtol=0, atol=1e-6)
    output = answer(conv2d, edge_image().t()[None, None], kernel)
    torch.testing.assert_close(output[0, 0], torch.zeros(8, 5), rtol=0, atol=1e-6)


@with_every_backend
def test_the_books_trajectory(name: str) -> None:
    losses, kernel = learned_by(name, initial=BOOK_KERNEL)
    assert [f"{loss:.3f}" for loss in losses[1::2]] == ["8.486", "2.214", "0.695", "0.249", "0.096"]
    assert kernel.tolist() == [pytest.approx([0.9568, -1.0194], abs=1e-4)]


@with_every_backend
def test_learning_the_edge_detector(name: str) -> None:
    losses, kernel = learned_by(name)
    assert len(losses) == 10
    assert losses[-1] < 0.2
    assert kernel.tolist() == [pytest.approx(EDGE_KERNEL, abs=0.1)]


@with_every_backend
def test_kernels_learned_by_correlation_and_by_convolution_are_flips_of_each_other(name: str) -> None:
    correlation = learned_by(name, steps=60, seed=1)
    convolution = learned_by(name, steps=60, seed=2, true_convolution=True)
    torch.testing.assert_close(correlation.kernel, convolution.kernel.flip(0, 1), rtol=0, atol=1e-3)
    assert not torch.allclose(correlation.kernel, convolution.kernel, atol=0.1)


def test_a_backend_without_such_kernels_says_so() -> None:
    with pytest.raises(Unsupported, match="not 1x2"):
        learn_kernel("winograd")


# 7.3 Padding and stride


@with_every_backend
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kernel_size": 3, "padding": 1}, (8, 8)),
        ({"kernel_size": (5, 3), "padding": (2, 1)}, (8, 8)),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (4, 4)),
        ({"kernel_size": (3, 5), "padding": (0, 1), "stride": (3, 4)}, (2, 2)),
    ],
)
def test_padding_and_stride(name: str, options: dict[str, Any], shape: tuple[int, int]) -> None:
    model = use_backend(nn.Conv2d(1, 1, **options), backend_on_this_machine(name))
    output = model(torch.rand(1, 1, 8, 8))
    if not model.served_calls:
        pytest.skip("; ".join(model.refusals))
    assert output.shape == (1, 1, *shape)


# 7.4 Channels


def test_several_input_and_output_channels() -> None:
    images = torch.stack([IMAGE, IMAGE + 1])
    kernel = torch.stack([KERNEL, KERNEL + 1])
    assert corr2d_multi_in(images, kernel).tolist() == [[56, 72], [104, 120]]
    kernels = torch.stack([kernel, kernel + 1, kernel + 2])
    assert corr2d_multi_in_out(images, kernels).tolist() == [
        [[56, 72], [104, 120]],
        [[76, 100], [148, 172]],
        [[96, 128], [192, 224]],
    ]


@with_every_backend
def test_several_channels_with_a_backend(name: str) -> None:
    images = torch.stack([IMAGE, IMAGE + 1])
    kernels = torch.stack([torch.stack([KERNEL, KERNEL + 1]) + more for more in range(3)])
    output = answer(offered(name, "conv2d"), images[None], kernels)
    torch.testing.assert_close(output[0], corr2d_multi_in_out(images, kernels), rtol=0, atol=1e-4)


def test_channels_must_match() -> None:
    with pytest.raises(ValueError, match=r"of the same C, not \(2, 3, 3\) and \(1, 2, 2\)"):
        corr2d_multi_in(torch.rand(2, 3, 3), torch.rand(1, 2, 2))


def test_a_1x1_convolution_is_a_matrix_product() -> None:
    torch.manual_seed(0)
    images, kernels = torch.randn(3, 3, 3), torch.randn(2, 3, 1, 1)
    product, general = corr2d_multi_in_out_1x1(images, kernels), corr2d_multi_in_out(images, kernels)
    assert float((product - general).abs().sum()) < 1e-5
    with pytest.raises(ValueError, match=r"\(O, C, 1, 1\)"):
        corr2d_multi_in_out_1x1(images, torch.randn(2, 3, 2, 1))


# 7.5 Pooling


def test_pooling() -> None:
    assert pool2d(IMAGE, (2, 2)).tolist() == [[4, 5], [7, 8]]
    assert pool2d(IMAGE, (2, 2), "avg").tolist() == [[2, 3], [5, 6]]
    with pytest.raises(ValueError, match="'max' or 'avg', not 'min'"):
        pool2d(IMAGE, (2, 2), "min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a window of 4x1 is larger"):
        pool2d(IMAGE, (4, 1))


@with_every_backend
@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({"kernel_size": 3}, [[10]]),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, [[5, 7], [13, 15]]),
        ({"kernel_size": (2, 3), "stride": (2, 3), "padding": (0, 1)}, [[5, 7], [13, 15]]),
    ],
)
def test_max_pooling_with_padding_and_stride(name: str, options: dict[str, Any], printed: list[Any]) -> None:
    max_pool2d, image = offered(name, "max_pool2d"), torch.arange(16.0).view(1, 1, 4, 4)
    assert answer(max_pool2d, image, **options)[0, 0].tolist() == printed


@with_every_backend
def test_channels_are_pooled_one_by_one(name: str) -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    images = torch.cat((image, image + 1), 1)
    output = answer(offered(name, "max_pool2d"), images, kernel_size=3, padding=1, stride=2)
    assert output.tolist() == [[[[5, 7], [13, 15]], [[6, 8], [14, 16]]]]
