"""A shell completes registered names, at no cost that a person would notice."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from tests.project.test_imports import SCRIPT

from convbench.registry import discover
from convbench.registry.cli.main import build


def complete(words: str) -> subprocess.CompletedProcess[str]:
    """What bash gets for the last of these words, and on standard error which heavy modules were imported."""
    typed = ["convbench", *words.split()]
    environment = os.environ | {
        "_CONVBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run --suite len", "lenet"),
        ("run --backend im2c", "im2col"),
        ("run --backend torch,im2c", "torch,im2col"),
        ("run --architecture alex", "alexnet"),
        ("run --suite ops --dataset fashion-mn", "fashion-mnist"),
        ("run --suite ops --dtype float32,bfl", "float32,bfloat16"),
        ("run --memory-format chan", "channels_last"),
        ("run --mode gra", "graph"),
        ("verify torch im2c", "im2col"),
        ("verify torch --dtype tf", "tf32"),
        ("summary alex", "alexnet"),
        ("list arch", "architectures"),
    ],
)
def test_names_are_completed_without_heavy_imports(words: str, expected: str) -> None:
    ended = complete(words)
    assert f"plain,{expected}" in ended.stdout.splitlines()
    assert ended.stderr.strip() == "imported:"


@pytest.mark.parametrize(
    ("words", "expected"), [("run --suite mine/", "file,mine/"), ("runn --suite len", "")]
)
def test_a_suite_may_be_a_file_and_a_wrong_command_has_no_completions(words: str, expected: str) -> None:
    ended = complete(words)
    assert ended.stdout.strip() == expected


# what has no names to complete: numbers, texts of one's own, and devices, which torch would have to list
FREE = {
    *(f"run {name}" for name in ("device", "batch_size", "seed", "budget_total", "settings", "against")),
    *("run world_size", "run pip_options", "verify device", "summary shape", "summary options"),
    *("run cluster", "cluster status address"),
    *("new backend name", "new architecture name"),
}


def test_every_parameter_that_takes_a_name_completes_it() -> None:
    found: dict[str, click.Parameter] = {}

    def collect(command: click.Command, path: str) -> None:
        for parameter in command.params:
            found[f"{path} {parameter.name}".strip()] = parameter
        for name, below in getattr(command, "commands", {}).items():
            collect(below, f"{path} {name}".strip())

    collect(build(discover(installed=())), "")
    texts = {path: each for path, each in found.items() if each.type is click.STRING}
    assert texts.keys() >= FREE
    context = click.Context(click.Command("convbench"), obj=discover(installed=()))
    for path in texts.keys() - FREE:
        assert texts[path].shell_complete(context, ""), path
