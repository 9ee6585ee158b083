"""Install another version of a package into a directory of its own, for workers that look there first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from convbench.registry import UsageError
from convbench.registry.discovery.plugins import normalised

# Where Python would import modules from, without importing them; an editable installation may come before any path
ORIGINS = """
import importlib.util, json, sys
def origin(name):
    spec = importlib.util.find_spec(name)
    return spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
print(json.dumps({name: origin(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class OtherVersion:
    """What was asked for, where it is, and the versions that are there, by normalised name of the distribution."""

    package: str
    path: Path
    versions: Mapping[str, str]


def install(package: str, target: Path, pip_options: Sequence[str] = ()) -> OtherVersion:
    """Have pip install a package, and nothing that it needs, into an empty directory.

    Args:
        package: what pip takes: a requirement such as `fast==1.0`, a directory, a wheel, or `git+URL@REF`.
        target: the directory.
        pip_options: of `pip install`.

    Raises:
        UsageError: it is a path that does not exist, pip cannot install it, nothing of it is installed here to
            be set against it, or Python would not take it from there.
    """
    if is_path(package) and not Path(re.sub(r"\[[^]]*\]$", "", package)).exists():
        raise UsageError(f"{package!r} cannot be installed: that path does not exist")
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", *pip_options]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), package]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")] or said[-1:]
        raise UsageError(f"pip cannot install {package!r}: {'; '.join(errors) or 'it does not say why'}")
    found = list(distributions(path=[str(target)]))
    versions = {normalised(each.name): each.version for each in found}
    if not versions.keys() & {normalised(each.name or "") for each in distributions()}:
        raise UsageError(
            f"{package!r} brings {', '.join(sorted(versions)) or 'nothing'}, of which no version is installed "
            "here: install the new version first"
        )
    check_origins(package, target, sorted({module for each in found for module in modules(each)}))
    return OtherVersion(package, target, versions)


def is_path(package: str) -> bool:
    """Whether pip would take it for a path, possibly with extras, and not for a requirement or an address."""
    if re.match(r"[a-z]+[+:]|.*(://|@)", package):
        return False
    return package.startswith(".") or os.sep in package


def modules(found: Distribution) -> Iterator[str]:
    """The names that a distribution's modules and packages are imported by."""
    for file in found.files or ():
        name = file.parts[0].partition(".")[0]
        if name.isidentifier() and (file.suffix in (".py", ".so", ".pyd")):
            yield name


def check_origins(package: str, target: Path, names: Sequence[str]) -> None:
    """Refuse a version that would be installed and not be used: both sides would measure the same code."""
    command = [sys.executable, "-c", ORIGINS, *names]
    ended = subprocess.run(command, capture_output=True, text=True, env=python_environment(target))
    origins: dict[str, str | None] = json.loads(ended.stdout) if ended.returncode == 0 else {}
    inside = os.path.realpath(target) + os.sep
    for name in names:
        origin = origins.get(name)
        if origin is None or not os.path.realpath(origin).startswith(inside):
            raise UsageError(
                f"{package!r} is of no use as a base: Python imports {name!r} from {origin or 'nowhere'} all the "
                "same; install the new version as a package, not in its editable form"
            )


def python_environment(first: Path | None) -> dict[str, str]:
    """The environment of a Python process that finds what this one finds, whatever was added to its path.

    Args:
        first: a directory it looks into before all others.
    """
    entries = [str(first)] if first else []
    entries += [entry or os.getcwd() for entry in sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(entries)}
