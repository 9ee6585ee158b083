"""What the commands have in common: options with many values, values that shells complete, and a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from convbench.registry import Registry, UsageError
from convbench.registry.cli.completion import Complete, completing

F = TypeVar("F", bound=Callable[..., Any])


def _split(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """`--backend a,b --backend c` as a list; None where the option is not given."""
    items = [item.strip() for value in values for item in value.split(",")]
    named = [item for item in items if item]
    if values and not named:  # everything would be run
        raise UsageError(f"{parameter.opts[0]} {','.join(values)!r} names nothing")
    return named or None


def _whole_numbers(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> list[int] | None:
    items = _split(context, parameter, values)
    try:
        return None if items is None else [int(item) for item in items]
    except ValueError:
        name = parameter.opts[0]
        raise UsageError(f"{name} takes whole numbers, not {','.join(values)!r}") from None


def many(name: str, help: str, numbers: bool = False, complete: Complete | None = None) -> Callable[[F], F]:
    """An option that is repeated, or whose values are separated with commas; None where it is not given."""
    callback = _whole_numbers if numbers else _split
    metavar = "N" if numbers else "NAME"
    return click.option(
        name, multiple=True, metavar=metavar, callback=callback, shell_complete=complete, help=help
    )


def allowed(key: str) -> Complete:
    """Completes the values that a key of suite files may have."""

    def values(registry: Registry) -> Iterable[str]:
        from convbench.suites.config.suite import keys_of

        return keys_of("")[key].allowed

    return completing(values)


def warn_of_broken_plugins(registry: Registry, patterns: Iterable[str]) -> None:
    """A broken plugin is missing from what a pattern such as `*` takes; a name that it misses is an error."""
    if any(set(pattern) & set("*?[") for pattern in patterns):
        for plugin in registry.broken:
            click.echo(f"warning: {plugin.fault}", err=True)
