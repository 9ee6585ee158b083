"""Whatever standard output and error are connected to: a command goes on, and its output is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Install
from convbench.plugins.datasets.fashion_mnist.sources import sources
from convbench.registry import DataError
from convbench.registry.caching import cache_directory

COMMAND = (sys.executable, "-m", "convbench.registry")

# prints by Python, by another process, and past both; when it is imported, and in each of its hooks
LOUD = """
    import os, subprocess
    from convbench.registry import Architecture, Backend, hookimpl

    def shout(where):
        print("loud in", where)
        os.system("echo loud child in " + where)
        os.write(1, b"loud write in " + where.encode() + b"\\n")

    shout("import")

    def build(**options):
        import torch
        shout("build")
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))

    @hookimpl
    def convbench_backends():
        shout("backends")
        yield Backend("loud", "", dict)

    @hookimpl
    def convbench_architectures():
        shout("architectures")
        return [Architecture("loud", "", build, input_shape=(1, 2, 2))]

    @hookimpl
    def convbench_commands(group):
        shout("commands")
"""


def start(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([*COMMAND, *words], check=False, **options)


@pytest.mark.parametrize(
    "words", [["list", "backends"], ["list", "plugins"], ["summary", "loud"]], ids=" ".join
)
def test_what_a_plugin_prints_goes_to_standard_error(install: Install, words: list[str]) -> None:
    install("loud", LOUD)
    ended = start(*words, "--json")
    assert ended.returncode == 0, ended.stderr
    assert "loud" in json.dumps(json.loads(ended.stdout))
    for way in ("loud in", "loud child in", "loud write in"):
        for where in ("import", "backends", "architectures", "commands"):
            assert f"{way} {where}\n" in ended.stderr
    assert ("loud in build" in ended.stderr) == (words[0] == "summary")


def closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_are_no_obstacle(closed: tuple[int, ...]) -> None:
    script = (
        "import os, sys; from convbench.registry.cli.streams import standard_streams\n"
        "with standard_streams():\n"
        "    print('out'); print('note', file=sys.stderr); sys.stdout.isatty(); sys.stderr.isatty()\n"
        "    opened = os.open(os.devnull, os.O_RDONLY)\n"
        "sys.exit(opened < 3)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        preexec_fn=closing(*closed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0
    assert ended.stdout == ("" if 1 in closed else "out\n")
    assert ended.stderr == ("" if 2 in closed else "note\n")
    listed = start("list", "suites", preexec_fn=closing(*closed))
    assert (listed.returncode, "lenet" in listed.stdout) == (0, 1 not in closed)


def test_notes_that_nobody_reads_end_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "import sys; from rich.console import Console\n"
        "from convbench.registry.cli.streams import standard_streams\n"
        "with standard_streams():\n"
        "    for number in range(3):\n"
        "        print('note', number, file=sys.stderr, flush=True)\n"
        "        Console(stderr=True).print('another')\n"
        "    print('done')\n"
    )
    with os.fdopen(writing, "w") as gone:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=gone, text=True, check=False
        )
    assert (ended.returncode, ended.stdout) == (0, "done\n")


def test_a_table_that_nobody_reads_is_no_success() -> None:
    """rich makes an exit with 1 of a broken pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "import click; from rich.console import Console; from convbench.registry.cli import main\n"
        "def build(registry):\n"
        "    @click.group(cls=main.CommandGroup)\n"
        "    def group(): pass\n"
        "    @group.command()\n"
        "    def table(): Console().print('a table')\n"
        "    return group\n"
        "main.build = build\n"
        "main.main(['table'])\n"
    )
    with os.fdopen(writing, "w") as gone:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=gone, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (141, "")


def test_an_encoding_without_a_character_gets_an_escape() -> None:
    script = (
        "import sys; from convbench.registry.cli.streams import standard_streams\n"
        "with standard_streams():\n"
        "    print('1.2\\u00d7', '\\udce9'); print('1.2\\u00d7', file=sys.stderr)\n"
    )
    for encoding, out, err in (
        ("ascii", "1.2\\xd7 \\udce9\n", "1.2\\xd7\n"),
        ("utf-8", "1.2\u00d7 \\udce9\n", "1.2\u00d7\n"),
    ):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        ended = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, out, err)


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    path = os.pathsep.join(entry for entry in sys.path if entry)  # -m looks into the working directory
    ended = start(
        "list",
        "suites",
        cwd=gone,
        preexec_fn=gone.rmdir,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert ended.returncode == 2
    assert ended.stderr == "convbench: the working directory does not exist any more; change to another one\n"


def test_a_data_directory_of_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_DATA", "~nosuchuser/x")
    with pytest.raises(DataError, match="CONVBENCH_DATA is '~nosuchuser/x', and there is no home directory"):
        sources(None)


def test_without_a_home_directory_nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it returns for a user without one
    root = cache_directory()
    assert root.is_absolute()
    assert not root.exists()
    with pytest.raises(OSError, match="Not a directory"):
        root.mkdir(parents=True)
