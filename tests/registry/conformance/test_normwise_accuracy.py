"""Declared rounding errors: what `normwise` admits, that it still bites, and that the report shows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import Backend, PluginError, discover, verify
from convbench.registry.conformance.cases import conv2d as call
from convbench.registry.conformance.verify import Report
from convbench.registry.records import Accuracy

CASE = call((2, 3, 10, 9), (4, 3, 3, 3), bias=False, padding=2)  # its corners see one tap for each channel
GROWTH = 5.0


def report(conv2d: Callable[..., Tensor], accuracy: Accuracy | None) -> Report:
    declared = {} if accuracy is None else {"conv2d": accuracy}
    backend = Backend("planted", "for this test", load=lambda: {"conv2d": conv2d}, accuracy=declared)
    return verify(backend, cases={"conv2d": [CASE]})


def off_by(factor: float) -> Callable[..., Tensor]:
    """conv2d, wrong in the first corner by `factor` times what a normwise growth of `GROWTH` admits."""

    def conv2d(input: Tensor, weight: Tensor, *options: Any, **named: Any) -> Tensor:
        output = F.conv2d(input.double(), weight.double(), *options, **named)
        error = torch.zeros_like(output)
        norms = [tensor.detach().double().square().mean(dim=(-2, -1)).sqrt() for tensor in (input, weight)]
        magnitude = 9 * norms[0] @ norms[1].T  # (N, O): summed over 3x3 taps and the channels
        confidence = math.sqrt(36 + 2 * math.log(output.numel()))
        error[..., 0, 0] = factor * confidence * GROWTH * 2.0**-24 * magnitude
        return (output + error).float()

    return conv2d


@pytest.mark.parametrize(
    ("factor", "passes"), [(0.5, True), (0.95, True), (1.05, False), (2.0, False), (-2.0, False)]
)
def test_the_tolerance_is_what_is_declared(factor: float, passes: bool) -> None:
    assert report(off_by(factor), Accuracy("normwise", GROWTH)).passed is passes


def test_a_smaller_growth_admits_less() -> None:
    assert not report(off_by(0.5), Accuracy("normwise", GROWTH / 4)).passed


@pytest.mark.parametrize("accuracy", [None, Accuracy(), Accuracy("elementwise", 2.0)])
def test_direct_sums_are_held_to_their_own_terms(accuracy: Accuracy | None) -> None:
    assert not report(off_by(0.9), accuracy).passed  # a corner has few terms, whatever the image's norm
    assert report(F.conv2d, accuracy).passed


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """With a mantissa of so many bits."""
    mantissa, exponent = tensor.frexp()
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


@pytest.mark.parametrize("name", ["fft", "winograd", "winograd_4x4"])
@pytest.mark.parametrize("bits", [8, 11], ids=["bfloat16", "tf32 and float16"])
def test_lower_precision_does_not_pass_for_float32(name: str, bits: int) -> None:
    genuine = discover().backend(name)

    def conv2d(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        coarse = input + (rounded(input, bits) - input).detach()
        return genuine.ops["conv2d"](coarse, weight, **options)  # type: ignore[no-any-return]

    assert not report(conv2d, genuine.accuracy["conv2d"]).passed


@pytest.mark.parametrize("tensor", ["input", "weight"])
def test_a_coarse_gradient_fails(tensor: str) -> None:
    def conv2d(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        through = {"input": input.clone(), "weight": weight.clone()}
        through[tensor].register_hook(lambda gradient: rounded(gradient, 11))
        return F.conv2d(through["input"], through["weight"], **options)

    assert not report(conv2d, Accuracy("normwise", GROWTH)).passed


@pytest.mark.parametrize("growth", [1.0, 1000.0])
def test_zeros_never_pass(growth: float) -> None:
    def conv2d(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return 0 * F.conv2d(input, weight, **options)

    assert not report(conv2d, Accuracy("normwise", growth)).passed


@pytest.mark.parametrize("growth", [0.0, 0.99, 1001.0, float("inf"), float("nan")])
def test_a_growth_that_would_admit_anything_is_refused(growth: float) -> None:
    with pytest.raises(PluginError, match="from 1 to 1000"):
        Accuracy("normwise", growth)


def test_an_unknown_model_of_errors_is_refused() -> None:
    with pytest.raises(PluginError, match="'elementwise' or 'normwise', not 'loose'"):
        Accuracy("loose")  # type: ignore[arg-type]


def test_the_report_shows_what_was_declared() -> None:
    shown = report(off_by(0.0), Accuracy("normwise", GROWTH)).accuracy
    assert {op: str(accuracy) for op, accuracy in shown.items()} == {"conv2d": "normwise, growth 5"}
    assert report(F.conv2d, None).accuracy == {}


def test_a_backend_with_a_declaration_is_hashable() -> None:
    assert len({discover().backend(name) for name in ("fft", "winograd", "torch")}) == 3
