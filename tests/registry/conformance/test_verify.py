"""`verify` catches backends that are wrong, each in its own way, and says in what."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import OPS, Backend, UnknownName, Unsupported, verify
from convbench.registry.conformance.cases import (
    Case,
    conv2d,
    pool,
)
from convbench.registry.conformance.verify import check, check_refusal

SMALL = conv2d((2, 3, 8, 8), (4, 3, 3, 3), padding=1)
STRIDED = conv2d((2, 3, 8, 6), (4, 3, 3, 3), padding=1, layout="strided")
EMPTY = conv2d((0, 3, 8, 8), (4, 3, 3, 3))


def backend(deterministic: bool = True, **ops: Callable[..., Any]) -> Backend:
    return Backend("planted", "for these tests", lambda: ops, deterministic=deterministic)


def outcome(implementation: Callable[..., Any], case: Case = SMALL, deterministic: bool = True) -> Any:
    planted = backend(deterministic, **{case.op: implementation})
    return check(planted, OPS[case.op], case, "float32", "cpu")


def zeros(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs) * 0


def a_row_short(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs)[..., :-1, :]


def widened(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs).double()


def narrowed(input: Tensor, weight: Tensor, bias: Tensor, **kwargs: Any) -> Tensor:
    return F.conv2d(input.bfloat16(), weight.bfloat16(), bias.bfloat16(), **kwargs).float()


def one_nan(*args: Any, **kwargs: Any) -> Tensor:
    output = F.conv2d(*args, **kwargs)
    output[0, 0, 0, 0] = torch.nan
    return output


def flipped(input: Tensor, weight: Tensor, bias: Tensor, **kwargs: Any) -> Tensor:
    return F.conv2d(input, weight.flip(-1), bias, **kwargs)


def detached(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs).detach()


def weight_detached(input: Tensor, weight: Tensor, bias: Tensor, **kwargs: Any) -> Tensor:
    return F.conv2d(input, weight.detach(), bias, **kwargs)


def without_bias(input: Tensor, weight: Tensor, bias: Tensor, **kwargs: Any) -> Tensor:
    return F.conv2d(input, weight, None, **kwargs)


def gradient_scaled(*args: Any, **kwargs: Any) -> Tensor:
    output = F.conv2d(*args, **kwargs)
    return output.detach() + 0.999 * (output - output.detach())


def gradient_zero(*args: Any, **kwargs: Any) -> Tensor:
    output = F.conv2d(*args, **kwargs)
    return output.detach() + 0 * output


def input_changed(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output = F.conv2d(input, *args, **kwargs)
    output = output.clone()
    input.data.mul_(2)
    return output


def weight_changed(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output = F.conv2d(input, weight, *args, **kwargs)
    weight.data.add_(1e-6)
    return output


def unwritten(*args: Any, **kwargs: Any) -> Tensor:
    output = F.conv2d(*args, **kwargs)
    buffer = torch.empty_like(output)
    buffer[..., :-1, :] = output[..., :-1, :]
    return buffer


def no_tensor(*args: Any, **kwargs: Any) -> Any:
    return (F.conv2d(*args, **kwargs),)


class Remembered:
    """Answers by the shape alone, from the second call on."""

    def __init__(self) -> None:
        self.answers: dict[torch.Size, Tensor] = {}

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = F.conv2d(input, *args, **kwargs)
        first = self.answers.setdefault(input.shape, output.detach().clone())
        return first + output - output.detach()


class UnwrittenGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return torch.empty_like(gradient)


def gradient_unwritten(*args: Any, **kwargs: Any) -> Tensor:
    answer: Tensor = UnwrittenGradient.apply(F.conv2d(*args, **kwargs))
    return answer


WRONG = {
    zeros: "the output is 0 where",
    a_row_short: r"the output has shape \(2, 4, 7, 8\), not \(2, 4, 8, 8\)",
    widened: r"the output is torch\.float64, not torch\.float32",
    narrowed: "times the admissible error",
    one_nan: r"the output is nan where .* at \[0, 0, 0, 0\]; 1 of 512 elements are wrong",
    flipped: "the output is",
    detached: "the output is cut off from the gradient",
    weight_detached: "no gradient reaches weight",
    without_bias: "as without its bias",
    gradient_scaled: "the gradient of input is",
    gradient_zero: "the gradient of input is 0 where",
    input_changed: "input was changed in place",
    weight_changed: "weight was changed in place",
    unwritten: "the output is nan",
    no_tensor: "the output is of type tuple, not a tensor",
    Remembered(): "the output is",
    gradient_unwritten: "the gradient of input is nan",
}


@pytest.mark.parametrize("implementation", WRONG, ids=lambda each: getattr(each, "__name__", "remembered"))
def test_a_wrong_backend_fails_with_a_sentence(implementation: Callable[..., Any]) -> None:
    result = outcome(implementation)
    assert result.state == "failed"
    assert re.search(WRONG[implementation], result.message), result.message


def test_a_right_one_passes() -> None:
    for case in (SMALL, STRIDED, EMPTY):
        result = outcome(F.conv2d, case)
        assert (result.state, result.message) == ("passed", "")


def test_chance_shows_unless_it_is_declared() -> None:
    numbers = itertools.count()

    def jittered(*args: Any, **kwargs: Any) -> Tensor:
        return F.conv2d(*args, **kwargs) * (1 + 1.2e-7 * (next(numbers) % 3))

    assert outcome(jittered).message == "output differs between two runs on the same data"
    assert outcome(jittered, deterministic=False).state == "passed"


@pytest.mark.parametrize(
    ("deterministic", "once"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_an_answer_cached_by_address_shows(deterministic: bool, once: bool) -> None:
    answers: dict[tuple[int, int], Tensor] = {}

    def cached(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = F.conv2d(input, weight, *args, **kwargs)
        return answers.setdefault((input.data_ptr(), weight.data_ptr()), output)

    backend = Backend("cached", "", load=lambda: {"conv2d": cached}, deterministic=deterministic)
    report = verify(backend, cases={"conv2d": [SMALL]}, once=once)
    message = "the output is that of earlier numbers, which lay in the same memory"
    assert [outcome.message for outcome in report.failures] == [message]


@pytest.mark.parametrize(
    ("deterministic", "once"), [(True, False), (False, False), (True, True), (False, True)]
)
def test_an_output_that_the_next_call_overwrites_shows(deterministic: bool, once: bool) -> None:
    buffers: list[Tensor] = []

    def reusing(*args: Any, **kwargs: Any) -> Tensor:
        output = F.conv2d(*args, **kwargs)
        buffers.append(buffers[0] if buffers else torch.empty_like(output.detach()))
        output.data = buffers[0].copy_(output.detach())
        return output

    backend = Backend("reusing", "", load=lambda: {"conv2d": reusing}, deterministic=deterministic)
    report = verify(backend, cases={"conv2d": [SMALL]}, once=once)
    message = "the output changed when the op was called again: two outputs share their memory"
    assert [outcome.message for outcome in report.failures] == [message]


def test_reading_past_the_strides_shows() -> None:
    def careless(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _, c, h, w = input.shape
        return F.conv2d(input.as_strided(input.shape, (c * h * w, h * w, w, 1)), *args, **kwargs)

    assert outcome(careless, SMALL).state == "passed"
    assert outcome(careless, STRIDED).state == "failed"


def test_an_output_that_is_the_input_shows() -> None:
    result = outcome(lambda input, **_: input, pool("max_pool2d", (1, 1, 2, 2), kernel_size=1))
    assert result.message == "the output shares the memory of input"


def test_padding_that_wins_a_maximum_shows() -> None:
    def padded_with_zeros(input: Tensor, kernel_size: Any, stride: Any, padding: int, **_: Any) -> Tensor:
        return F.max_pool2d(F.pad(input, [padding] * 4), kernel_size, stride)

    case = pool("max_pool2d", (2, 3, 9, 7), kernel_size=3, stride=2, padding=1)
    assert "the output is 0 where -" in outcome(padded_with_zeros, case).message


def test_a_count_of_the_wrong_pixels_shows() -> None:
    def counts_padding(*args: Any, count_include_pad: bool = True, **kwargs: Any) -> Tensor:
        return F.avg_pool2d(*args, **kwargs)

    case = pool("avg_pool2d", (2, 3, 9, 7), kernel_size=3, padding=1, count_include_pad=False)
    assert outcome(counts_padding, case).state == "failed"


def test_a_crash_is_no_mismatch() -> None:
    def raises(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("out\nof luck")

    result = outcome(raises)
    message = f"RuntimeError: out of luck ({__file__}, line {raises.__code__.co_firstlineno + 1})"
    assert (result.state, result.message, result.memory) == ("crashed", message, False)


def test_running_out_of_memory_is_marked() -> None:
    def greedy(*args: Any, **kwargs: Any) -> Tensor:
        return torch.empty(1 << 60)

    result = outcome(greedy)
    assert (result.state, result.memory) == ("crashed", True)


def test_an_answer_where_torch_raises_is_a_failure() -> None:
    def lenient(input: Tensor, weight: Tensor, bias: Any = None, padding: int = 0, **options: Any) -> Tensor:
        return F.conv2d(input, weight, bias, padding=max(padding, 0), **options)

    case = conv2d((2, 3, 8, 8), (4, 3, 3, 3), padding=-1)
    result = check_refusal(backend(conv2d=lenient), OPS["conv2d"], case, "float32", "cpu")
    assert result.state == "failed"
    assert result.message.startswith("an answer was given where torch raises RuntimeError: ")
    assert "padding" in result.message
    assert check_refusal(backend(conv2d=F.conv2d), OPS["conv2d"], case, "float32", "cpu").state == "passed"


ONLY = {needs: conv2d((2, 3, 6, 7), (4, 3, 3, 3), padding=1, needs=needs) for needs in (
    ("input",), ("weight",), ("bias",), ("input", "weight"), (),
)}  # fmt: skip


@pytest.mark.parametrize("needs", ONLY, ids=" and ".join)
def test_gradients_where_only_some_are_needed(needs: tuple[str, ...]) -> None:
    """Each subset is answered as with all of them; what is wrong for one subset alone is caught there."""

    def wrong_for_this_subset(*args: Any, **kwargs: Any) -> Tensor:
        tensors = {"input": kwargs["input"], "weight": kwargs["weight"], "bias": kwargs["bias"]}
        asked = tuple(name for name, tensor in tensors.items() if tensor.requires_grad)
        output = F.conv2d(*args, **kwargs)
        return output.detach() + 2 * (output - output.detach()) if asked == needs else output

    def unasked(input: Tensor, weight: Tensor, bias: Tensor, **kwargs: Any) -> Tensor:
        return F.conv2d(input, weight, bias + torch.zeros(1, requires_grad=True), **kwargs)

    assert outcome(F.conv2d, ONLY[needs]).state == "passed"
    if needs:
        found = outcome(wrong_for_this_subset, ONLY[needs])
        assert found.message.startswith(f"the gradient of {needs[0]} is")
        assert outcome(wrong_for_this_subset, SMALL).state == "passed"
    else:
        assert (
            outcome(unasked, ONLY[needs]).message == "the output has a gradient where no argument needs one"
        )


def test_the_answer_under_no_grad_is_checked_too() -> None:
    def another(*args: Any, **kwargs: Any) -> Tensor:
        return F.conv2d(*args, **kwargs) * (1.0 if torch.is_grad_enabled() else 1.01)

    def escaping(*args: Any, **kwargs: Any) -> Tensor:
        with torch.enable_grad():
            return F.conv2d(*args, **kwargs)

    def widened(*args: Any, **kwargs: Any) -> Tensor:
        output = F.conv2d(*args, **kwargs)
        return output if torch.is_grad_enabled() else output.double()

    assert outcome(another, SMALL).state == "passed"
    assert outcome(another, ONLY[()]).message.startswith("the output under no_grad is")
    assert outcome(escaping, ONLY[()]).message == "the output has a gradient under no_grad"
    message = "the output under no_grad is torch.float64, not torch.float32"
    assert outcome(widened, ONLY[()]).message == message


class Hasty(torch.autograd.Function):
    """conv2d whose backward helps itself to a setting that is everybody's."""

    @staticmethod
    def forward(context: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        torch.set_float32_matmul_precision("medium")
        return gradient


def test_a_backward_may_change_no_setting_either() -> None:
    def conv2d(*args: Any, **kwargs: Any) -> Any:
        return Hasty.apply(F.conv2d(*args, **kwargs))

    found = outcome(conv2d)
    assert found.state == "failed"
    assert found.message.startswith("the precision of float32 products was changed from cuda matmul ieee, ")
    assert " to cuda matmul tf32, " in found.message
    assert torch.get_float32_matmul_precision() == "highest"


class Once(torch.autograd.Function):
    """conv2d with a backward whose own gradient is wrong."""

    factor = 1.0

    @staticmethod
    def forward(context: Any, input: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(input, weight)
        return F.conv2d(input, weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = context.saved_tensors
        of_input = torch.nn.grad.conv2d_input(input.shape, weight, gradient)
        of_weight = torch.nn.grad.conv2d_weight(input, weight.shape, gradient)
        slip = Once.factor * (weight - weight.detach()).sum()  # zero, with a gradient
        return of_input + slip, of_weight


@pytest.mark.parametrize(("factor", "state"), [(0.0, "passed"), (0.01, "failed")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_gradients_where_they_are_declared(
    factor: float, state: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Once, "factor", factor)
    case = conv2d((2, 3, 6, 7), (4, 3, 3, 3), bias=False, order=2)

    def twice(input: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = Once.apply(input, weight)
        return output

    first = replace(case, order=1)
    declared = replace(backend(conv2d=twice), second_order=("conv2d",))
    assert check(declared, OPS["conv2d"], first, dtype, "cpu").state == "passed"
    found = check(declared, OPS["conv2d"], case, dtype, "cpu")
    assert found.state == state, found.message
    if state == "failed":
        assert found.message.startswith("the second-order gradient of weight is")
    undeclared = check(backend(conv2d=twice), OPS["conv2d"], case, dtype, "cpu")
    assert (undeclared.state, undeclared.message) == (
        "unsupported",
        "gradients of gradients are not among its claims (second_order)",
    )


def test_a_first_order_backend_that_claims_second_order_is_caught() -> None:
    class First(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, input: Tensor, weight: Tensor) -> Tensor:
            context.save_for_backward(input, weight)
            return F.conv2d(input, weight)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            input, weight = context.saved_tensors
            return (
                torch.nn.grad.conv2d_input(input.shape, weight, gradient),
                torch.nn.grad.conv2d_weight(input, weight.shape, gradient),
            )

    planted = replace(
        backend(conv2d=lambda input, weight: First.apply(input, weight)), second_order=("conv2d",)
    )
    case = conv2d((2, 3, 6, 7), (4, 3, 3, 3), bias=False, order=2)
    assert check(planted, OPS["conv2d"], case, "float32", "cpu").state in ("failed", "crashed")


def test_an_incoming_gradient_that_is_changed_shows() -> None:
    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, output: Tensor) -> Tensor:
            return output.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            kept = gradient.clone()
            gradient.mul_(2)
            return kept

    def greedy(*args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = Greedy.apply(F.conv2d(*args, **kwargs))
        return output

    assert outcome(greedy).message == "the incoming gradient was changed in place"


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last"])
def test_an_incoming_gradient_that_is_a_view_is_read_right(layout: Any) -> None:
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, output: Tensor) -> Tensor:
            return output.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            _, c, h, w = gradient.shape
            return gradient.as_strided(gradient.shape, (c * h * w, h * w, w, 1)).clone()

    def careless(*args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = Careless.apply(F.conv2d(*args, **kwargs))
        return output

    assert outcome(careless).state == "passed"
    assert "the gradient of " in outcome(careless, replace(SMALL, grad_output_layout=layout)).message


def test_a_report_tells_the_states_apart() -> None:
    def fussy(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        if weight.shape[-1] == 1:
            raise Unsupported("1x1 kernels")
        if input.shape[0] == 0:
            raise RuntimeError("empty")
        return F.conv2d(input, weight, *args, **options) * (2 if input.shape[0] == 3 else 1)

    cases = [SMALL, STRIDED, EMPTY, conv2d((1, 1, 1, 1), (1, 1, 1, 1)), conv2d((3, 3, 5, 5), (4, 3, 3, 3))]
    report = verify(backend(conv2d=fussy), cases={"conv2d": cases})
    assert [outcome.state for outcome in report.outcomes] == [
        "passed",
        "passed",
        "crashed",
        "unsupported",
        "failed",
    ]
    assert not report.passed
    assert [outcome.state for outcome in report.failures] == ["crashed", "failed"]
    assert 0 < report.max_error < 1e-6


def test_a_backend_that_declines_everything_has_not_passed() -> None:
    def declines(*args: Any, **options: Any) -> Tensor:
        raise Unsupported("nothing at all")

    for planted in (backend(conv2d=declines), backend()):
        report = verify(planted, cases={"conv2d": [SMALL]})
        assert not report.passed
        assert report.failures == ()
    offered = {outcome.op: outcome.message for outcome in verify(backend()).outcomes}
    assert offered == {name: "not offered" for name, op in OPS.items() if op.base is None}


def test_an_unknown_backend() -> None:
    with pytest.raises(UnknownName, match="did you mean 'im2col'"):
        verify("im2co")
