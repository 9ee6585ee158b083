"""A shell completes registered names, at no cost that a person would notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.project.test_imports import SCRIPT


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
        ("verify torch im2c", "im2col"),
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
