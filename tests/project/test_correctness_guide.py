"""docs/correctness.md says what is so: its numbers are those of the code, and its Python runs."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from convbench.registry.conformance import minimize, tolerances
from convbench.registry.conformance.random_cases import POSITIONS
from convbench.registry.conformance.report import Kind, State
from readme import ROOT

GUIDE = ROOT / "docs" / "correctness.md"
TEXT = GUIDE.read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    exec(block, {})
    assert "state='passed'" in capsys.readouterr().out


def test_every_state_and_kind_is_explained() -> None:
    for state in get_args(State):
        assert f"| `{state}` |" in TEXT
    for kind in get_args(Kind):
        assert f"`{kind}`" in WORDS.partition("Each outcome has a kind")[2]


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"λ² = {tolerances.CONFIDENCE**2:.0f} + 2·ln n" in WORDS
    assert f"/ ({tolerances.MARGIN:.0f}·√(K/3)·u·A) is at most 1 + {tolerances.CONFIDENCE:.0f}/√n" in WORDS
    assert f"at most {POSITIONS} positions" in WORDS
    assert f"for {minimize.SECONDS:.0f} seconds or {minimize.TRIES} tries at most" in WORDS


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+?)\)", TEXT):
        assert "://" in link or (GUIDE.parent / link).exists(), link
