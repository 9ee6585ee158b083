"""What wrong answers have in common, in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convbench.registry.conformance.diagnosis import LONGEST, crash_message, diagnose

EXACT = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_changed(*index: slice | int) -> Callable[[Tensor], Tensor]:
    def change(exact: Tensor) -> Tensor:
        answer = exact.clone()
        answer[index] = answer[index] * 0.9 + 0.3
        return answer

    return change


EVERY = slice(None)
SYMPTOMS = {
    "it is zero everywhere": torch.zeros_like,
    "it is the same number everywhere": lambda exact: torch.full_like(exact, 0.7),
    "it is 0.5 times what is right, throughout": lambda exact: exact / 2,
    "it is -1 times what is right, throughout": lambda exact: -exact,
    "every element is off by the same share, +2.0e-04 of what is right": lambda exact: exact * 1.0002,
    "it is off by one number in each channel, as without its bias": lambda exact: (
        exact + torch.arange(1.0, 7.0).view(6, 1, 1)
    ),
    "only the last row is wrong": with_changed(EVERY, EVERY, -1),
    "only the first 2 columns are wrong": with_changed(EVERY, EVERY, EVERY, slice(2)),
    "only the last 3 channels are wrong": with_changed(EVERY, slice(3, None)),
    "only the last image is wrong": with_changed(-1),
    "as bfloat16 would be (8 bits)": lambda exact: exact.bfloat16().double(),
    "as float16 and TF32 would be (11 bits)": lambda exact: exact.half().double(),
    "memory that was never written to": lambda exact: exact.index_fill(3, torch.tensor(5), torch.nan),
}


@pytest.mark.parametrize("words", SYMPTOMS)
def test_a_diagnosis_is_found(words: str) -> None:
    answer = SYMPTOMS[words](EXACT)
    wrong = (answer - EXACT).abs().nan_to_num(torch.inf) > 1e-6
    assert words in diagnose("output", answer, EXACT, wrong)


@pytest.mark.parametrize("words", ["only the last filter is wrong", "only the first 2 filters are wrong"])
def test_the_first_axis_of_a_weight_is_its_filters(words: str) -> None:
    chosen = -1 if "last" in words else slice(2)
    answer = with_changed(chosen)(EXACT)
    wrong = (answer - EXACT).abs() > 1e-6
    assert diagnose("gradient of weight", answer, EXACT, wrong) == f": {words}"
    assert diagnose("gradient of input", answer, EXACT, wrong) == f": {words.replace('filter', 'image')}"


@pytest.mark.parametrize("name", ["gradient of weight", "gradient of input"])
def test_no_gradient_lacks_a_bias(name: str) -> None:
    answer = EXACT + torch.arange(1.0, 7.0).view(6, 1, 1)
    wrong = (answer - EXACT).abs() > 1e-6
    assert "bias" in diagnose("output", answer, EXACT, wrong)
    assert diagnose(name, answer, EXACT, wrong) == ""


def test_what_has_no_pattern_gets_no_words() -> None:
    noise = torch.randn(EXACT.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answer = EXACT + noise
    assert diagnose("output", answer, EXACT, (answer - EXACT).abs() > 1e-6) == ""


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 1, 1)])
def test_any_shape_will_do(shape: tuple[int, ...]) -> None:
    exact = torch.ones(shape, dtype=torch.float64)
    assert diagnose("output", exact * 0, exact, exact > 0) == ": it is zero everywhere"
    diagnose("output", exact * 3, exact, exact > 0)
    diagnose("output", exact, exact * 0, exact > 0)


def breaks_the_graph(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x


def raises_while_it_is_traced(x: Tensor) -> Tensor:
    return x @ torch.ones(7)


@pytest.mark.parametrize(
    ("function", "reason"), [(breaks_the_graph, "graph_break"), (raises_while_it_is_traced, "RuntimeError: ")]
)
def test_what_does_not_compile_says_why_and_where(function: Callable[[Tensor], Tensor], reason: str) -> None:
    torch.compiler.reset()
    with pytest.raises(Exception) as raised:  # noqa: PT011 - torch has a type of its own for each
        torch.compile(function, backend="aot_eager", fullgraph=True)(torch.ones(3))
    torch.compiler.reset()
    message = crash_message(raised.value)
    line = function.__code__.co_firstlineno + 1
    assert message.startswith("torch.compile: ")
    assert reason in message
    assert message.endswith(f"({__file__}, line {line})")


def test_a_long_text_is_cut() -> None:
    assert len(crash_message(RuntimeError("x" * 9000))) <= LONGEST + 3
