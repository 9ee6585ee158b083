"""What a plugin may offer. Each hook returns records and does nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from convbench.registry.records import Architecture, Backend, Dataset

if TYPE_CHECKING:
    import click

PROJECT = "convbench"  # the pluggy project, and the entry-point group
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def convbench_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Op backends: named sets of implementations of the ops in the contract."""


@hookspec
def convbench_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]
    """Networks of plain torch layers, with the recipes they are trained by."""


@hookspec
def convbench_datasets() -> Iterable[Dataset]:  # type: ignore[empty-body]
    """Labelled images to train and test on."""


@hookspec
def convbench_suites() -> Iterable[Path]:  # type: ignore[empty-body]
    """TOML files that say what to run and how."""


@hookspec
def convbench_commands(group: click.Group) -> None:
    """Add commands to the `convbench` command line."""
