"""The command of this room: `convbench summary`."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from convbench.registry.cli.completion import registered
from convbench.registry.cli.terminal import Column, console, print_table, print_text, working
from convbench.registry.discovery.plugins import Registry, discover
from convbench.registry.errors import UsageError, choices, shown
from convbench.registry.hookspecs import hookimpl
from convbench.registry.records import Architecture

if TYPE_CHECKING:
    from torch import nn

    from convbench.registry.models.summary import Row, Summary

HEADER = ("name", "layer", "output shape", "parameters", "FLOPs", "receptive field")
NUMBERS = HEADER[3:]  # set flush right
DROPPED = {"receptive field": 2, "FLOPs": 1}  # on a narrow terminal, the higher first
LARGEST = 2**31  # size of a dimension


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this room's command."""
    group.add_command(summary)


@click.command()
@click.argument("architecture", shell_complete=registered("architectures"))
@click.option(
    "--input", "shape", metavar="N,C,H,W", help="Input shape.  [default: 1 and the architecture's own]"
)
@click.option(
    "--depth", type=click.IntRange(min=1), default=1, show_default=True, help="Show layers in layers."
)
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="Pass this to the architecture."
)
@click.option("--book", is_flag=True, help="Print classes and shapes as the book does, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def summary(
    registry: Registry | None,
    /,
    architecture: str,
    shape: str | None,
    depth: int,
    options: tuple[str, ...],
    book: bool,
    as_json: bool,
) -> None:
    """Show ARCHITECTURE layer by layer: class, output shape, parameters, FLOPs, receptive field.

    FLOPs are two for each multiplication and addition of convolutions and matrix products, for the whole
    batch. The receptive field is how many pixels one output unit can see; "all" is the whole image.
    """
    record = (registry or discover()).architecture(architecture)
    input_shape = _input_shape(shape) if shape else (1, *record.input_shape)
    with working(f"building {record.name}"), redirect_stdout(sys.stderr):  # what a plugin prints as it builds
        outcome = _summarise(record, input_shape, depth, _options(record, options))
    if as_json:
        click.echo(json.dumps({"architecture": record.name, **asdict(outcome)}, indent=2))
    elif book:
        click.echo(str(outcome))
    else:
        _print(outcome)


def _input_shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    try:
        shape = tuple(map(int, parts))
    except ValueError:  # also of more digits than Python reads
        shape = ()
    if len(shape) != 4 or not all(0 < each < LARGEST for each in shape):
        raise UsageError(f"--input {shown(text)} is not four positive numbers N,C,H,W such as 1,1,28,28")
    return shape


def _options(record: Architecture, options: Sequence[str]) -> dict[str, Any]:
    """`groups=32` as {"groups": 32}: values are Python literals, or else strings."""
    parameters = inspect.signature(record.build).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--option {option!r} is not KEY=VALUE, such as num_classes=100")
        if key not in known and not takes_any:
            raise UsageError(f"architecture {record.name!r} has no option {key!r}; {choices(key, known)}")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            values[key] = text
    return values


def _summarise(
    record: Architecture, input_shape: tuple[int, ...], depth: int, options: dict[str, Any]
) -> Summary:
    """Summarise on the meta device, where nothing is computed, or else for real."""
    import torch

    from convbench.registry.models.summary import summarise

    options = {"in_channels": input_shape[1], **options}
    try:
        with torch.device("meta"):
            return summarise(_build(record, options), input_shape, depth)
    except (
        UsageError
    ):  # some networks need real numbers to be built, and real numbers have the clearer errors
        return summarise(_build(record, options), input_shape, depth)


def _build(record: Architecture, options: dict[str, Any]) -> nn.Module:
    from convbench.registry.models.factory import create_model

    try:
        return create_model(record, **options)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise UsageError(f"architecture {record.name!r} cannot be built with {given}: {error}") from error


def _print(outcome: Summary) -> None:
    """A table, and the totals below it."""
    cells = zip(*map(_cells, outcome.rows), strict=True)
    columns = [
        Column(title, column, right=title in NUMBERS, drops=DROPPED.get(title, 0))
        for title, column in zip(HEADER, cells, strict=True)
    ]
    out = console()
    print_table(out, columns)
    total = f"{outcome.parameters:,} parameters, {outcome.flops:,} FLOPs"
    print_text(out, f"input {list(outcome.input_shape)}: {total}")


def _cells(row: Row) -> tuple[str, ...]:
    field = row.receptive_field
    return (
        "  " * (row.depth - 1) + row.name,
        row.layer,
        str(list(row.output_shape)),
        f"{row.parameters:,}",
        f"{row.flops:,}",
        field if isinstance(field, str) else f"{field[0]}x{field[1]}",
    )
