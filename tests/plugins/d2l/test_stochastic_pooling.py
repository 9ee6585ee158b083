"""Stochastic pooling: draws by activation, the weighted mean in evaluation, gradients, zeros, geometry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.plugins.d2l import StochasticPool2d, stochastic_pool2d


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(1)).relu()


def test_frequencies_match_the_probabilities() -> None:
    window = torch.tensor([[1.0, 0.0], [2.0, 5.0]])
    draws = 40_000
    drawn = stochastic_pool2d(window.expand(draws, 1, 2, 2), 2, generator=seeded()).flatten()
    counts = torch.stack([(drawn == value).sum() for value in (1.0, 2.0, 5.0)])
    assert counts.sum() == draws  # zero has probability zero
    expected = draws * torch.tensor([1.0, 2.0, 5.0]) / 8
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 13.8  # the 0.999 quantile at 2 degrees of freedom


def test_windows_are_drawn_independently() -> None:
    image = torch.tensor([1.0, 2.0]).repeat(1, 1, 1, 10_000)  # windows of (1, 2) side by side
    drawn = (stochastic_pool2d(image, (1, 2), generator=seeded()).flatten() == 2).double()
    neighbours = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
    assert drawn.mean() == pytest.approx(2 / 3, abs=0.02)
    assert abs(float(neighbours)) < 4 / math.sqrt(10_000)


def test_evaluation_is_the_mean_weighted_by_the_probabilities() -> None:
    window = torch.tensor([[1.0, 0.0], [2.0, 5.0]])[None, None]
    assert stochastic_pool2d(window, 2, training=False).item() == pytest.approx((1 + 4 + 25) / 8)


def test_evaluation_is_what_training_gives_on_average() -> None:
    images = activations(1, 3, 6, 6)
    drawn = stochastic_pool2d(images.expand(20_000, 3, 6, 6), 3, 3, generator=seeded()).mean(dim=0)
    torch.testing.assert_close(
        drawn, stochastic_pool2d(images, 3, 3, training=False)[0], rtol=0.03, atol=0.01
    )


def test_the_gradient_goes_to_what_was_drawn() -> None:
    images = (activations(4, 3, 8, 8) + 0.1).requires_grad_()  # all different, so values tell positions
    pooled = stochastic_pool2d(images, 2, generator=seeded())
    pooled.sum().backward()
    assert images.grad is not None
    assert set(images.grad.unique().tolist()) == {0.0, 1.0}
    assert images.grad.sum() == pooled.numel()
    kept = F.avg_pool2d(images.detach() * images.grad, 2, divisor_override=1)
    assert torch.equal(kept, pooled.detach())


def test_the_gradient_of_evaluation_is_that_of_the_weighted_mean() -> None:
    images = (activations(2, 2, 5, 5).double() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stochastic_pool2d(x, 3, 2, 1, training=False), images)


@pytest.mark.parametrize("training", [True, False])
def test_windows_of_zeros_give_zero(training: bool) -> None:
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pooled = stochastic_pool2d(images, 2, training=training)
    assert torch.equal(pooled, torch.zeros(2, 3, 2, 2))
    pooled.sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_tiny_activations_do_not_underflow_in_evaluation() -> None:
    window = torch.full((1, 1, 2, 2), 1e-30)
    assert stochastic_pool2d(window, 2, training=False).item() == pytest.approx(1e-30)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 1e38), (torch.float16, 3e4)])
def test_large_activations_do_not_overflow(dtype: torch.dtype, value: float, training: bool) -> None:
    window = torch.full((1, 1, 4, 4), value, dtype=dtype)
    assert stochastic_pool2d(window, 4, training=training).item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(2, None, 0), (3, 2, 1), ((2, 3), (2, 3), (0, 1)), (3, 1, 1), (1, 1, 0)],
)
@pytest.mark.parametrize("training", [True, False])
def test_geometry_is_that_of_max_pooling(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    padding: int | tuple[int, int],
    training: bool,
) -> None:
    images = activations(2, 3, 9, 8) + 0.5  # no zeros but the padding's
    pooled = stochastic_pool2d(images, kernel_size, stride, padding, training, seeded())
    largest = F.max_pool2d(images, kernel_size, stride, padding)
    assert pooled.shape == largest.shape
    assert (pooled <= largest).all()
    assert (pooled >= 0.5).all()  # padding is never drawn, and has no weight


def test_a_window_of_one_value_is_the_identity() -> None:
    images = activations(2, 3, 4, 4)
    assert torch.equal(stochastic_pool2d(images, 1), images)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_activations_must_be_finite_and_not_negative(value: float) -> None:
    images = activations(1, 1, 4, 4)
    images[0, 0, 1, 1] = value
    with pytest.raises(ValueError, match="put a ReLU before it"):
        stochastic_pool2d(images, 2)


def test_an_empty_batch() -> None:
    assert stochastic_pool2d(torch.zeros(0, 2, 4, 4), 2).shape == (0, 2, 2, 2)


def test_the_layer_draws_in_training_only() -> None:
    layer = StochasticPool2d(3, stride=2, padding=1)
    images = activations(2, 3, 9, 9)
    torch.manual_seed(0)
    one, other = layer(images), layer(images)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(layer(images), one)
    layer.eval()
    assert torch.equal(layer(images), stochastic_pool2d(images, 3, 2, 1, training=False))
    assert repr(layer) == "StochasticPool2d(kernel_size=3, stride=2, padding=1)"
