"""`convbench data`: fetch the dataset ahead, and say where it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from convbench.plugins.datasets.fashion_mnist import files, sources
from convbench.plugins.datasets.fashion_mnist.sources import Source
from convbench.registry import DataError, hookimpl
from convbench.registry.cli.terminal import console, wrapped

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
    from convbench.plugins.datasets.fashion_mnist import fetch

    directory, way = fetch.ahead(data_dir, note=lambda message: click.echo(message, err=True))
    click.echo("already there, and good" if way is None else f"fetched by {way}, and verified", err=True)
    click.echo(directory)


@data.command()
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def where(data_dir: Path | None, as_json: bool) -> None:
    """Say which source would be used, its path, and the state of each one looked at.

    Exits with 2 where a run would refuse what it finds.
    """
    found = statuses(data_dir)
    used = settled(found)
    click.echo(_json(found, used) if as_json else _table(found, used))
    if used is None:
        raise DataError(next(place.detail for place in found if place.state == "refused"))


@dataclass(frozen=True)
class Status:
    """A source: `state` is `good`, `absent`, `refused`, `not set`, `untried` or `failed lately`."""

    source: str
    path: Path | None
    state: str
    detail: str = ""


def statuses(root: Path | None) -> list[Status]:
    """Every source in order; each copy is read and verified."""
    return [*map(_look, sources.sources(root)), _download(), _sample()]


def settled(found: list[Status]) -> Status | None:
    """The source that `load` would use; None if it would refuse the first copy that it finds."""
    first = next(place for place in found if place.state not in ("not set", "absent", "failed lately"))
    return None if first.state == "refused" else first


def _look(source: Source) -> Status:
    if source.root is None:
        return Status(source.name, None, "not set")
    directory = files.find(source.root)
    if directory is None:
        if source.required:
            return Status(source.name, source.root, "refused", sources.absent(source))
        return Status(source.name, source.root / files.NAME, "absent")
    try:
        sources.read(source, directory)
    except DataError as error:
        return Status(source.name, directory, "refused", str(error))
    return Status(source.name, directory, "good")


def _download() -> Status:
    from convbench.plugins.datasets.fashion_mnist import fetch

    into = sources.cache_root() / files.NAME
    if lately := fetch.failed_lately():
        return Status("download", into, "failed lately", lately)
    seconds = fetch.AT_FIRST_USE.deadline_seconds
    detail = f"tried at first use for at most {seconds} s, then the sample is used"
    return Status("download", into, "untried", detail)


def _sample() -> Status:
    if problem := files.problem(files.SAMPLE_DIRECTORY, files.SAMPLE):
        return Status("sample", files.SAMPLE_DIRECTORY, "refused", problem)
    return Status("sample", files.SAMPLE_DIRECTORY, "good", "12,000 images, as fashion-mnist-sample")


def _json(found: list[Status], used: Status | None) -> str:
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


def _table(found: list[Status], used: Status | None) -> str:
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
