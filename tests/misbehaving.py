"""A distribution of fake plugins, most of which misbehave, each in one way, to see what a run makes of it.

`install` writes it as pip would leave it, so that worker processes discover it like any other.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from convbench.registry.cli.main import main
from convbench.suites.config.suite import Budget, RecipeOverrides, Suite, Timing
from convbench.suites.runner.progress import Watcher

SLEEP = f"8641{os.getpid()}.53"  # seconds; marks the processes that plugins of these tests leave behind
SOURCE = Path(__file__).with_name("misbehaving_plugins.py.txt")


class Notes(Watcher):
    """The notes of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def install(site: Path, version: str = "1.0") -> Path:
    """Put the distribution `misbehaving` of that version into a directory, in place of any other version."""
    site.mkdir(exist_ok=True)
    (site / "misbehaving_plugins.py").write_text(SOURCE.read_text().replace("@SLEEP@", SLEEP))
    for old in site.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    info = site / f"misbehaving-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: misbehaving\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[convbench]\nmisbehaving = misbehaving_plugins\n")
    return site


@contextmanager
def on_path(site: Path) -> Iterator[None]:
    """Discover the distribution in this process and in its workers."""
    sys.path.insert(0, str(site))
    try:
        yield
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("misbehaving_plugins", None)


def suite(
    *backends: str, timeout: float = 200.0, dataset: str = "tiny", rounds: int = 1, threads: int = 1
) -> Suite:
    """A suite that takes a good backend a fraction of a second."""
    return Suite(
        name="fakes",
        dataset=dataset,
        architectures=("tiny",),
        backends=backends,
        devices=("cpu",),
        batch_sizes=(16,),
        recipe=RecipeOverrides(epochs=2),
        budget=Budget(train_seconds=60.0, timeout_seconds=timeout, memory_mb=3000),
        timing=Timing(rounds=rounds, warmup_steps=1, steps=4, threads=threads, quiet_seconds=0.0),
    )


COMMAND = (sys.executable, "-c", "from convbench.registry.cli.main import main; main()")


def path(site: Path) -> str:
    """PYTHONPATH with the fake plugins, and what is on it already."""
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))


def start(*arguments: str | Path, site: Path, **options: Any) -> subprocess.Popen[str]:
    """The real command line in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path(site), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def start_on(terminal: int, *arguments: str | Path, site: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """The same on a terminal."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path(site), "COLUMNS": "200", "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=cwd,
    )


def convbench(*arguments: str | Path, site: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command line, to its end."""
    process = start(*arguments, site=site, **options)
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def command(*arguments: str | Path, site: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in this process, to its end."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with (
        on_path(site),
        chdir(cwd or Path.cwd()),
        mock.patch.dict(os.environ, COLUMNS="200"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def wait_until(true: Callable[[], Any], seconds: float = 100.0) -> float:
    """Poll until it is, and say how long that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def left_behind() -> list[psutil.Process]:
    """Processes that a plugin started and nobody ended."""
    return [
        process for process in psutil.process_iter(["cmdline"]) if SLEEP in (process.info["cmdline"] or [])
    ]


def facts(site: Path) -> dict[str, Any]:
    """What the backend `tells` saw in its timing worker."""
    read: dict[str, Any] = json.loads((site / "facts.json").read_text())
    return read
