"""The models that a library registers, read from its source; neither it nor torch is imported."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

# `@register_model` or `@register_model()`, further decorators, and the function that gives the name.
REGISTERED = re.compile(r"^@register_model(?:\(\))?[ \t]*\n(?:[@ )].*\n)*def (\w+)", re.MULTILINE)


def registered_names(package: str, folder: str = "models") -> list[str]:
    """The names of the functions decorated with `@register_model` in a package's folder, sorted.

    The list is empty if the package is not installed, or not as source files.
    """
    spec = find_spec(package)  # of a top-level package: found, not imported
    places = (spec.submodule_search_locations if spec else None) or []
    return sorted(
        {
            name
            for place in places
            for path in Path(place, folder).glob("*.py")
            for name in REGISTERED.findall(path.read_text(encoding="utf-8"))
        }
    )
