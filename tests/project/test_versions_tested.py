"""The versions that CONTRIBUTING.md lists are those of the workflow, and reach what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
JOBS = [
    tuple(re.findall(r': "?([\w.-]+)', line))
    for line in re.findall(r"^ +- \{ (machine: .*) \}$", WORKFLOW, re.M)
]


def test_the_table_and_the_workflow_agree() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| machine \| Python \| torch \| pandas \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", page)
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()]
    assert rows == JOBS
    assert len(rows) >= 4


def test_the_oldest_and_the_newest_are_among_them() -> None:
    machines, pythons, torches, pandas = (set(column) for column in zip(*JOBS, strict=True))
    named = {found[1] for line in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", line))}
    assert pythons == named
    assert f">={min(pythons)}" == PROJECT["requires-python"]
    oldest = dict(re.fullmatch(r"([\w-]+)>=(.*)", each).groups() for each in PROJECT["dependencies"])  # type: ignore[union-attr]
    assert torches == {oldest["torch"], "newest"}
    assert pandas == {oldest["pandas"], "3"}
    assert any(machine.endswith("-arm") for machine in machines)


def test_the_workflow_hands_its_versions_to_pip() -> None:
    for name in ("pandas", "torch"):
        assert f'echo "{name}==${{{{ matrix.{name} }}}}.*" >' in WORKFLOW
    assert 'echo "PIP_CONSTRAINT=$RUNNER_TEMP/constraints.txt" >> "$GITHUB_ENV"' in WORKFLOW
    assert WORKFLOW.index("PIP_CONSTRAINT") < WORKFLOW.index("run: make test")
