"""Local connections without weight sharing: the layer, and `local`, the LeNet made of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convbench.plugins.d2l import LocallyConnected2d, corr2d_multi_in
from convbench.registry import create_model


def test_every_position_has_its_own_kernel_and_bias() -> None:
    layer = LocallyConnected2d(2, 3, input_size=(5, 4), kernel_size=(3, 2))
    assert layer.bias is not None
    images = torch.randn(2, 2, 5, 4)
    output = layer(images)
    assert output.shape == (2, 3, 3, 3)
    for n, o, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        window = images[n, :, i : i + 3, j : j + 2]
        expected = corr2d_multi_in(window, layer.weight[i, j, o]).squeeze() + layer.bias[i, j, o]
        torch.testing.assert_close(output[n, o, i, j], expected)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((1, 3), (2, 0))])
def test_the_same_kernel_everywhere_is_a_convolution(
    stride: int | tuple[int, int], padding: int | tuple[int, int]
) -> None:
    layer = LocallyConnected2d(2, 3, (9, 8), 3, stride, padding)
    kernel, bias = torch.randn(3, 2, 3, 3), torch.randn(3)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(kernel)
        layer.bias.copy_(bias)
    images = torch.randn(2, 2, 9, 8)
    torch.testing.assert_close(layer(images), F.conv2d(images, kernel, bias, stride, padding))


def test_it_learns_through_every_parameter() -> None:
    layer = LocallyConnected2d(1, 2, 4, 3, bias=True)
    layer(torch.rand(2, 1, 4, 4) + 1).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() == parameter.numel()


def test_an_empty_batch() -> None:
    assert LocallyConnected2d(1, 2, 4, 3)(torch.zeros(0, 1, 4, 4)).shape == (0, 2, 2, 2)


def test_without_bias() -> None:
    layer = LocallyConnected2d(1, 2, 4, 3, bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer(torch.zeros(1, 1, 4, 4)).abs().max() == 0


def test_other_image_sizes_are_refused() -> None:
    layer = LocallyConnected2d(1, 1, 6, 3)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 6, 6\), not \(1, 1, 7, 6\)"):
        layer(torch.zeros(1, 1, 7, 6))
    with pytest.raises(ValueError, match="larger than the padded input"):
        LocallyConnected2d(1, 1, 2, 3)


def test_local_is_lenet_with_unshared_weights() -> None:
    local, lenet = create_model("local"), create_model("lenet_relu")
    images = torch.randn(2, 1, 28, 28)
    assert local(images).shape == (2, 10)
    kinds = [
        nn.Conv2d if isinstance(layer, LocallyConnected2d) else type(layer) for layer in local.children()
    ]
    assert kinds == [type(layer) for layer in lenet.children()]
    for (name, shared), (_, unshared) in zip(lenet.named_children(), local.named_children(), strict=True):
        ratio = sum(p.numel() for p in unshared.parameters()) / max(
            1, sum(p.numel() for p in shared.parameters())
        )
        assert ratio == {"0": 28 * 28, "3": 10 * 10}.get(name, float(any(True for _ in shared.parameters())))
    assert sum(parameter.numel() for parameter in local.parameters()) == 423_038


def test_initial_weights_are_as_spread_as_lenets() -> None:
    torch.manual_seed(0)
    local, lenet = create_model("local"), create_model("lenet_relu")
    for one, other in (("0.weight", "0.weight"), ("3.weight", "3.weight")):
        ratio = local.get_parameter(one).detach().std() / lenet.get_parameter(other).detach().std()
        assert 0.8 < float(ratio) < 1.25
