"""docs/ci.md and its workflow: every option they name exists, and the last step is the gate."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from convbench.results.cli.compare import compare
from convbench.suites.cli.run import run

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "quick_conv"
    version = "1.0"
"""
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


def test_the_base_branch_is_found_in_a_checkout_of_a_pull_request(tmp_path: Path) -> None:
    """As actions/checkout leaves it: no branch of its own, the others' under refs/remotes."""
    pytest.importorskip("hatchling")

    def git(where: Path, *words: str) -> None:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always")
        subprocess.run(["git", *identity, "-C", where, *words], check=True, capture_output=True)

    upstream, checkout = tmp_path / "upstream", tmp_path / "checkout"
    for directory in (upstream, checkout):
        directory.mkdir()
        git(directory, "init", "--initial-branch", "main")
    (upstream / "pyproject.toml").write_text(dedent(PROJECT))
    for branch in ("main", "change"):
        git(upstream, "checkout", "-B", branch)
        (upstream / "quick_conv.py").write_text(f"branch = {branch!r}\n")
        git(upstream, "add", "--all")
        git(upstream, "commit", "--message", branch)
    git(checkout, "fetch", str(upstream), "+refs/heads/*:refs/remotes/origin/*")
    git(checkout, "checkout", "--detach", "origin/change")

    (spec,) = re.findall(r"\$\{BASE:-(.*?)\}", (ROOT / PAGES[2]).read_text())
    spec = spec.replace("$GITHUB_WORKSPACE", str(checkout)).replace("$BASE_REF", "main")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", tmp_path / "site")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, spec], check=True, capture_output=True)
    assert (tmp_path / "site" / "quick_conv.py").read_text() == "branch = 'main'\n"
