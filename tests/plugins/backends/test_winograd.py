"""`winograd` and `winograd_4x4`: the identities they rest on, their cost, their errors, and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from convbench.plugins.backends import winograd
from convbench.plugins.backends.winograd import F2, F4, Algorithm
from convbench.registry import Unsupported, create_model, use_backend

both = pytest.mark.parametrize("algorithm", [F2, F4], ids=["2x2", "4x4"])


@both
def test_the_transforms_are_exact_in_rational_numbers(algorithm: Algorithm) -> None:
    def exact(value: float) -> Fraction:
        return Fraction(value).limit_denominator(100)

    for i, k, u in itertools.product(range(algorithm.m), range(3), range(algorithm.m + 2)):
        coefficient = sum(
            exact(algorithm.output[i][j]) * exact(algorithm.kernel[j][k]) * exact(algorithm.input[j][u])
            for j in range(algorithm.m + 2)
        )
        assert coefficient == (u == i + k)  # output i is the sum over k of input i + k times tap k


@both
def test_the_stated_growth_is_that_of_the_transforms(algorithm: Algorithm) -> None:
    def square(row: Iterable[float]) -> float:
        return sum(value * value for value in row)

    columns = list(zip(*algorithm.output, strict=True))
    trilinear = list(zip(algorithm.input, algorithm.kernel, columns, strict=True))

    def amplified(into: int, one: int, other: int, terms: int) -> float:
        return max(
            sum(rows[into][i] ** 2 * square(rows[one]) * square(rows[other]) for rows in trilinear) / terms
            for i in range(len(trilinear[0][into]))
        )

    derived = max(amplified(2, 0, 1, 3), amplified(0, 1, 2, 3), amplified(1, 2, 0, algorithm.m))
    assert derived <= algorithm.growth < 1.01 * derived


@both
@pytest.mark.parametrize("padding", [0, 1, (2, 0), "same"])
def test_any_output_size(algorithm: Algorithm, padding: int | tuple[int, int] | str) -> None:
    kernels = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    for height, width in itertools.product(range(3, 10), (3, 8)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        output = winograd.conv2d(algorithm, images, kernels, padding=padding)
        torch.testing.assert_close(output, F.conv2d(images, kernels, padding=padding))
        assert output.is_contiguous()  # as what follows in a model may expect


@both
def test_multiplications_per_output(algorithm: Algorithm) -> None:
    images, kernels = torch.randn(2, 6, 8, 12), torch.randn(4, 3, 3, 3)
    with FlopCounterMode(display=False) as counter:  # it counts matrix products, and not the transforms
        output = winograd.conv2d(algorithm, images, kernels, padding=1, groups=2)
    per_output = counter.get_total_flops() / 2 / output.numel()
    assert per_output == 3 * {2: 4, 4: 2.25}[algorithm.m]  # C/groups times 4 or 2.25, where the formula has 9


def test_the_transform_of_the_input_is_additions_only() -> None:
    assert {abs(factor) for row in F2.input + F2.output for factor in row} == {0, 1}


@both
def test_float32_errors_are_within_the_stated_ones(algorithm: Algorithm) -> None:
    generator = torch.Generator().manual_seed(0)
    images, kernels = (
        torch.randn(4, 32, 16, 16, generator=generator),
        torch.randn(32, 32, 3, 3, generator=generator),
    )
    exact = F.conv2d(images.double(), kernels.double())
    error = winograd.conv2d(algorithm, images, kernels).double() - exact
    assert error.abs().max() < {2: 1e-6, 4: 2e-5}[algorithm.m] * exact.abs().max()


@both
@pytest.mark.parametrize(
    ("kernel", "options", "sentence"),
    [
        ((5, 5), {}, "kernels of 3x3 only, not 5x5"),
        ((1, 3), {}, "kernels of 3x3 only, not 1x3"),
        ((3, 3), {"stride": 2}, r"stride 1 and dilation 1 only, not \(2, 2\) and \(1, 1\)"),
        ((3, 3), {"dilation": (1, 2)}, r"stride 1 and dilation 1 only, not \(1, 1\) and \(1, 2\)"),
    ],
)
def test_what_it_refuses(
    algorithm: Algorithm, kernel: tuple[int, int], options: dict[str, int], sentence: str
) -> None:
    with pytest.raises(Unsupported, match=sentence):
        winograd.conv2d(algorithm, torch.randn(1, 2, 9, 9), torch.randn(3, 2, *kernel), **options)  # type: ignore[arg-type]


def test_what_it_refuses_stays_torchs_and_is_counted_so() -> None:
    model = use_backend(create_model("lenet"), "winograd")
    model(torch.randn(1, 1, 28, 28))
    assert model.served_calls == 0
    assert "conv2d: kernels of 3x3 only, not 5x5" in model.refusals
