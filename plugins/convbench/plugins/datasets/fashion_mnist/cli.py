"""`convbench data`: fetch the dataset ahead, and say where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convbench.registry import DataError, hookimpl
from convbench.registry.cli.terminal import console, wrapped

if TYPE_CHECKING:
    from convbench.plugins.datasets.fashion_mnist import status

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the data, in place of CONVBENCH_DATA, the cache and the system copy.",
)


@click.group()
def data() -> None:
    """Fetch FashionMNIST, or say where it is."""


@data.command()
@data_dir_option
def fetch(data_dir: Path | None) -> None:
    """Fetch FashionMNIST ahead of a run, into the cache or DIR.

    Takes what is on the machine already, else downloads through torchvision, else takes Debian's package
    dataset-fashion-mnist (no root needed). Every file is verified by its SHA-256.
    """
    from convbench.plugins.datasets.fashion_mnist import acquire

    directory, way = acquire.ahead(data_dir, note=lambda message: click.echo(message, err=True))
    click.echo("already there, and good" if way is None else f"fetched by {way}, and verified", err=True)
    click.echo(directory)


@data.command()
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def where(data_dir: Path | None, as_json: bool) -> None:
    """Say which source would be used, its path, and the state of each one looked at.

    Exits with 2 where a run would refuse what it finds.
    """
    from convbench.plugins.datasets.fashion_mnist import status

    found = status.statuses(data_dir)
    used = status.used(found)
    click.echo(_json(found, used) if as_json else _table(found, used))
    if used is None:
        raise DataError(next(place.detail for place in found if place.state == "refused"))


def _json(found: list[status.Status], used: status.Status | None) -> str:
    rows = [
        {
            "source": place.source,
            "path": str(place.path) if place.path else None,
            "state": place.state,
            "detail": place.detail or None,
        }
        for place in found
    ]
    answer = {
        "used": used.source if used else None,
        "path": str(used.path) if used else None,
        "sources": rows,
    }
    return json.dumps(answer, indent=2)


def _table(found: list[status.Status], used: status.Status | None) -> str:
    """A line per source, the one that would be used marked with an arrow."""
    names = max(len(place.source) for place in found)
    states = max(len(place.state) for place in found)
    lines = []
    for place in found:
        mark = "->" if place is used else "  "
        lines.append(f"{mark} {place.source:<{names}}  {place.state:<{states}}  {place.path or ''}".rstrip())
        if place.detail:
            gap = " " * (names + 5)
            lines += wrapped(place.detail, console().width, gap, gap)
    return "\n".join(lines)


@hookimpl
def convbench_commands(group: click.Group) -> None:
    group.add_command(data)
