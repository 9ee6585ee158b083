"""The dtypes of the contract: tf32 is one of its own, with bounds that bite, and float32 is never tf32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import Install
from convbench.registry import OPS, Backend, UnknownName, discover, verify
from convbench.registry.conformance.cases import Case, conv2d, pool
from convbench.registry.conformance.verify import Outcome, check
from convbench.registry.integrity.global_state import SETTINGS
from convbench.registry.ops.dtypes import ARITHMETICS, DTYPES, FLOAT32_PRODUCTS, arithmetic

LAYERS = {
    "27 terms": conv2d((2, 3, 8, 8), (4, 3, 3, 3), padding=1),
    "4608 terms": conv2d((1, 512, 4, 4), (8, 512, 3, 3), padding=1),
    "strided groups": conv2d((4, 4, 9, 8), (6, 2, 3, 3), stride=(2, 1), padding=1, groups=2),
    "second order": conv2d((2, 4, 7, 6), (4, 4, 3, 3), stride=2, padding=1, order=2),
}
Cut = Callable[[Tensor, int], Tensor]


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """To the nearest number of so many significant bits."""
    mantissa, exponent = tensor.double().frexp()
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def cut(tensor: Tensor, bits: int) -> Tensor:
    """Without the bits that follow, as a tensor core takes a float32 register."""
    mantissa, exponent = tensor.double().frexp()
    return torch.ldexp((mantissa * 2**bits).trunc() / 2**bits, exponent)


class Straight(torch.autograd.Function):
    """Other numbers in the place of a tensor's, and its gradient as it is, of whatever order."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, bits: int, how: Cut) -> Tensor:
        return how(tensor.detach(), bits)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class Conv2d(torch.autograd.Function):
    """Every product of the forward and of both gradients has factors of so many bits, and sums are exact."""

    @staticmethod
    def forward(context: Any, input: Tensor, weight: Tensor, bits: int, how: Cut, options: Any) -> Tensor:
        context.save_for_backward(input, weight)
        context.rest = bits, how, options
        return F.conv2d(how(input, bits), how(weight, bits), None, *options).float()

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = context.saved_tensors
        bits, how, options = context.rest
        low = [Straight.apply(each, bits, how) for each in (input, weight, grad_output)]
        of_input = torch.nn.grad.conv2d_input(input.shape, low[1], low[2], *options)
        of_weight = torch.nn.grad.conv2d_weight(low[0], weight.shape, low[2], *options)
        return of_input.float(), of_weight.float(), None, None, None


def multiplied(bits: int, how: Cut) -> Callable[..., Tensor]:
    def conv2d(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        output: Tensor = Conv2d.apply(input, weight, bits, how, (stride, padding, dilation, groups))
        return output if bias is None else output + bias[:, None, None]

    return conv2d


def checked(implementation: Callable[..., Any], case: Case, dtype: str = "tf32") -> Outcome:
    ops = {case.op: implementation}
    backend = Backend("planted", "for these tests", lambda: ops, second_order=("conv2d",))
    return check(backend, OPS[case.op], case, dtype, "cpu")


@pytest.mark.parametrize("how", [rounded, cut])
@pytest.mark.parametrize("layer", LAYERS)
def test_products_of_eleven_bits_are_tf32_and_not_float32(layer: str, how: Cut) -> None:
    outcome = checked(multiplied(11, how), LAYERS[layer])
    assert outcome.state == "passed", outcome.message
    assert checked(multiplied(11, how), LAYERS[layer], "float32").state == "failed"
    assert checked(F.conv2d, LAYERS[layer]).state == "passed"  # what is more exact is admitted


@pytest.mark.parametrize("bits", [8, 9])
@pytest.mark.parametrize("layer", ["27 terms", "4608 terms"])
def test_products_of_fewer_bits_are_not_tf32(layer: str, bits: int) -> None:
    how = rounded if bits == 8 else cut  # bfloat16's
    outcome = checked(multiplied(bits, how), LAYERS[layer])
    assert outcome.state == "failed"
    assert "tf32" in outcome.message or "admissible" in outcome.message


def test_what_multiplies_nothing_is_held_to_float32() -> None:
    def coarse(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = F.avg_pool2d(Straight.apply(input, 11, rounded).float(), *args, **kwargs)
        return output

    assert checked(coarse, pool("avg_pool2d", (2, 3, 8, 8), kernel_size=2)).state == "failed"
    assert checked(F.avg_pool2d, pool("avg_pool2d", (2, 3, 8, 8), kernel_size=2)).state == "passed"

    def coarse_bias(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output: Tensor = F.conv2d(input, weight)
        return output + CoarseGradient.apply(bias)[:, None, None]

    outcome = checked(coarse_bias, conv2d((8, 3, 8, 8), (4, 3, 3, 3)))
    assert outcome.state == "failed"
    assert "gradient of bias" in outcome.message


class CoarseGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, bias: Tensor) -> Tensor:
        return bias.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return rounded(gradient, 11).float()


def precisions() -> list[str]:
    return [torch._C._get_fp32_precision_getter(*where) for where in FLOAT32_PRODUCTS]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_case_runs_in_its_arithmetic_and_leaves_the_process_as_it_was(dtype: str) -> None:
    before, seen = SETTINGS["the precision of float32 products"][0](), []

    def watching(*args: Any, **kwargs: Any) -> Any:
        seen.append(precisions())
        return F.conv2d(*args, **kwargs)

    checked(watching, LAYERS["27 terms"], dtype)
    wanted = "tf32" if dtype == "tf32" else "ieee"  # torch's default lets cuDNN take tf32 for float32
    assert seen
    assert all(each == [wanted] * len(FLOAT32_PRODUCTS) for each in seen)
    assert SETTINGS["the precision of float32 products"][0]() == before
    torch.get_float32_matmul_precision()  # the older question can still be asked


@pytest.mark.parametrize("dtype", ["float32", "tf32"])
def test_torchs_older_settings_say_the_same(dtype: str) -> None:
    """torch raises where they are read and do not; its compiler reads them."""
    older = lambda: (  # noqa: E731
        torch._C._get_cublas_allow_tf32(),
        torch._C._get_cudnn_allow_tf32(),
        torch.get_float32_matmul_precision() != "highest",
    )
    before = older()
    with arithmetic(dtype).in_force():
        assert older() == (dtype == "tf32",) * 3
        with torch.backends.cudnn.flags(enabled=True):
            pass
        assert older() == (dtype == "tf32",) * 3
    assert older() == before


def test_a_dtype_may_be_claimed_on_some_devices_only(install: Install) -> None:
    torchs = discover(installed=()).backend("torch")
    assert "tf32" in torchs.dtypes_on("cuda:1")
    assert "tf32" not in torchs.dtypes_on("cpu")
    assert {"bfloat16", "float16"} <= set(torchs.dtypes_on("cpu"))
    report = verify(torchs, cases={"conv2d": [LAYERS["27 terms"]]})
    assert {outcome.dtype for outcome in report.outcomes if outcome.op == "conv2d"} == set(
        torchs.dtypes_on("cpu")
    )


def test_unknown_dtypes_are_named() -> None:
    with pytest.raises(UnknownName, match="unknown dtype 'tf23'; did you mean 'tf32'"):
        arithmetic("tf23")
    assert arithmetic("tf32").tensors == torch.float32
    assert [each.name for each in ARITHMETICS.values()] == list(DTYPES)
