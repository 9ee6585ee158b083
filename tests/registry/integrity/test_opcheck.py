"""`torch.compile` takes a routed op whole, or the backend says that it does not; `opcheck` of registered ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convbench.registry import OPS, Backend, Unsupported, derived_backward, verify
from convbench.registry.conformance.report import Outcome
from convbench.registry.integrity.opcheck import check_torch, registered_calls

pytestmark = pytest.mark.usefixtures("one_thread")


def backend(op: Callable[..., Any], **claims: Any) -> Backend:
    return Backend("planted", "for these tests", lambda: {"conv2d": op}, **claims)


def outcomes(op: Callable[..., Any], **claims: Any) -> list[Outcome]:
    return list(check_torch(backend(op, **claims), "conv2d", "float32", "cpu"))


def compiled(op: Callable[..., Any], **claims: Any) -> Outcome:
    return next(outcome for outcome in outcomes(op, **claims) if outcome.kind == "compile")


def breaks(*args: Any, **options: Any) -> Tensor:
    output = F.conv2d(*args, **options)
    torch._dynamo.graph_break()
    return output


def through_numpy_and_back(input: Tensor, *args: Any, **options: Any) -> Tensor:
    if float(input.sum()) > 1e30:  # a number that no graph knows
        raise ValueError("too large")
    return F.conv2d(input, *args, **options)


def wrong_when_compiled(*args: Any, **options: Any) -> Tensor:
    output = F.conv2d(*args, **options)
    return output * 1.01 if torch.compiler.is_compiling() else output


def refuses_groups(input: Tensor, weight: Tensor, *args: Any, groups: int = 1, **options: Any) -> Tensor:
    if groups > 1:
        raise Unsupported("groups")
    return F.conv2d(input, weight, *args, **options)


@pytest.mark.parametrize("op", [breaks, through_numpy_and_back])
def test_a_break_in_the_graph_is_a_failure_unless_it_is_declared(op: Callable[..., Any]) -> None:
    found = compiled(op)
    assert found.state == "crashed"
    assert found.cause.endswith("declare compiles=False")
    assert found.case.startswith("torch.compile of conv2d(")
    declared = compiled(op, compiles=False)
    assert (declared.state, declared.message) == (
        "unsupported",
        "the backend says that it cannot be compiled (compiles=False)",
    )


def test_compiled_answers_are_held_against_the_reference() -> None:
    found = compiled(wrong_when_compiled)
    assert (found.state, "the output is" in found.message) == ("failed", True)


def test_a_case_that_the_backend_takes_is_compiled() -> None:
    found = compiled(refuses_groups)
    assert found.state == "passed", found.message
    assert "groups" not in found.case


def test_the_report_has_a_state_for_it() -> None:
    states = {}
    for name, op, claims in (
        ("compiles", F.conv2d, {}),
        ("breaks", breaks, {}),
        ("declared", breaks, {"compiles": False}),
    ):
        report = verify(backend(op, **claims), generated=0)
        states[name] = (report.compiles, report.passed)
    assert states == {
        "compiles": ("passed", True),
        "breaks": ("crashed", False),
        "declared": ("unsupported", True),
    }
    assert verify(backend(F.conv2d), cases={"conv2d": []}).compiles is None


def registered(name: str, fake: Callable[..., Any] | None, differentiable: bool = True) -> Callable[..., Any]:
    """conv2d as an op of a library of torch's, and a function that calls it."""

    @torch.library.custom_op(f"convbench_tests::{name}", mutates_args=())
    def op(input: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        return F.conv2d(input, weight, None, stride, padding, 1, groups)

    if fake:
        op.register_fake(fake)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        stride, padding, groups = ctx.options
        options = (stride, padding, 1, groups)
        return (
            torch.nn.grad.conv2d_input(input.shape, weight, gradient, *options),
            torch.nn.grad.conv2d_weight(input, weight.shape, gradient, *options),
            None,
            None,
            None,
        )

    if differentiable:
        op.register_autograd(backward, setup_context=setup)

    def conv2d(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if dilation != 1 or not isinstance(stride, int) or not isinstance(padding, int):
            raise Unsupported("pairs")
        output: Tensor = op(input, weight, stride, padding, groups)
        return output if bias is None else output + bias[:, None, None]

    return conv2d


def like_conv2d(input: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    return F.conv2d(input, weight, None, stride, padding, 1, groups)


def too_small(input: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    return like_conv2d(input, weight, stride, padding, groups)[..., :-1]


def opchecks(op: Callable[..., Any]) -> list[Outcome]:
    return [outcome for outcome in outcomes(op, compiles=False) if outcome.kind == "opcheck"]


def test_registered_ops_are_found_and_checked() -> None:
    (found,) = opchecks(registered("right", like_conv2d))
    assert (found.state, found.message) == ("passed", "")
    assert found.case == "opcheck of convbench_tests::right"
    assert opchecks(F.conv2d) == []


def test_a_fake_of_another_shape_is_caught() -> None:
    (found,) = opchecks(registered("misshapen", too_small))
    assert found.state == "failed"
    assert "shape" in found.message.lower()


def test_an_op_without_a_fake_is_caught() -> None:
    (found,) = opchecks(registered("unknown_shape", None))
    assert found.state == "failed"


def test_what_derived_backward_registers_is_checked() -> None:
    @derived_backward
    def derived(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    compile_outcome, found = outcomes(derived)
    assert (compile_outcome.kind, compile_outcome.state) == ("compile", "passed")
    assert (found.kind, found.state, found.message) == ("opcheck", "passed", "")
    assert found.case.startswith("opcheck of convbench::derived_")


def test_the_arguments_of_a_registered_op_are_copies() -> None:
    arguments = {"input": torch.randn(1, 1, 3, 3), "weight": torch.randn(1, 1, 2, 2)}
    ((_, (input, weight, *numbers), options),) = registered_calls(
        registered("copied", like_conv2d), arguments
    ).values()
    assert (numbers, options) == ([1, 0, 1], {})
    for copy, name in ((input, "input"), (weight, "weight")):
        assert torch.equal(copy, arguments[name])
        assert copy.data_ptr() != arguments[name].data_ptr()


def test_an_answer_alone_is_a_pass() -> None:
    """What was checked besides answers cannot make up for none."""
    report = verify(backend(F.conv2d), generated=0)
    cases_gone = tuple(outcome for outcome in report.outcomes if outcome.kind != "case")
    assert {outcome.kind for outcome in cases_gone} == {"refusal", "compile"}
    assert all(outcome.state == "passed" for outcome in cases_gone)
    assert report.passed
    assert not replace(report, outcomes=cases_gone).passed


def test_every_op_has_a_case_to_compile() -> None:
    """And a fused one besides, of which torch's own are the definition."""
    whole = Backend("whole", "", lambda: {name: op.reference for name, op in OPS.items()})
    for op in OPS:
        (found,) = check_torch(whole, op, "float32", "cpu")
        assert found.kind == "compile"
        assert found.state == "passed"
