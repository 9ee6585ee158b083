"""Says which source of FashionMNIST would be used now, and what state each of them is in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convbench.plugins.datasets.fashion_mnist import acquire, embedded, files, sources
from convbench.registry.errors import DataError


@dataclass(frozen=True)
class Status:
    """One source: `state` is `good`, `absent`, `refused`, `not set`, `untried` or `failed lately`."""

    source: str
    path: Path | None
    state: str
    detail: str = ""


def statuses(root: Path | None) -> list[Status]:
    """Every source in order, each copy read and verified."""
    return [*map(_look, sources.sources(root)), _download(), _sample()]


def used(found: list[Status]) -> Status | None:
    """The first source that settles the matter, as `load` goes about it; None where it would refuse."""
    settled = next(place for place in found if place.state not in ("not set", "absent", "failed lately"))
    return None if settled.state == "refused" else settled


def _look(source: sources.Source) -> Status:
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
    into = sources.cache_root() / files.NAME
    if lately := acquire.failed_lately():
        return Status("download", into, "failed lately", lately)
    seconds = acquire.AT_FIRST_USE.deadline_seconds
    detail = f"tried at first use for at most {seconds} s, then the sample is used"
    return Status("download", into, "untried", detail)


def _sample() -> Status:
    if problem := files.problem(embedded.DIRECTORY, embedded.FILES):
        return Status("sample", embedded.DIRECTORY, "refused", problem)
    return Status("sample", embedded.DIRECTORY, "good", "12,000 images, as fashion-mnist-sample")
