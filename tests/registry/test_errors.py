"""Every error is a sentence, with an exit code that says whose move it is."""

from __future__ import annotations

import re

import pytest

from convbench.registry import AmbiguousName, UnknownName, errors
from convbench.registry.errors import ConvbenchError, choices, listed


def tree(kind: type[ConvbenchError] = ConvbenchError) -> list[type[ConvbenchError]]:
    return [kind, *(grandchild for child in kind.__subclasses__() for grandchild in tree(child))]


def test_the_docstring_shows_the_whole_tree_with_its_exit_codes() -> None:
    written = re.findall(r"^\W*(\w+) +(\d)  ", errors.__doc__ or "", flags=re.MULTILINE)
    ours = [kind for kind in tree() if kind.__module__ == errors.__name__]
    assert sorted(written) == sorted((kind.__name__, str(kind.exit_code)) for kind in ours)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {kind.__name__: kind.exit_code for kind in tree() if kind.exit_code != 2} == {
        "GateFailed": 1,
        "NothingRan": 3,
    }


@pytest.mark.parametrize(
    ("name", "available", "sentence"),
    [
        ("im2co", ["torch", "im2col"], "did you mean 'im2col'? available: im2col, torch"),
        ("LeNet", ["lenet", "mlp"], "did you mean 'lenet'? available: lenet, mlp"),
        ("zzz", ["lenet"], "available: lenet"),
        ("gpu", ["cpu", "cuda"], "did you mean 'cuda'? available: cpu, cuda"),
        ("gpu", ["cpu"], "available: cpu"),
        ("xpu", ["cpu"], "available: cpu"),
        ("cpu:0", ["cpu"], "did you mean 'cpu'? available: cpu"),
        ("fp32", ["float32", "tf32"], "did you mean 'float32'? available: float32, tf32"),
        ("Float", ["float32", "float64"], "did you mean 'float32'? available: float32, float64"),
        ("half", ["float16"], "did you mean 'float16'? available: float16"),
        ("NHWC", ["channels_last"], "did you mean 'channels_last'? available: channels_last"),
        ("lenet", [], "available: none"),
    ],
)
def test_choices(name: str, available: list[str], sentence: str) -> None:
    assert choices(name, available) == sentence


def test_an_error_keeps_what_it_names() -> None:
    unknown = UnknownName("backend", "x", ["b", "a"])
    assert (unknown.kind, unknown.name, unknown.available) == ("backend", "x", ["a", "b"])
    ambiguous = AmbiguousName("backend", "x", ["b", "a"])
    assert (ambiguous.kind, ambiguous.name, ambiguous.packages) == ("backend", "x", ["a", "b"])


def test_a_long_list_of_choices_is_cut() -> None:
    names = [f"family/{number}" for number in range(100)] + ["lenet", "mlp"]
    message = str(UnknownName("architecture", "lenett", names))
    assert "did you mean 'lenet'? available: lenet, mlp and 100 more" in message


def test_a_list_of_a_sentence_never_leaves_out_a_single_word() -> None:
    assert [listed(["a", "b", "c", "d"][:length], 2) for length in range(5)] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b and 2 more",
    ]
