"""Find plugins: every entry point of group `convbench`, those of convbench's own distribution first.

A plugin that fails to import, misspells a hook or returns something other than records is quarantined: it stays
in `Registry.plugins` with its error, none of its records is registered, and the other plugins are not affected.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import pluggy

from convbench.registry import hookspecs
from convbench.registry.discovery.catalog import Catalog
from convbench.registry.discovery.contract_version import check_contract
from convbench.registry.discovery.plugin_errors import HookError, error_location, explain_missing
from convbench.registry.errors import PluginError, choices, shown
from convbench.registry.hookspecs import PROJECT
from convbench.registry.integrity.load_watch import watch_loading
from convbench.registry.records import Architecture, Backend, Dataset

if TYPE_CHECKING:
    import click

LONGEST = 1200  # characters of an exception's text
# `torchvision/resnet18` is a name; `package:name` is reserved for choosing between plugins.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*")


@dataclass(frozen=True)
class Plugin:
    """Where records come from; `error` says why a quarantined one is not used, `place` where it is.

    `changes` are what loading it changed of torch, Python or convbench; they were undone.
    """

    name: str
    distribution: str
    version: str
    module: str
    error: str | None = None
    place: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def interference(self) -> str:
        """What loading it changed, in one line; empty where that is nothing."""
        if not self.changes:
            return ""
        more = f"; and {len(self.changes) - 3} more" if len(self.changes) > 3 else ""
        return (
            f"plugin {self.name!r} of {self.distribution} {self.version} changed what others rely on when it was "
            f"loaded: {'; '.join(self.changes[:3])}{more}; this was undone"
        )

    @property
    def fault(self) -> str:
        """What is wrong with a broken plugin, in one line."""
        where = f" ({self.place})" if self.place else ""
        return (
            f"plugin {shown(self.name)} of {self.distribution} {self.version} is broken: {self.error}{where}"
        )


@dataclass(frozen=True)
class Registry:
    """Everything that was found. The catalogs are mappings from name to record, sorted by name."""

    plugins: tuple[Plugin, ...]
    backends: Catalog[Backend]
    architectures: Catalog[Architecture]
    datasets: Catalog[Dataset]
    suites: Catalog[Path]
    _manager: pluggy.PluginManager = field(repr=False, compare=False)

    def __repr__(self) -> str:
        catalogs = (
            f"{len(getattr(self, kind))} {kind}"
            for kind in ("backends", "architectures", "datasets", "suites")
        )
        return f"{len(self.plugins)} plugins ({len(self.broken)} broken): {', '.join(catalogs)}"

    @property
    def version(self) -> str:
        """The installed version of convbench."""
        return _version("convbench")

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """The plugins that are not used, for something is wrong with them."""
        return tuple(plugin for plugin in self.plugins if plugin.error)

    @property
    def interfering(self) -> tuple[Plugin, ...]:
        """The plugins that changed torch, Python or convbench when they were loaded."""
        return tuple(plugin for plugin in self.plugins if plugin.changes)

    def backend(self, name: str) -> Backend:
        """The backend of that name, or of `package:name`.

        Raises:
            UnknownName: nothing of that name; the message has the nearest match and what exists.
            AmbiguousName: two plugins offer it; the message names both.
        """
        return self.backends.find(name)

    def architecture(self, name: str) -> Architecture:
        """The architecture of that name; raises as `backend` does."""
        return self.architectures.find(name)

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name; raises as `backend` does."""
        return self.datasets.find(name)

    def suite(self, name: str) -> Path:
        """The definition file of the suite of that name; raises as `backend` does."""
        return self.suites.find(name)

    def add_commands(self, group: click.Group) -> tuple[str, ...]:
        """Let every plugin add its commands to `group`; returns a sentence for each one that failed."""
        problems = []
        for plugin in self.plugins:
            loaded = self._manager.get_plugin(plugin.name)
            if loaded is None:
                continue
            for implementation in _implementations(self._manager, "convbench_commands", loaded):
                try:
                    with redirect_stdout(sys.stderr):
                        implementation(group=group)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's code: anything can come
                    problems.append(f"plugin {plugin.name!r}: {describe(error)}")
        return tuple(problems)


def discover(
    builtins: Iterable[EntryPoint] | None = None,
    installed: Iterable[EntryPoint] | None = None,
    distributions: Iterable[str] | None = None,
) -> Registry:
    """Load plugins and collect their records; whatever they print goes to standard error.

    What a plugin changes of torch, Python or convbench while it is loaded is undone and kept in `Plugin.changes`.
    An entry point of group `convbench` names a module with hook functions, or a tuple of names of such modules.

    Args:
        builtins: convbench's own entry points; see `own_entry_points`.
        installed: entry points of other distributions; those installed in this environment when None.
        distributions: the names of other distributions whose plugins are loaded, beside our own; all when None.
    """
    with redirect_stdout(sys.stderr):
        points = entry_points(group=PROJECT)
        own = own_entry_points(points) if builtins is None else builtins
        others = (point for point in points if not _is_own(point)) if installed is None else installed
        if distributions is not None:
            wanted = set(map(normalised, distributions))
            others = (point for point in others if normalised(_distribution(point)) in wanted)
        return _discover(own, others)


def normalised(distribution: str) -> str:
    """A distribution's name as the packaging specifications compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def own_entry_points(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Those of `points` that convbench's own distribution has: one for each room.

    Without any, as in a source tree that was never installed, one for each importable package of the namespace
    `convbench`.
    """
    own = {point for point in points if _is_own(point)}
    if not own:
        rooms = [room.name for room in iter_modules(import_module(PROJECT).__path__) if room.ispkg]
        own = {EntryPoint(room, f"{PROJECT}.{room}:PLUGINS", PROJECT) for room in rooms}
    return sorted(own, key=lambda point: point.name)


def _is_own(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == PROJECT


def _discover(builtins: Iterable[EntryPoint], installed: Iterable[EntryPoint]) -> Registry:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    backends, architectures, datasets, suites = catalogs = _empty_catalogs()
    plugins = []
    for point in builtins:
        loaded = _load(manager, point, PROJECT, _version(PROJECT))
        plugins += [_collected(manager, catalogs, plugin) for plugin in loaded]
    others = sorted(set(installed), key=lambda point: (point.name, point.value))
    undo_changes = watch_loading() if others else tuple
    for point in others:
        loaded = _load(manager, point, _distribution(point), point.dist.version if point.dist else "unknown")
        collected = [_collected(manager, catalogs, plugin) for plugin in loaded]
        changes = undo_changes()
        plugins += [replace(plugin, changes=changes) for plugin in collected]
    manager.check_pending()
    registry = Registry(tuple(plugins), backends, architectures, datasets, suites, manager)
    for each in catalogs:
        each.explain_missing = lambda name: explain_missing(name, registry.broken)
    return registry


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module.partition(".")[0]


def _collected(manager: pluggy.PluginManager, catalogs: Sequence[Catalog[Any]], plugin: Plugin) -> Plugin:
    """A plugin that was loaded, with its records in the catalogs; or with its error, and without any."""
    if plugin.error is not None:
        return plugin
    try:
        records = [list(_records(manager, hook, kind, plugin)) for hook, kind in _RECORD_HOOKS.items()]
        offers: list[tuple[Catalog[Any], Any]] = list(zip(catalogs, records, strict=True))
        for catalog, of_this_kind in offers:
            catalog.check(plugin, of_this_kind)  # all of them first: a plugin is taken whole
        for catalog, of_this_kind in offers:
            catalog.add(plugin, of_this_kind)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
        manager.unregister(name=plugin.name)
        return replace(plugin, error=describe(error), place=error_location(error, plugin.module))
    return plugin


def _empty_catalogs() -> tuple[Catalog[Backend], Catalog[Architecture], Catalog[Dataset], Catalog[Path]]:
    """In the order of `_RECORD_HOOKS`."""
    return Catalog("backend"), Catalog("architecture"), Catalog("dataset"), Catalog("suite")


_RECORD_HOOKS: dict[str, type[Any]] = {
    "convbench_backends": Backend,
    "convbench_architectures": Architecture,
    "convbench_datasets": Dataset,
    "convbench_suites": Path,
}


def describe(error: BaseException) -> str:
    """An exception in one line, with its type where convbench did not raise it."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
    if isinstance(error, PluginError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def _load(manager: pluggy.PluginManager, point: EntryPoint, distribution: str, release: str) -> list[Plugin]:
    """Import what an entry point names and register its hooks; a failure becomes the plugin's `error`."""
    name = point.name
    if manager.has_plugin(name):  # another distribution chose the same entry-point name
        name = f"{distribution}:{point.name}"
    plugin = Plugin(name, distribution, release, point.value)
    try:
        loaded = point.load()
        if not isinstance(loaded, tuple):
            _register(manager, loaded, plugin)
            return [plugin]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - importing a plugin may do anything
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return [replace(plugin, error=describe(error), place=error_location(error, point.value))]
    modules = (EntryPoint(str(module), str(module), point.group) for module in loaded)
    return [each for module in modules for each in _load(manager, module, distribution, release)]


def _register(manager: pluggy.PluginManager, loaded: object, plugin: Plugin) -> None:
    if manager.is_registered(loaded):
        raise PluginError(f"{plugin.module} is already registered by another entry point")
    check_contract(loaded)
    manager.register(loaded, plugin.name)
    _check_hooks(manager, loaded)


def _check_hooks(manager: pluggy.PluginManager, loaded: object) -> None:
    """Refuse a plugin with a hook nobody calls: a misspelt hook would otherwise vanish without a word."""
    callers = manager.get_hookcallers(loaded) or []
    known = [name for name in vars(hookspecs) if name.startswith("convbench_")]
    if not callers:
        unmarked = [getattr(loaded, name) for name in known if hasattr(loaded, name)]
        raise HookError(
            "no hook of convbench is implemented; mark the functions with @hookimpl",
            next(iter(unmarked), None),
        )
    for caller in callers:
        if not caller.has_spec():
            raise HookError(
                f"unknown hook {caller.name!r}; {choices(caller.name, known)}",
                caller.get_hookimpls()[0].function,
            )


def _implementations(
    manager: pluggy.PluginManager, hook: str, loaded: object
) -> Iterator[Callable[..., Any]]:
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is loaded:
            yield implementation.function


def _records(
    manager: pluggy.PluginManager, hook: str, kind: type[Any], plugin: Plugin
) -> Iterator[tuple[str, Any]]:
    """The records one plugin returns from one hook, checked, each with its name."""
    for implementation in _implementations(manager, hook, manager.get_plugin(plugin.name)):
        offered: Any = implementation()
        if not isinstance(offered, Iterable):
            raise HookError(
                f"{hook} must return an iterable of {kind.__name__} records, not {shown(offered)}",
                implementation,
            )
        for record in offered:
            if not isinstance(record, kind):
                raise HookError(
                    f"{hook} must return {kind.__name__} records, not {shown(record)}", implementation
                )
            if isinstance(record, Backend) and (fault := _fault(record)):
                raise HookError(f"backend {shown(record.name)}: {fault}", implementation)
            name = record.stem if isinstance(record, Path) else record.name
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise HookError(
                    f"{hook}: {shown(name)} cannot be a name; letters, digits and _ . + / - can",
                    implementation,
                )
            yield name, record


def _fault(backend: Backend) -> str | None:
    """What is wrong with the fields of a backend's record, if anything is."""
    for name, value in (("devices", backend.devices), ("dtypes", backend.dtypes)):
        if isinstance(value, str):  # a missing comma: ("cpu") is "cpu"
            return f"{name} takes a tuple of names, such as ({shown(value)},), not {shown(value)}"
    if not callable(backend.load):
        example = "lambda: {'conv2d': conv2d}"
        return f"load takes a function that returns the ops by name, such as {example}, not {shown(backend.load)}"
    return None
