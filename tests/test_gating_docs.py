"""docs/ci.md and its workflow: every option they name exists, and the last step is the gate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convbench.results.commands import compare
from convbench.suites.commands import run

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/ci.md", "docs/comparing.md", ".github/workflows/compare-backends.yml")


@pytest.mark.parametrize("page", PAGES)
def test_every_option_of_its_commands_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    named = 0
    for command in (run, compare):
        known = {option for parameter in command.params for option in parameter.opts}
        for words in re.findall(rf"^[^#\n`]*convbench {command.name} (.*)$", text, re.MULTILINE):
            options = re.findall(r"(?<![\w-])(--[a-z-]+)", words.split("  #")[0])
            named += len(options)
            assert set(options) <= known, words
    assert named or page == "docs/comparing.md"


def test_the_workflow_installs_measures_and_gates_in_one_job() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / PAGES[2]).read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    assert "--against" in scripts[1]
    assert "--fail-if-slower" in scripts[-1]
    assert all("${{" not in script for script in scripts), "an input would be run by the shell"
    assert not any("|| true" in script for script in scripts)
    inputs = workflow[True]["workflow_call"]["inputs"]  # YAML takes `on` for true
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / PAGES[2]).read_text()))
    assert used == set(inputs)
