"""Write a new plugin: a package that pip installs, that works, and that passes its own tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from types import MappingProxyType

from convbench.registry.discovery.contract_version import CONTRACT
from convbench.registry.errors import UsageError

# The name of a distribution may have more (PEP 508 allows nothing else), so a registered name can be part of one.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
LONGEST = 64  # characters

_PACKAGE = {
    "pyproject.toml": "package/pyproject.toml.txt",
    ".gitignore": "package/gitignore.txt",
    ".github/workflows/tests.yml": "package/workflow.yml.txt",
}
# Where each file of a package goes, and the template it is made from; `.txt`, for none of them is ours to run.
TEMPLATES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "backend": {
            **_PACKAGE,
            "README.md": "backend/README.md.txt",
            "src/$module/__init__.py": "backend/plugin.py.txt",
            "src/$module/convolution.py": "backend/convolution.py.txt",
            "tests/test_conformance.py": "backend/test_conformance.py.txt",
        },
        "architecture": {
            **_PACKAGE,
            "README.md": "architecture/README.md.txt",
            "src/$module/__init__.py": "architecture/plugin.py.txt",
            "src/$module/network.py": "architecture/network.py.txt",
            "tests/test_architecture.py": "architecture/test_architecture.py.txt",
        },
    }
)


@dataclass(frozen=True)
class Package:
    """What a new plugin is called, here and there; `name` is what it registers."""

    kind: str
    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or len(self.name) > LONGEST:
            raise UsageError(
                f"{self.name!r} cannot name a package; up to {LONGEST} letters, digits, '-', '_' and '.' can, "
                "with a letter or digit at both ends, such as 'fast-conv'"
            )

    @property
    def distribution(self) -> str:
        """What pip installs, and the folder."""
        return f"convbench-{self.name}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return re.sub(r"[^a-z0-9]+", "_", self.distribution.lower())

    @property
    def class_name(self) -> str:
        """For its tests."""
        return "".join(part.capitalize() for part in self.module.split("_")[1:])


def write_package(package: Package, out: Path, convbench_version: str) -> list[Path]:
    """Write a package into a new folder of `out`; returns its files.

    Raises:
        UsageError: the folder exists already.
    """
    folder = out / package.distribution
    released = convbench_version != "unknown"  # it is in a tree that was never installed
    words = {
        "kind": package.kind,
        "name": package.name,
        "distribution": package.distribution,
        "module": package.module,
        "class_name": package.class_name,
        "contract": str(CONTRACT),
        "requirement": f"convbench>={convbench_version}" if released else "convbench",
    }
    contents = {
        folder / Template(path).substitute(words): Template(_text(template)).substitute(words)
        for path, template in TEMPLATES[package.kind].items()
    }
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(
            f"{folder} exists already, and nothing is overwritten; choose another --out"
        ) from None
    for path, text in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(contents)


def _text(template: str) -> str:
    return (files("convbench.registry.authoring") / "templates" / template).read_text(encoding="utf-8")
