"""Names that a shell completes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING

import click

from convbench.registry.discovery.plugins import Registry

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def completing(names: Callable[[Registry], Iterable[str]], or_file: bool = False) -> Complete:
    """Completes these names, and a name after a comma; with `or_file`, files where no name fits."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, name = incomplete.rpartition(",")
        found = [each for each in names(context.obj) if each.startswith(name)]
        if or_file and not found:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(f"{before}{comma}{each}") for each in found]

    return complete


def registered(kind: str) -> Complete:
    """Completes the names in a catalog of the registry, such as "backends"."""
    return completing(attrgetter(kind), or_file=kind == "suites")
