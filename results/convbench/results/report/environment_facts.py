"""What environment.json tells of a machine, in words for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from convbench.results.storage.environment import FACTS

ELSEWHERE = ("torch_build", "peaks", "planned_processes")  # have places of their own
UNITS = ("_gb", "_mhz")  # endings of names that repeat the unit
MISSING: tuple[Any, ...] = (None, "", [], {})


class EnvironmentFact(NamedTuple):
    """What one key says: a text, or several parts with names of their own; `meaning` explains the key."""

    name: str
    meaning: str
    text: str
    parts: tuple[tuple[str, str], ...] = ()


def environment_facts(environment: Mapping[str, Any]) -> Iterator[EnvironmentFact]:
    """Each fact that is known."""
    for name, value in environment.items():
        if name in ELSEWHERE or value in MISSING:
            continue
        fact = FACTS.get(name)
        unit = f" {fact.unit}" if fact and fact.unit and not isinstance(value, dict) else ""
        for ending in UNITS:
            name = name.removesuffix(ending)
        parts = value.items() if isinstance(value, dict) else ()
        yield EnvironmentFact(
            name.replace("_", " ") + (f", {fact.unit}" if parts and fact and fact.unit else ""),
            fact.description if fact else "",
            "" if parts else in_words(value) + unit,
            tuple((str(part), in_words(each)) for part, each in parts if each not in MISSING),
        )


def in_words(value: Any) -> str:
    """A value of JSON as a text."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {in_words(each)}" for name, each in value.items() if each not in MISSING)
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
