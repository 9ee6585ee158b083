"""What conftest.py does for a session of tests: nothing outlives it, and it can be in the background."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LEAVES = """
import subprocess

def test_leaves_a_process_behind():
    subprocess.Popen(["sleep", "8642.53"])
"""
INTERRUPTS = """
import os, signal, subprocess, sys, pytest

def test_an_interrupt_arrives_here_and_in_what_is_started():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
"""


def session(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """One in the background, with our conftest.py and this test."""
    (folder / "conftest.py").write_text(Path(__file__).parents[2].joinpath("conftest.py").read_text())
    (folder / "test_it.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def test_what_is_left_behind_is_killed_and_an_error(tmp_path: Path) -> None:
    ended = session(tmp_path, LEAVES)
    assert ended.returncode == 1
    assert "tests left processes behind: [['sleep', '8642.53']]" in ended.stdout
    assert "1 passed, 1 error" in ended.stdout


def test_a_session_in_the_background_can_be_interrupted(tmp_path: Path) -> None:
    ended = session(tmp_path, INTERRUPTS)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_PROC_BIND"])
def test_what_the_user_has_set_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    source = f"import os\ndef test(): assert os.environ[{name!r}] == '2'\n"
    assert session(tmp_path, source).returncode == 0
