"""The command that starts a plugin: `convbench new`."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click

from convbench.registry.authoring.scaffold import LONGEST, NAME, Package, write_package
from convbench.registry.discovery.plugins import Registry
from convbench.registry.errors import UsageError
from convbench.registry.hookspecs import hookimpl


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's command."""
    group.add_command(new)


@click.group()
def new() -> None:
    """Write a new plugin: a package that pip installs, and that passes its own tests as written."""


_out = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=".", help="Folder to write it into."
)


@new.command(short_help="A convolution of one's own.")
@click.argument("name")
@_out
@click.pass_obj
def backend(registry: Registry, name: str, out: Path) -> None:
    """Write the package convbench-NAME: a convolution of one's own, in NumPy until it is replaced."""
    _write(registry, Package("backend", name), registry.backends, out)


@new.command(short_help="A network of plain torch layers.")
@click.argument("name")
@_out
@click.pass_obj
def architecture(registry: Registry, name: str, out: Path) -> None:
    """Write the package convbench-NAME: a network of plain torch layers."""
    _write(registry, Package("architecture", name), registry.architectures, out)


def _write(registry: Registry, package: Package, registered: Collection[str], out: Path) -> None:
    _check_free(package, registered)
    for path in write_package(package, out, registry.version):
        click.echo(path)
    folder = shlex.quote(str(out / package.distribution))
    click.echo(f"next: cd {folder} && pip install -e '.[test]' && pytest", err=True)


def _check_free(package: Package, registered: Collection[str]) -> None:
    """Refuse a name that is taken, or so like one that pip or Python would take one for the other."""
    if package.name in registered:
        raise UsageError(f"{package.kind} {package.name!r} is registered already; choose another name")
    could_be_packages = (name for name in registered if NAME.fullmatch(name) and len(name) <= LONGEST)
    for name in could_be_packages:
        if Package(package.kind, name).module == package.module:
            raise UsageError(
                f"{package.kind} {package.name!r} would be the same package as {name!r}, which is registered "
                "already; choose another name"
            )
    try:
        found = distribution(package.distribution)  # however it is spelled
    except PackageNotFoundError:
        return
    raise UsageError(f"a package {found.name} {found.version} is installed already; choose another name")
