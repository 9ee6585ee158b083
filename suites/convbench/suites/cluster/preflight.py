"""What a machine is, and in what it differs from the one that drives the run. Nothing here knows Ray."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

from convbench.registry import ConvbenchError
from convbench.registry.errors import listed
from convbench.registry.hookspecs import PROJECT
from convbench.results.storage.environment import cpu_flags, cpu_model
from convbench.suites.machine.load import allowed_cpus
from convbench.suites.machine.resources import free_memory_mb, usable_cores

PACKAGES = ("torch", PROJECT)  # beside Python and plugins: what results depend on
NAMED = 3  # files that a message names


class Refused(ConvbenchError):
    """A machine that is not used, and why."""


@dataclass(frozen=True)
class Description:
    """What a machine says of itself.

    Attributes:
        versions: of Python and of packages.
        plugins: of each plugin's package, the digest of every file, by name.
        cores: that can be used, one thread each.
        cpus: hardware threads that can be used.
        memory_mb: that a worker may take; None where it is unknown.
        processor: its model and the vector instructions that it has.
    """

    versions: Mapping[str, str]
    plugins: Mapping[str, Mapping[str, str]]
    cores: int
    cpus: int
    memory_mb: int | None
    processor: str


def describe() -> Description:
    """This machine, without loading a plugin."""
    flags = hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()[:6]
    return Description(
        versions={"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        plugins={package: dict(_digests(package)) for package in _packages()},
        cores=usable_cores(),
        cpus=len(allowed_cpus()),
        memory_mb=free_memory_mb(),
        processor=f"{cpu_model()} ({flags})",
    )


def differences(ours: Description, theirs: Description) -> list[str]:
    """In what another machine's results would differ from ours, each in words."""
    found = [
        f"{name} is {theirs.versions.get(name, 'missing')}, and {wanted} where the run was started"
        for name, wanted in ours.versions.items()
        if theirs.versions.get(name) != wanted
    ]
    for package in sorted({*ours.plugins, *theirs.plugins}):
        here, there = ours.plugins.get(package), theirs.plugins.get(package)
        if here is None or there is None:
            found.append(f"plugin package {package!r} is {'missing' if there is None else 'only there'}")
        elif here != there:
            files = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
            found.append(f"plugin package {package!r} has other content: {listed(files, NAMED)}")
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _packages() -> list[str]:
    """The top-level modules that plugins are in."""
    return sorted({PROJECT, *(point.module.partition(".")[0] for point in entry_points(group=PROJECT))})


def _digests(package: str) -> Iterator[tuple[str, str]]:
    """The digest of every file of a package or module, by its path in it."""
    spec = find_spec(package)
    if spec is None:
        return
    roots = [Path(place) for place in spec.submodule_search_locations or ()]
    seen: set[str] = set()  # of a namespace package: the first place that has a module is the one
    for root in roots:
        modules = set(os.listdir(root)) - seen if root.is_dir() else set()
        seen |= modules
        for directory, inner, names in os.walk(root):
            top = Path(directory) == root
            inner[:] = sorted(name for name in set(inner) - {"__pycache__"} if not top or name in modules)
            for name in sorted(names):
                if not name.endswith(".pyc") and (not top or name in modules):
                    path = Path(directory, name)
                    yield f"{package}/{path.relative_to(root)}", _digest(path)
    if not roots and spec.origin is not None:
        yield Path(spec.origin).name, _digest(Path(spec.origin))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return str(error.strerror)
