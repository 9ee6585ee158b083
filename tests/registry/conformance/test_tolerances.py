"""The bounds bite: what is off by twice as much fails, by half as much passes; coarse arithmetic shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from conftest import exhaustive
from convbench.registry import OPS, Backend, derived_backward
from convbench.registry.conformance.cases import Case, chain, conv2d, fused, pool, stage
from convbench.registry.conformance.reference.answers import OUTPUT, gradient_of
from convbench.registry.conformance.reference.call import reference_answers
from convbench.registry.conformance.tolerances import ELEMENTWISE, error_ratio, unit_roundoff
from convbench.registry.conformance.verify import Outcome, check
from convbench.registry.ops.dtypes import arithmetic

DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
SINGLE = {
    "conv2d": conv2d((2, 4, 9, 8), (6, 2, 3, 3), stride=(2, 1), padding=1, groups=2),
    "max_pool2d": pool("max_pool2d", (2, 3, 9, 8), kernel_size=3, stride=2, padding=1),
    "avg_pool2d": pool("avg_pool2d", (2, 3, 9, 8), kernel_size=3, stride=2, padding=1),
}
CASES = SINGLE | {
    "conv2d_activation": fused("conv2d_activation", SINGLE["conv2d"], "sigmoid"),
    "activation_max_pool2d": fused("activation_max_pool2d", SINGLE["max_pool2d"], "tanh"),
    "activation_avg_pool2d": fused("activation_avg_pool2d", SINGLE["avg_pool2d"], "relu"),
    "conv2d_activation_max_pool2d": stage("conv2d_activation_max_pool2d", SINGLE["conv2d"], "tanh", 2),
    "conv2d_activation_avg_pool2d": stage("conv2d_activation_avg_pool2d", SINGLE["conv2d"], "sigmoid", 2),
    "sequential": chain(
        (2, 2, 9, 8),
        ((6, 2, 3, 3), ("conv2d_activation_avg_pool2d", 1, 1, 1, 1, "sigmoid", 2)),
        (None, ("flatten",)),
        ((9, 96), ("linear", "tanh")),
        ((8, 9), ("linear", "none")),
    ),
}
ANSWERS = [
    (op, name)
    for op, case in CASES.items()
    for name in (OUTPUT, *(gradient_of(tensor) for tensor, _ in case.shapes))
    if (op, name) != ("max_pool2d", OUTPUT)  # that is exact
]


pytestmark = pytest.mark.usefixtures("one_thread", "nothing_late")


def checked(implementation: Callable[..., Any], case: Case, dtype: str = "float32", seed: int = 0) -> Outcome:
    backend = Backend("planted", "for these tests", lambda: {case.op: implementation})
    return check(backend, OPS[case.op], case, dtype, "cpu", seed)


class Through(torch.autograd.Function):
    """What comes in goes out, changed by one function going forward, and by another one going backward."""

    @staticmethod
    def forward(
        context: Any, value: Tensor, forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
    ) -> Tensor:
        context.back = back
        return forth(value.detach()).clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return context.back(gradient), None, None


def through(
    value: Tensor,
    forth: Callable[[Tensor], Tensor] = lambda value: value,
    back: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    changed: Tensor = Through.apply(value, forth, back)
    return changed


def off_by(
    share: float, name: str, case: Case, everywhere: bool = False, factors: float = 0.0
) -> Callable[..., Tensor]:
    """The exact op, but for an answer that is off by a share of its bound in one element, or in each."""
    op = OPS[case.op]

    def implementation(**arguments: Any) -> Tensor:
        tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
        (dtype,) = {value.dtype for value in tensors.values()}
        grad_output: list[Tensor] = []

        def nudged(answer: Tensor) -> Tensor:
            arrived = grad_output[0] if grad_output else torch.zeros_like(answer)
            with torch.enable_grad():
                truth = reference_answers(op, arguments, arrived, ELEMENTWISE, factors)
            bounds = truth.tolerance(name, dtype, ELEMENTWISE)
            error = share * bounds
            if everywhere:
                error[..., ::2] *= -1
            else:
                keep = error.flatten()[error.numel() // 2].item()
                error = torch.zeros_like(error)
                error.view(-1)[error.numel() // 2] = keep
            return answer + error

        def arrive(gradient: Tensor) -> Tensor:
            grad_output.append(gradient)
            return gradient

        wide = {
            key: through(value.double(), back=nudged) if name == gradient_of(key) else value.double()
            for key, value in tensors.items()
        }
        output = through(op.reference(**{**arguments, **wide}), back=arrive)
        return (through(output, forth=nudged) if name == OUTPUT else output).to(dtype)

    return implementation


@pytest.mark.parametrize(("share", "state"), [(0.5, "passed"), (2.0, "failed"), (-2.0, "failed")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "name"), ANSWERS)
def test_an_error_in_one_element(op: str, name: str, dtype: str, share: float, state: str) -> None:
    implementation = off_by(share, name, CASES[op], factors=arithmetic(dtype).factor_error)
    outcome = checked(implementation, CASES[op], dtype)
    assert outcome.state == state, outcome.message
    if state == "failed":
        assert f"the {name} is " in outcome.message
        assert "1 of " in outcome.message


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("op", "name"), ANSWERS)
def test_smaller_errors_everywhere_are_no_chance(op: str, name: str, dtype: str) -> None:
    case = conv2d((16, 4, 9, 8), (64, 2, 3, 3), padding=1, groups=2) if op == "conv2d" else CASES[op]
    assert checked(off_by(0.02, name, case, everywhere=True), case, dtype).state == "passed"
    outcome = checked(off_by(0.7, name, case, everywhere=True), case, dtype)
    assert outcome.state == "failed"
    assert f"the errors of the {name} are together " in outcome.message


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_maximum_is_exact(dtype: str) -> None:
    def next_number(**arguments: Any) -> Tensor:
        def larger(output: Tensor) -> Tensor:
            output[0, 0, 1, 1] *= 1 + torch.finfo(output.dtype).eps
            return output

        return through(F.max_pool2d(**arguments), forth=larger)

    assert checked(F.max_pool2d, CASES["max_pool2d"], dtype).state == "passed"
    assert "1 of 120 elements are wrong" in checked(next_number, CASES["max_pool2d"], dtype).message


def test_the_bound_is_the_formula() -> None:
    """λ·√K·u·A, computed in another way."""
    case = conv2d((2, 3, 6, 5), (4, 3, 3, 2))
    arguments = case.arguments(torch.float32, torch.device("cpu"), seed=0)
    grad_output = case.grad_output(torch.Size((2, 4, 4, 4)), torch.float32, torch.device("cpu"), seed=0)
    truth = reference_answers(OPS["conv2d"], arguments, grad_output, ELEMENTWISE)
    images, kernels, bias = (arguments[name].double() for name in ("input", "weight", "bias"))
    windows = images.unfold(2, 3, 1).unfold(3, 2, 1)  # (N, C, H', W', kh, kw)
    products = windows[:, None] * kernels[None, :, :, None, None]  # (N, O, C, H', W', kh, kw)
    squares = products.square().sum(dim=(2, 5, 6)) + bias.square()[:, None, None]
    for dtype, u in ((torch.float32, 2.0**-24), (torch.float64, 2.0**-53)):
        confidence = math.sqrt(36 + 2 * math.log(2 * 4 * 4 * 4))
        expected = confidence * math.sqrt(3 * 3 * 2 + 1) * u * squares.sqrt()
        torch.testing.assert_close(
            truth.tolerance(OUTPUT, dtype, ELEMENTWISE), expected, rtol=1e-6, atol=1e-30
        )
    terms = (windows[:, None] * grad_output.double()[:, :, None, :, :, None, None]).square()
    expected = 6 * math.sqrt(32 * terms.sum(dim=(0, 3, 4)).max()) * 2.0**-24
    largest = truth.tolerance(gradient_of("weight"), torch.float32, ELEMENTWISE).max()
    assert 1 < largest / expected < 1.2  # λ grows with the number of elements


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """With a mantissa of so many bits."""
    mantissa, exponent = tensor.frexp()
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


LONG = {
    27: conv2d((2, 3, 8, 8), (4, 3, 3, 3), bias=False),
    4608: conv2d((1, 512, 4, 4), (8, 512, 3, 3), bias=False, padding=1),
    18432: conv2d((1, 2048, 4, 4), (8, 2048, 3, 3), bias=False, padding=1),
    115200: conv2d((128, 1, 32, 32), (4, 1, 3, 3), bias=False),  # of the weight's gradient
}
COARSE = {11: "tf32 and float16", 8: "bfloat16"}


@pytest.mark.parametrize("bits", COARSE, ids=COARSE.get)
@pytest.mark.parametrize("terms", LONG)
@pytest.mark.parametrize("where", ["forward", "gradient of input", "gradient of weight"])
def test_coarse_products_do_not_pass_for_float32(where: str, terms: int, bits: int) -> None:
    """Inputs rounded to fewer bits, exact products and sums, as tensor cores have them: in one direction alone."""
    if (terms == 115200) != (where == "gradient of weight") and terms != 27:
        pytest.skip("short sums in this direction")

    class Coarse(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, input: Tensor, weight: Tensor, padding: int) -> Tensor:
            context.save_for_backward(input, weight)
            context.padding = padding
            bits_here = bits if where == "forward" else 53
            wide = [rounded(tensor.double(), bits_here) for tensor in (input, weight)]
            return F.conv2d(*wide, padding=padding).to(input.dtype)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            answers = []
            for index, name in enumerate(("gradient of input", "gradient of weight")):
                here = bits if where == name else 53
                input, weight = (rounded(each.double(), here) for each in context.saved_tensors)
                tensors = (input.requires_grad_(), weight.requires_grad_())
                with torch.enable_grad():
                    output = F.conv2d(*tensors, padding=context.padding)
                (answer,) = torch.autograd.grad(output, tensors[index], rounded(gradient.double(), here))
                answers.append(answer.to(gradient.dtype))
            return (*answers, None)

    def conv2d(input: Tensor, weight: Tensor, padding: int = 0) -> Tensor:
        output: Tensor = Coarse.apply(input, weight, padding)
        return output

    outcome = checked(conv2d, LONG[terms])
    assert outcome.state == "failed"
    assert ("output" if where == "forward" else where) in outcome.message


@pytest.mark.parametrize(("claimed", "computed"), [("float64", "float32"), ("float16", "bfloat16")])
@pytest.mark.parametrize("op", OPS)
def test_another_dtype_does_not_pass_for_the_claimed_one(op: str, claimed: str, computed: str) -> None:
    def coarse(**arguments: Any) -> Tensor:
        lower = getattr(torch, computed)
        call = {
            name: value.to(lower) if isinstance(value, Tensor) else value for name, value in arguments.items()
        }
        output: Tensor = OPS[op].reference(**call)
        return output.to(getattr(torch, claimed))

    assert checked(coarse, CASES[op], claimed).state == "failed"


@derived_backward
def one_by_one(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """Sums made term by term in float32, from the first to the last: the worst order there is. One group."""
    images = np.pad(input.numpy(), [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2])
    reach = [gap * (size - 1) + 1 for gap, size in zip(dilation, weight.shape[2:], strict=True)]
    windows = sliding_window_view(images, reach, axis=(2, 3))  # type: ignore[call-overload]
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    terms = windows.transpose(1, 4, 5, 0, 2, 3).reshape(-1, 1, windows.shape[0], *windows.shape[2:4])
    factors = weight.numpy().reshape(len(weight), -1).T[:, :, None, None, None]
    total = np.zeros((len(weight), *terms.shape[2:]), np.float32)
    for term, factor in zip(terms, factors, strict=True):
        total += term * factor
    output = torch.from_numpy(total).transpose(0, 1).contiguous()
    return output if bias is None else output + bias[:, None, None]


@pytest.mark.parametrize("case", [LONG[4608], LONG[18432], conv2d((24, 1, 32, 32), (4, 1, 3, 3))], ids=str)
def test_sums_in_the_worst_order_pass(case: Case) -> None:
    for seed in range(2):
        outcome = checked(one_by_one, case, seed=seed)
        assert outcome.state == "passed", outcome.message


@pytest.mark.parametrize("dtype", ["float32", *(exhaustive(each) for each in DTYPES if each != "float32")])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("grad_output", ["contiguous", exhaustive("scalar")])
def test_zeros_never_pass(op: str, dtype: str, grad_output: str) -> None:
    """Neither as an output nor as a gradient, however long the sums are."""
    cases = [CASES[op]] + ([LONG[4608], LONG[115200]] if op == "conv2d" else [])
    for case in cases:
        for forth, back in ((torch.zeros_like, lambda g: g), (lambda value: value, torch.zeros_like)):

            def zeros(
                forth: Callable[[Tensor], Tensor] = forth,
                back: Callable[[Tensor], Tensor] = back,
                **arguments: Any,
            ) -> Tensor:
                return through(OPS[op].reference(**arguments), forth, back)

            outcome = checked(zeros, case, dtype)
            assert outcome.state == "failed"


def test_what_is_not_finite_must_be_the_same() -> None:
    inf, nan = math.inf, math.nan
    right = torch.tensor([inf, -inf, nan, 1e6, 1.0, nan], dtype=torch.float64)
    bounds = torch.tensor([inf, inf, nan, 1.0, 1.0, nan], dtype=torch.float64)
    same = torch.tensor([inf, -inf, nan, inf, 1.0, nan], dtype=torch.float16)  # 1e6 is infinite in float16
    assert error_ratio(same, right, bounds).tolist() == [0.0] * 6
    other = torch.tensor([-inf, 3.0, inf, nan, inf, 0.0], dtype=torch.float16)
    assert error_ratio(other, right, bounds).tolist() == [inf] * 6


@pytest.mark.parametrize("op", OPS)
def test_infinities_and_nans_of_the_input(op: str) -> None:
    case = replace(CASES[op], special=True)
    values = case.arguments(torch.float32, torch.device("cpu"), seed=0)["input"]
    assert (int(values.isposinf().sum()), int(values.isnan().sum())) == (1, 1)
    assert checked(OPS[op].reference, case).state == "passed"

    def cleaned(input: Tensor, **arguments: Any) -> Tensor:
        output: Tensor = OPS[op].reference(
            input.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), **arguments
        )
        return output

    def spread(**arguments: Any) -> Tensor:
        output: Tensor = OPS[op].reference(**arguments)
        return output + 0 * arguments["input"].sum()

    assert " where nan is right" in checked(cleaned, case).message
    assert "the output is nan where " in checked(spread, case).message


def test_the_unit_roundoff_of_each_dtype() -> None:
    found = [unit_roundoff(arithmetic(dtype).tensors) for dtype in DTYPES]
    assert found == [2.0**-53, 2.0**-24, 2.0**-24, 2.0**-8, 2.0**-11]
