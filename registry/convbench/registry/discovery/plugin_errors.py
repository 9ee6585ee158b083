"""Says what is wrong with plugins, and where: for messages about names that no plugin offers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distributions
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from convbench.registry.errors import PluginError
from convbench.registry.hookspecs import PROJECT

if TYPE_CHECKING:
    from convbench.registry.discovery.plugins import Plugin

NAMED = 3  # broken plugins in one message


class HookError(PluginError):
    """A hook of a plugin that breaks the contract; `function` is the hook."""

    def __init__(self, text: str, function: Callable[..., Any] | None) -> None:
        super().__init__(text)
        self.function = function


def error_location(error: BaseException, module: str) -> str | None:
    """The file and line of a plugin that an error comes from; the file alone where no line is to blame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    module = module.partition(":")[0]
    own = module if module.startswith("convbench.") else module.partition(".")[0]
    at = None
    for frame, line in walk_tb(error.__traceback__):
        if f"{frame.f_globals.get('__name__')}.".startswith(f"{own}."):
            at = f"{frame.f_code.co_filename}, line {line}"
    code = getattr(error.function, "__code__", None) if isinstance(error, HookError) else None
    if code is not None:
        at = f"{code.co_filename}, line {code.co_firstlineno}"
    return at or getattr(sys.modules.get(module), "__file__", None)


def explain_missing(name: str, broken: Sequence[Plugin]) -> str:
    """What may explain that nobody offers a name: broken plugins, or a package that registers none."""
    about = [plugin for plugin in broken if _may_concern(plugin, name)] or broken
    reasons = [plugin.fault for plugin in about[:NAMED]]
    if len(about) > NAMED:
        reasons.append(f"{len(about) - NAMED} more plugins are broken (see convbench list plugins)")
    return "; ".join([*reasons, *without_entry_point(name)])


def _may_concern(plugin: Plugin, name: str) -> bool:
    """Whether a broken plugin seems to be the one that would have offered a name."""
    package, _, short = name.rpartition(":")
    own = {plugin.name.rpartition(":")[2], plugin.module, *known_as(plugin.distribution)}
    return plugin.distribution == package or short in own or repr(short) in (plugin.error or "")


def without_entry_point(name: str | None = None) -> Iterator[str]:
    """A sentence for each installed package, of that name, that needs convbench and registers no plugin."""
    for distribution in distributions():
        own = distribution.metadata["Name"] or ""
        needed = (re.match(r"[\w.-]+", each) for each in distribution.requires or ())
        if PROJECT not in [each[0].lower() for each in needed if each]:
            continue
        if name is not None and not {*name.split(":")} & {*known_as(own)}:
            continue
        groups = sorted({point.group for point in distribution.entry_points})
        if PROJECT not in groups:
            instead = f", only in {', '.join(groups)}" if groups else ""
            yield (
                f"package {own!r} {distribution.version} is installed, and registers no plugin: it has no entry "
                f"point in the group {PROJECT!r}{instead}"
            )


def known_as(distribution: str) -> list[str]:
    """What a package may be known by: its name, and without a leading `convbench-`."""
    normal = re.sub(r"[-_.]+", "-", distribution).lower()
    short = normal.removeprefix(f"{PROJECT}-")
    return [distribution, normal, short, short.replace("-", "_")]
