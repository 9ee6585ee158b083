"""Tables and sentences on a terminal: columns give way, no word is broken, and no line is too long."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from convbench.registry.cli import terminal
from convbench.registry.cli.terminal import Column, fitted, print_table, print_text, working
from convbench.results.comparison.compare import compare
from convbench.results.comparison.formats import as_table
from synthetic_run import synthetic_run

COLUMNS = [
    Column("backend", ["torch", "winograd_4x4"]),
    Column("images/s", ["12,828", "639"], right=True),
    Column("accuracy", ["0.738 after 10 epochs", "0.1 after 1 epoch"], short=["0.738", "0.1"], shortens=3),
    Column("p10, ms", ["9.53", "185"], right=True, drops=2),
    Column("note", ["a kernel of one multiplication after the other", ""], wraps=20, drops=1),
]


def shown(width: int, columns: list[Column] = COLUMNS) -> list[str]:
    text = io.StringIO()
    print_table(Console(file=text, width=width, color_system=None), columns)
    return [line.rstrip() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize("width", range(24, 130))
def test_no_word_is_broken_and_no_line_too_long_at_any_width(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert {"torch", "winograd_4x4", "12,828", "639"} <= words
    kept = {column.title for column in fitted(COLUMNS, width)}
    if "note" in kept:
        assert {"multiplication", "after", "other"} <= words


def test_columns_give_way_in_order() -> None:
    def left(width: int) -> list[str]:
        return [f"{column.title} {column.cells[0]}" for column in fitted(COLUMNS, width)]

    full = ["backend torch", "images/s 12,828", "accuracy 0.738 after 10 epochs", "p10, ms 9.53"]
    assert left(200)[:4] == full
    assert left(72)[2] == "accuracy 0.738"
    assert len(left(72)) == 5
    assert [each.partition(" ")[0] for each in left(56)] == ["backend", "images/s", "accuracy", "note"]
    assert [each.partition(" ")[0] for each in left(40)] == ["backend", "images/s", "accuracy"]


def test_where_there_is_no_room_for_a_table_each_row_is_a_block_with_everything() -> None:
    long = [
        Column("combination", ["lenet/im2col/cpu/float32/b128"]),
        *COLUMNS[1:2],
        Column("note", ["so it is"]),
    ]
    assert shown(30, [Column(each.title, each.cells[:1]) for each in long]) == [
        "lenet/im2col/cpu/float32/b128",
        "  images/s: 12,828",
        "  note: so it is",
    ]


def test_wide_letters_count_twice() -> None:
    lines = shown(40, [Column("name", ["卷积", "conv"]), Column("note", ["two", "three"])])
    assert lines[-2:] == ["卷积  two", "conv  three"]


def test_markup_and_colour_of_a_plugin_are_text() -> None:
    assert shown(40, [Column("name", ["[red]x[/red] :smile:"])])[-1] == "[red]x[/red] :smile:"


def test_a_pipe_gets_a_line_for_each_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = terminal.console()
    print_table(out, COLUMNS)
    print_text(out, "word " * 60)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 + 1
    assert lines[2].split()[:2] == ["torch", "12,828"]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_neither_colour_nor_bold(
    no_color: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = terminal.console()
    print_table(out, COLUMNS, styles=["red", "bold"])
    print_text(out, "a warning", style="bold red")
    assert ("\x1b" in capsys.readouterr().out) == (not no_color)


def test_what_takes_its_time_is_said_on_a_terminal_alone() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said, piped = Terminal(), io.StringIO()
    with working("building lenet", said):
        assert said.getvalue() == "building lenet ..."
    assert said.getvalue().endswith("\r\x1b[K")
    with working("building lenet", piped):
        pass
    assert piped.getvalue() == ""


@pytest.mark.parametrize("width", [100, 80, 60])
def test_a_comparison_fits_the_terminal(width: int, tmp_path: Path) -> None:
    base, new = (synthetic_run(tmp_path / name) for name in ("before", "after"))
    text = as_table(compare(base, new), width)
    assert max(map(len, text.splitlines())) <= width
    assert {"lenet/im2col", "verdict", "combination"} <= set(text.split())
    assert "all of these: cpu, float32, b128, contiguous, eager" in text
