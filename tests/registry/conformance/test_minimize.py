"""A failing case is shrunk to the smallest one that fails, and its Python shows the failure again."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import Install
from convbench.registry import OPS, Backend, verify
from convbench.registry.conformance.cases import Case, conformance_cases, conv2d, pool
from convbench.registry.conformance.minimize import literal, shrink, simpler
from convbench.registry.conformance.random_cases import generated_cases
from convbench.registry.conformance.report import Outcome
from convbench.registry.conformance.verify import check

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_late")


def planted(wrong: Callable[..., bool]) -> Backend:
    """Twice the answer where the call is `wrong`."""

    def doubled(name: str) -> Callable[..., Tensor]:
        def op(*tensors: Any, **arguments: Any) -> Tensor:
            output: Tensor = OPS[name].reference(*tensors, **arguments)
            return output * 2 if wrong(**arguments) else output

        return op

    return Backend("planted", "for these tests", lambda: {name: doubled(name) for name in OPS})


def shrunk(wrong: Callable[..., bool], case: Case) -> str:
    backend = planted(wrong)
    (outcome,) = verify(backend, dtypes=["float32"], cases={case.op: [case]}, shrink=True).outcomes
    assert outcome.state == "failed"
    return outcome.case


def stride_of(arguments: dict[str, Any]) -> tuple[int, int]:
    stride = arguments.get("stride") or 1
    return (stride, stride) if isinstance(stride, int) else stride


LARGE = conv2d(
    (3, 8, 14, 13),
    (12, 4, 3, 5),
    stride=(3, 2),
    padding=(1, 4),
    dilation=(1, 2),
    groups=2,
    layout="strided",
    weight_layout="transposed",
    grad_output_layout="expanded",
)
BUGS: dict[str, tuple[Callable[..., bool], str]] = {
    "odd widths with stride 2": (
        lambda input, weight, **rest: input.shape[3] % 2 == 1 and stride_of(rest)[1] == 2,
        "conv2d(input=(1, 1, 1, 1), weight=(1, 1, 1, 1), stride=2)",
    ),
    "odd widths of 5 and more, and groups": (
        lambda input, weight, groups=1, **rest: (
            input.shape[3] % 2 == 1 and input.shape[3] >= 5 and groups > 1
        ),
        "conv2d(input=(1, 2, 1, 5), weight=(2, 1, 1, 1), groups=2)",
    ),
    "kernels wider than 3": (
        lambda input, weight, **rest: weight.shape[3] > 3,
        "conv2d(input=(1, 1, 1, 4), weight=(1, 1, 1, 4))",
    ),
    "a bias": (
        lambda input, weight, bias=None, **rest: bias is not None,
        "conv2d(input=(1, 1, 1, 1), weight=(1, 1, 1, 1), bias=(1,))",
    ),
    "several images in a view": (
        lambda input, weight, **rest: len(input) > 1 and not input.is_contiguous(),
        "conv2d(input=(2, 1, 1, 1), weight=(1, 1, 1, 1)), strided input",
    ),
    "everything": (lambda **rest: True, "conv2d(input=(1, 1, 1, 1), weight=(1, 1, 1, 1))"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_what_is_left_is_what_matters(bug: str) -> None:
    wrong, expected = BUGS[bug]
    assert shrunk(wrong, LARGE) == expected


def test_pooling_shrinks_too() -> None:
    case = pool(
        "avg_pool2d",
        (3, 4, 9, 11),
        kernel_size=(3, 4),
        stride=2,
        padding=1,
        ceil_mode=True,
        divisor_override=5,
    )
    assert (
        shrunk(lambda input, ceil_mode=False, **rest: ceil_mode and input.shape[3] > 4, case)
        == "avg_pool2d(input=(1, 1, 1, 5), kernel_size=1, ceil_mode=True)"
    )


def test_a_failure_is_not_taken_for_a_crash() -> None:
    """Narrow images crash and wide ones fail: a case that fails shrinks to the smallest that fails."""

    def op(input: Tensor, weight: Tensor, *args: Any, **rest: Any) -> Tensor:
        if input.shape[3] < 6:
            raise RuntimeError("too narrow")
        return F.conv2d(input, weight, *args, **rest) * 2

    backend = Backend("planted", "", lambda: {"conv2d": op})
    (outcome,) = verify(backend, dtypes=["float32"], cases={"conv2d": [LARGE]}, shrink=True).outcomes
    assert (outcome.state, outcome.case) == ("failed", "conv2d(input=(1, 1, 1, 6), weight=(1, 1, 1, 1))")
    assert outcome.shrunk_from == str(LARGE)


def test_one_case_is_shrunk_for_each_state_of_an_op() -> None:
    cases = {op: conformance_cases(op)[-25:] for op in OPS}
    report = verify(planted(lambda **rest: True), dtypes=["float32"], cases=cases, shrink=True)
    by_op = [[outcome.shrunk_from for outcome in report.failures if outcome.op == op] for op in OPS]
    assert [sum(map(bool, shrunk_from)) for shrunk_from in by_op] == [1] * len(OPS)
    assert all(len(shrunk_from) > 20 for shrunk_from in by_op)


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if not op.chain])
def test_every_step_is_simpler_and_none_leads_back(op: str) -> None:
    for case in [*conformance_cases(op), *generated_cases(op, 40)]:
        steps = 0
        while True:
            candidates = list(simpler(case))
            assert case not in candidates
            if not candidates:
                break
            case = candidates[-1]
            steps += 1
            assert steps < 3000
        assert literal(case).count(",") <= 20
        assert {size for name, shape in case.shapes for size in shape} <= {0, 1}


def test_every_chain_is_one_stage_of_one_image_at_last() -> None:
    for case in [*conformance_cases("sequential"), *generated_cases("sequential", 40)]:
        while candidates := list(simpler(case)):
            assert case not in candidates
            case = candidates[-1]
        (layer,) = dict(case.options)["layers"]
        assert layer[0].startswith("conv2d_activation")
        assert dict(case.shapes)["input"][0] <= 1
        assert [name for name, _ in case.shapes] == ["input", "weight0"]


def always_failing(case: Case) -> Outcome:
    return Outcome(case.op, str(case), "float32", "cpu", "failed")


def test_tries_are_bounded() -> None:
    tried: list[Case] = []

    def barely(case: Case) -> Outcome:
        tried.append(case)
        return Outcome(case.op, str(case), "float32", "cpu", "passed")

    assert shrink(always_failing(LARGE), LARGE, barely, tries=5).case == str(LARGE)
    assert len(tried) == 5


def test_time_is_bounded() -> None:
    clock = itertools.count(0.0, 4.0)
    found = shrink(always_failing(LARGE), LARGE, always_failing, seconds=10.0, clock=lambda: next(clock))
    assert found.case == "conv2d(input=(3, 8, 14, 13), weight=(12, 4, 3, 5), bias=(12,), stride=(3, 2), " + (
        "padding=(1, 4), dilation=(1, 2), groups=2), expanded incoming gradient"
    )


PLUGIN = """
    import torch.nn.functional as F
    from convbench.registry import Backend, hookimpl

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        wide = input.shape[3] % 2 == 1 and stride in (2, (2, 2)) and input.shape[3] >= 5
        return output * 1.001 if wide else output

    @hookimpl
    def convbench_backends():
        yield Backend("odd", "wrong for odd widths with stride 2", lambda: {"conv2d": conv2d})
"""


def test_the_printed_python_shows_the_failure(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("odd", PLUGIN)
    report = verify("odd", generated=10, seed=4, shrink=True)
    (outcome,) = (outcome for outcome in report.failures if outcome.shrunk_from)
    assert outcome.case == "conv2d(input=(1, 1, 1, 5), weight=(1, 1, 1, 1), stride=2)"
    assert (
        "case = Case('conv2d', (('input', (1, 1, 1, 5)), ('weight', (1, 1, 1, 1))), options=(('stride', 2),))"
        in (outcome.reproduction)
    )
    exec(outcome.reproduction, {})
    printed = capsys.readouterr().out
    assert "state='failed'" in printed
    message = re.sub(r"\W+", " ", outcome.message)
    assert message in re.sub(r"\W+", " ", printed)  # the very same numbers


@pytest.mark.parametrize("op", OPS)
def test_a_literal_is_the_case(op: str) -> None:
    for case in [*conformance_cases(op), *generated_cases(op, 50)]:
        assert eval(literal(case), {"Case": Case}) == case


def test_what_torch_refuses_is_no_smaller_case() -> None:
    def fails_on_what_torch_takes(**arguments: Any) -> Tensor:
        return F.conv2d(**arguments) * 2  # raises for the rest, which would be a crash

    case = conv2d((1, 4, 3, 3), (4, 2, 3, 3), groups=2)
    backend = Backend("planted", "", lambda: {"conv2d": fails_on_what_torch_takes})
    outcome = check(backend, OPS["conv2d"], case, "float32", "cpu")
    tried: list[Case] = []

    def noting(smaller: Case) -> Outcome:
        tried.append(smaller)
        return check(backend, OPS["conv2d"], smaller, "float32", "cpu")

    shrink(outcome, case, noting)
    for smaller in tried:
        F.conv2d(**smaller.arguments(torch.float32, torch.device("cpu"), seed=0))
