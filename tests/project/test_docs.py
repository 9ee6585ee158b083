"""What the documents say is so: generated parts are fresh, examples run, commands parse, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from convbench.registry import discover, hookspecs
from convbench.registry.cli.main import build
from convbench.results.analysis.flags import FLAGS
from convbench.results.schema import STATUSES
from readme import README, ROOT, block, blocks

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("[a-z]*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]


def execute(source: str, directory: Path) -> str:
    """What a Python example prints, run as a script of a user's."""
    script = directory / "example.py"
    script.write_text(source, encoding="utf-8")
    # one thread: two of them wait long for each other where something else is running
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_generated_text_is_fresh() -> None:
    command = [sys.executable, ROOT / "scripts" / "refresh_readme.py", "--check"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.exhaustive
def test_backends_under_any_model_as_the_readme_has_it(tmp_path: Path) -> None:
    printed = execute(block("python", "use_backend(mine"), tmp_path).splitlines()
    assert "'lenet'" in printed[0]
    assert printed[1:] == ["conv2d 2/2, avg_pool2d 2/2", "torch.Size([1, 8, 7, 7])", "True"]


@pytest.mark.exhaustive
def test_a_suite_from_python_as_the_readme_has_it(tmp_path: Path) -> None:
    printed = execute(block("python", "load_suite"), tmp_path)
    assert "step_ms_median" in printed
    assert (tmp_path / "mine" / "results.csv").exists()


def command_lines() -> list[str]:
    lines = [line.partition("  #")[0] for text in blocks("bash") for line in text.splitlines()]
    return [line for line in lines if line.startswith("convbench ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_of_the_readme_parses(line: str) -> None:
    group = build(discover(installed=()))
    _, name, *arguments = shlex.split(line)
    with click.Context(group, obj=discover(installed=())) as context:
        group.commands[name].make_context(name, arguments, parent=context)


def test_the_readme_opens_with_a_picture_and_the_shortest_commands() -> None:
    assert re.findall(r"^make (\w+)", blocks("bash")[0], flags=re.MULTILINE) == ["quick", "lenet", "test"]
    assert README.index("![") < README.index("```bash")


def test_the_readme_is_short() -> None:
    written = re.sub(r"<!-- table: .*?<!-- end of table -->", "", README, flags=re.DOTALL)
    assert len(written.split()) <= 1150  # and the table some more: how much, its backends decide


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert "(docs/README.md)" in README
    for guide in ROOT.glob("docs/*.md"):
        assert guide.name == "README.md" or f"({guide.name})" in index, guide


def test_every_option_of_a_run_is_in_a_group_of_its_help() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = text.partition("$ convbench run --help")[2].partition("```")[0]
    other = section.partition("Other options:")[2]
    assert re.findall(r"--[\w-]+", other) == ["--help"]


def test_every_goal_of_make_that_is_written_about_is_there() -> None:
    goals = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        written = set(
            re.findall(r"`make (\w+)`|^make (\w+) +#", document.read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert {first or second for first, second in written} <= goals, document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+?)\)", prose)
    for link in links:
        assert "://" in link or (document.parent / link).exists(), link


TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def test_every_status_and_flag_has_its_advice() -> None:
    for status in STATUSES:
        assert f"| `{status}` |" in TROUBLESHOOTING
    for flag in FLAGS:
        assert f"`{flag}`" in TROUBLESHOOTING


def test_the_messages_that_have_advice_are_those_of_the_code() -> None:
    files = [
        path for room in ("registry", "plugins", "suites", "results") for path in ROOT.glob(f"{room}/**/*.py")
    ]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a text over several lines
    for message in re.findall(r"\*\*`(.+?)`\*\*", TROUBLESHOOTING, flags=re.DOTALL):
        # what stands between names, numbers and dots is the same whatever happened
        for part in re.split(r"\.\.\.|\b[\w-]*\d[\w.]*|[A-Z]{3,}|'", " ".join(message.split())):
            words = part.strip(" :;,()")
            assert len(words) < 10 or words in sources, message


def test_every_hook_is_documented() -> None:
    text = (ROOT / "registry" / "README.md").read_text(encoding="utf-8")
    for name in vars(hookspecs):
        if name.startswith("convbench_"):
            assert f"`{name}" in text
            assert getattr(hookspecs, name).__doc__


def test_the_licence_of_the_data_is_named() -> None:
    assert "Zalando SE" in README
    assert "MIT" in README
