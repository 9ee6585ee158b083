"""docs/cluster.md: its scripts parse, its commands exist, and Ray stays out of all else."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from convbench.registry import discover
from convbench.registry.cli.main import build
from convbench.suites.cluster.connection import CPU_SLOT

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
CODE = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)
SCRIPTS = [text for language, text in CODE if language == "bash"]
COMMANDS = [
    line.strip().partition("#")[0]
    for script in SCRIPTS
    for line in script.replace("\\\n", " ").splitlines()
    if "convbench " in line.partition("#")[0]
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_convbenchs(line: str) -> None:
    words = shlex.split(line)
    arguments = words[words.index("convbench") + 1 :] if "--" not in words else words[words.index("--") + 2 :]
    command = build(discover())
    context = command.make_context("convbench", list(arguments), resilient_parsing=True)
    name, found, rest = command.resolve_command(context, arguments)
    assert found is not None
    assert name is not None
    found.make_context(name, rest, parent=context)


def test_every_slot_is_offered_under_its_name() -> None:
    offers = re.findall(r"--resources='(.*?)'", GUIDE)
    assert offers
    assert all(json.loads(offer) == {CPU_SLOT: 1} for offer in offers)
    (cluster,) = (yaml.safe_load(text) for language, text in CODE if language == "yaml")
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    assert json.loads(json.loads(workers["rayStartParams"]["resources"])) == {CPU_SLOT: 1}
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]


def test_ray_is_imported_by_the_cluster_and_only_within_functions() -> None:
    for path in [
        path for room in ("registry", "plugins", "suites", "results") for path in (ROOT / room).rglob("*.py")
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "ray" for name in names):
                assert path.parent.name == "cluster", path
                assert node not in tree.body, path
