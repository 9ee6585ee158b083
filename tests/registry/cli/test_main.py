"""The command line as a whole: help, typos, exit codes, commands of plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from conftest import Install
from convbench.registry import (
    ConvbenchError,
    DataError,
    GateFailed,
    NothingRan,
    PluginError,
    UnknownName,
    discover,
)
from convbench.registry.cli import main as cli

COMMANDS = {"compare", "data", "doctor", "list", "report", "run", "verify"}


def call(*arguments: str) -> int:
    """The exit code of the command line, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def start(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convbench.registry", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_every_command_is_there() -> None:
    assert set(cli.build(discover(installed=())).commands) >= COMMANDS


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_help_goes_to_stdout(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command.split(), "--help") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Usage: convbench {command}".rstrip())
    assert shown.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"convbench, version {discover(installed=()).version}\n"


def test_the_namespace_is_the_same_program() -> None:
    command = [sys.executable, "-m", "convbench", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"convbench, version {discover(installed=()).version}\n")


def test_without_a_command_it_shows_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    assert "Commands:" in capsys.readouterr().err


def test_an_unknown_command_gets_the_nearest_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verfy", "torch") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("convbench: unknown command 'verfy'; did you mean 'verify'? available: ")


def test_an_unknown_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--jsn") == 2
    assert "--json" in capsys.readouterr().err


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "backend") == 2
    assert "unknown kind 'backend'; did you mean 'backends'?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["backends", "architectures", "datasets", "suites", "plugins"])
def test_listings_are_json_where_asked(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", kind, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    registry = discover()
    if kind == "plugins":
        assert len(listed) == len(registry.plugins)
    else:
        assert [entry["name"] for entry in listed] == list(getattr(registry, kind))


def test_it_runs_from_a_tree_that_was_never_installed(tmp_path: Path) -> None:
    """What `make gpu` relies on: the four rooms on PYTHONPATH, and no metadata of convbench."""
    root = Path(__file__).parents[3]
    rooms = [str(root / room) for room in ("registry", "plugins", "suites", "results")]
    script = (
        f"import sys; sys.path[:0] = {rooms!r}; "
        "from convbench.registry.cli.main import main; main(['--version'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert start("--version").stdout == ended.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConvbenchError("no"), 2),
        (DataError("no"), 2),
        (UnknownName("backend", "x", ()), 2),
        (GateFailed("no"), 1),
        (NothingRan("no"), 3),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.UsageError("no"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(registry: object) -> Callable[..., object]:
        def command(*arguments: object, **options: object) -> object:
            raise error

        return command

    monkeypatch.setattr(cli, "build", build)
    assert call("run") == code


def test_a_convbench_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--suite", "lenett") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("convbench: unknown suite 'lenett'; did you mean 'lenet'?")
    assert shown.err.count("\n") == 1


def test_a_reader_who_has_had_enough_gets_no_traceback_and_no_green() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "convbench.registry", "list"]
    with os.fdopen(writing, "w") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")


HELLO = """
    import click
    from convbench.registry import hookimpl

    @click.command()
    @click.pass_obj
    def hello(registry):
        click.echo(len(registry.backends))
        return len(registry.backends)  # no exit code

    @hookimpl
    def convbench_commands(group):
        group.add_command(hello{rename})
"""


def test_a_plugin_adds_a_command(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("greeting", HELLO.format(rename=""))
    assert call("hello") == 0
    assert capsys.readouterr().out == f"{len(discover().backends)}\n"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (HELLO.format(rename=", 'run'"), "warning: plugin 'rude': the command 'run' exists already\n"),
        (HELLO.format(rename=") + (1 / 0"), "warning: plugin 'rude': ZeroDivisionError: division by zero\n"),
        (HELLO.format(rename=") or exit(5"), "warning: plugin 'rude': SystemExit: 5\n"),
    ],
    ids=["takes a name that is taken", "raises", "exits"],
)
def test_a_plugin_cannot_take_the_command_line_down(
    install: Install, source: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("rude", source)
    assert call("list", "suites") == 0
    shown = capsys.readouterr()
    assert "lenet" in shown.out
    assert shown.err == sentence


def test_no_plugin_replaces_a_command() -> None:
    group = cli.CommandGroup()
    group.add_command(click.Command("run"))
    with pytest.raises(PluginError, match="the command 'run' exists already"):
        group.add_command(click.Command("other"), "run")
