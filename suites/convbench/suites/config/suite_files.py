"""Read a suite from its TOML file, checked key by key; what is wrong is told with its line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from convbench.registry import UsageError
from convbench.registry.errors import choices
from convbench.results.storage.files import read_text
from convbench.suites.config.suite import KEYS, PER_BACKEND, Suite, keys_of


def load_suite(path: Path) -> Suite:
    """Read and check a suite file.

    Raises:
        UsageError: no such file, or one that cannot be used; with the line, the key and what is allowed.
    """
    text = read_text(path, "suite")
    try:
        content = tomllib.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: not a TOML file: its brackets are nested too deeply") from None

    values: dict[str, Any] = {}
    for name, value in content.items():
        if name == PER_BACKEND:
            values |= _per_backend(path, text, value)
        elif name in KEYS and name:
            if not isinstance(value, dict):
                raise UsageError(f"{path}, line {_line(text, '', name)}: {name} must be a table, [{name}]")
            for key, inner in value.items():
                _check(path, text, name, key, inner)
                values[f"{name}.{key}"] = inner
        else:
            _check(path, text, "", name, value)
            values[name] = value
    if "name" not in values:
        raise UsageError(f"{path}: the key 'name' is missing")
    suite = Suite(name=values["name"]).override(values)
    try:
        suite.check()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return suite


def _per_backend(path: Path, text: str, content: object) -> dict[str, Any]:
    """The values of `[per_backend.GLOB]`, by dotted key."""
    values: dict[str, Any] = {}
    line = _line(text, "", PER_BACKEND)
    for pattern, table in content.items() if isinstance(content, dict) else [("GLOB", content)]:
        if not isinstance(table, dict) or not pattern:
            raise UsageError(f"{path}, line {line}: {PER_BACKEND} must be tables, [{PER_BACKEND}.GLOB] each")
        for key, value in table.items():
            _check(path, text, f"{PER_BACKEND}.{pattern}", key, value)
            values[f"{PER_BACKEND}.{pattern}.{key}"] = value
    return values


def _check(path: Path, text: str, table: str, key: str, value: object) -> None:
    where = f"{path}, line {_line(text, table, key)}"
    known = keys_of(table)
    label = f"{table}.{key}" if table else key
    if key not in known:
        names = [*known, *(name for name in (*KEYS, PER_BACKEND) if name and not table)]
        raise UsageError(f"{where}: unknown key {label!r}; {choices(key, names)}")
    wrong = known[key].wrong(value)
    if wrong:
        raise UsageError(f"{where}: {label} {wrong}")


def _line(text: str, table: str, key: str) -> int:
    """The line on which a key is set, counted from 1; that of its table where it is written in it."""
    parents = table.split(".") if table else []
    wanted = [*parents, key]
    current: list[str] = []
    nearest = 1
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?([^\[\]]+)\]", line)
        if header:
            current = _parts(header[1])
            path = current
        elif assignment := re.match(r"([^=#]+)=", line):
            path = [*current, *_parts(assignment[1])]
        else:
            continue
        if path[: len(wanted)] == wanted:
            return number
        if table and path == parents:
            nearest = number
    return nearest


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
