"""Fuzzing with Hypothesis: the same examples in every run, a few in `make test` and many in `make test-all`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conftest import exhaustive

Check = Callable[..., None]


def fuzzed(few: int, many: int, **strategies: SearchStrategy[Any]) -> Callable[[Check], Check]:
    """A test on so many examples of the strategies; it takes no fixtures."""

    def decorate(check: Check) -> Check:
        @pytest.mark.parametrize("examples", [few, exhaustive(many)])
        def test(examples: int) -> None:
            chosen = settings(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            chosen(given(**strategies)(check))()

        test.__doc__ = check.__doc__
        return test

    return decorate


NASTY = [
    *(
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "Infinity",
        "1e400",
        "1e-400",
        "-1",
        "-0.0",
        "0",
        "0.0",
        "+1",
        "1e5",
        "1e",
    ),
    *(
        "1_000",
        "0x10",
        " 1",
        "1 ",
        "1,5",
        "1.5.2",
        "1.",
        ".5",
        "١٢",
        "１２",
        "1\u00a0",
        "True",
        "None",
        "null",
        "#N/A",
    ),
    *(
        "9" * 25,
        "9" * 400,
        "9223372036854775808",
        "9007199254740993",
        "=1+1",
        '"',
        '"a',
        "a\nb",
        "\r",
        "\0",
        "\ufeff",
    ),
    *(
        "é",
        "🙂",
        "a" * 10_000,
        "2026-02-30T00:00:00+00:00",
        "9999-12-31T00:00:00+00:00",
        "time",
        "ok",
        "<b>",
        "../..",
    ),
]
VALUES: list[Any] = [
    *NASTY,
    None,
    True,
    False,
    0,
    -1,
    1,
    2**63,
    10**400,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
]
VALUES += [[], [None], {}, {"a": 1}, [[[]]], ["x"], [1, "x"]]


@st.composite
def edited_text(draw: DrawFn, text: str) -> str:
    """A text with a few characters or lines lost, doubled or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 1, 1, 2, 5, 40, 400])))
        if draw(st.booleans()):  # whole lines
            start, end = text.rfind("\n", 0, start) + 1, text.find("\n", end) + 1
        kept = draw(st.sampled_from(["", text[start:end] * 2, *NASTY[-20:]]) | st.text(max_size=6))
        text = text[:start] + kept + text[max(start, end) :]
    return text


@st.composite
def edited_json(draw: DrawFn, content: Any) -> Any:
    """JSON in which one or two values are others, are left out, or have another name."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 2))):
        node, places = content, []
        while isinstance(node, (dict, list)) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            places.append((node, key))
            node = node[key]
        if not places:
            return content
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "rename"])):
            case "replace":
                parent[key] = draw(st.sampled_from(VALUES))
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(NASTY))] = parent.pop(key)
    return content
