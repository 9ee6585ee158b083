"""suites/README.md has a paragraph for every suite that ships, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convbench.registry import discover
from convbench.suites.definitions import convbench_suites

README = Path(__file__).parents[2] / "suites" / "README.md"
SHIPPED = [path.stem for path in convbench_suites()]


def paragraphs() -> dict[str, str]:
    _, *parts = re.split(r"^### (.+)\n", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_suite_has_its_paragraph_and_is_registered() -> None:
    assert sorted(paragraphs()) == sorted(SHIPPED)
    assert set(SHIPPED) <= set(discover().suites)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_paragraph_asks_a_question_and_says_how_long_it_takes_and_what_to_look_at(name: str) -> None:
    text = " ".join(paragraphs()[name].split())
    assert re.match(r"\*[^*]+\?\*", text), "it starts with the question, in italics"
    assert f"`convbench run --suite {name}`" in text
    assert re.search(r"takes [^.]*minutes?\b", text)
    assert re.search(r"\b(Look|Put) ", text)
