"""docs/chapter.md says what its code outputs, and what makes it does find what is stale."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from convbench.registry import discover

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_chapter.py"
GUIDE = ROOT / "docs" / "chapter.md"
PICTURES = ROOT / "docs" / "pictures"


@pytest.fixture
def make_chapter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("make_chapter")


@pytest.mark.exhaustive
def test_the_guide_is_not_stale() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_suite_and_file_that_the_guide_names_exists() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert set(re.findall(r"convbench run --suite (\w+)", text)) <= set(discover().suites)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", prose):
        assert (GUIDE.parent / link).exists(), link


def test_every_picture_is_shown_and_small() -> None:
    pictures = sorted(PICTURES.glob("*.png"))
    documents = [ROOT / "README.md", *GUIDE.parent.glob("*.md")]
    texts = "\n".join(document.read_text(encoding="utf-8") for document in documents)
    shown = re.findall(r"^!\[[^\]]+\]\((?:docs/)?pictures/(.+)\)$", texts, re.MULTILINE)
    assert [path.name for path in pictures] == sorted(shown)
    assert all(path.stat().st_size < 100_000 for path in pictures)


def made(make_chapter: ModuleType, path: Path, text: str) -> tuple[str, list[str]]:
    path.write_text(text, encoding="utf-8")
    outcome = make_chapter.make(path, write=True)
    return outcome.text, outcome.stale


def test_outputs_are_put_in_their_place(make_chapter: ModuleType, tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    before = "## 1\n\n```python\nx = 2\n```\n\nText.\n\n```python\nprint(x)\nx + 1\n```\n"
    after = before + "\n```text\n2\n3\n```\n"
    text, stale = made(make_chapter, guide, before)
    assert text == after
    assert stale[0].startswith("guide.md:9: ")
    assert made(make_chapter, guide, after) == (after, [])
    assert made(make_chapter, guide, after.replace("2\n3", "2\n4"))[0] == after
    silent = "## 1\n\n```python\nx = 2\n```\n"
    assert made(make_chapter, guide, silent + "\n```text\n2\n```\n")[0] == silent


def test_a_section_starts_anew(make_chapter: ModuleType, tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    with pytest.raises(make_chapter.GuideError, match=r"guide\.md:7: NameError: name 'x'"):
        made(make_chapter, guide, "## 1\n\n```python\nx = 2\n```\n## 2\n```python\nx\n```\n")
    draw = "```python\nimport torch\ntorch.rand(1).item()\n```\n"
    text, _ = made(make_chapter, guide, f"## 1\n{draw}## 2\n{draw}")
    first, second = re.findall(r"```text\n(.+)\n", text)
    assert first == second


def test_a_command_is_run_and_a_failing_one_is_an_error(make_chapter: ModuleType, tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    text, _ = made(make_chapter, guide, "```console\n$ convbench list suites\n```\n")
    assert re.search(r"^```text\n.*^edges +\w+.*^```$", text, re.MULTILINE | re.DOTALL)
    for command in ("$ convbench summary lent", "$ rm chapter.md"):
        with pytest.raises(make_chapter.GuideError, match=r"guide\.md:1: "):
            made(make_chapter, guide, f"```console\n{command}\n```\n")


@pytest.mark.parametrize(
    ("mode", "before", "after", "same"),
    [
        ("", "loss 0.250\n", "loss 0.251\n", False),
        ("close", "loss 1.25, epoch 4\n", "loss 1.30, epoch 4\n", True),
        ("close", "loss 1.25\n", "loss 1.50\n", False),
        ("close", "loss 1.25\n", "lost 1.25\n", False),
        ("close", "loss 1.25\n", "loss 1.25 0.3\n", False),
        ("machine", "┃ torch │  1,200 │\n┃ loops │ 9 │\n", "┃ loops │ 12 │\n┃ torch │ 801.5 │\n", True),
        ("machine", "torch 12 ok\n", "torch 12 budget\n", False),
    ],
)
def test_what_agrees(make_chapter: ModuleType, mode: str, before: str, after: str, same: bool) -> None:
    assert make_chapter.agrees(mode, before, after) is same


def test_a_stale_picture_is_found(make_chapter: ModuleType, tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    code = "```python\nimport torch\nseen = {'once': torch.ones(8, 8), 'often': torch.ones(8, 8)}\n```\n"
    text = f"{code}\n![counts](pictures/looks.png)\n"
    assert "no such file" in made(make_chapter, guide, text)[1][0]
    assert made(make_chapter, guide, text) == (text, [])
    other = text.replace("ones(8, 8)}", "full((8, 8), 9.0)}")
    assert re.search(r"looks\.png is stale: \d+\.\d% of its pixels", made(make_chapter, guide, other)[1][0])
    with pytest.raises(make_chapter.GuideError, match="looks draws seen, which no block before it made"):
        made(make_chapter, guide, "![counts](pictures/looks.png)\n")
    with pytest.raises(make_chapter.GuideError, match="has no 'birds'"):
        made(make_chapter, guide, "![birds](pictures/birds.png)\n")
