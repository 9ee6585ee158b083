"""`convbench list`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from convbench.registry import ConvbenchError, Registry, UnknownName, hookimpl
from convbench.registry.cli.completion import completing
from convbench.registry.cli.terminal import Column, console, print_table, working
from convbench.registry.discovery.plugins import Plugin
from convbench.results.tables.escaping import flatten

OURS = "convbench "  # the package of the built-in plugins; its version follows
MANY = 5  # names of one library that are still listed one by one


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's command."""
    group.add_command(list_)


@click.command("list")
@click.argument(
    "kind", required=False, metavar="[KIND]", shell_complete=completing(lambda registry: LISTINGS)
)
@click.option("--verbose", is_flag=True, help="List every name, with all that is known of it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a script.")
@click.pass_obj
def list_(registry: Registry, kind: str | None, verbose: bool, as_json: bool) -> None:
    """List backends, architectures, datasets, suites, devices or plugins; all but devices by default."""
    if kind is not None and kind not in LISTINGS:
        raise UnknownName("kind", kind, LISTINGS)
    kinds = [kind] if kind else [name for name in LISTINGS if name != "devices"]
    with working("asking the backends whether they can run here" if "backends" in kinds else "listing"):
        listings = {name: list(LISTINGS[name](registry)) for name in kinds}
    if as_json:
        click.echo(json.dumps(listings[kind] if kind else listings, indent=2))
        return
    if "plugins" not in kinds:
        for plugin in registry.broken:
            click.echo(f"warning: {plugin.fault}", err=True)
    for name, entries in listings.items():
        if kind is None:
            click.echo(f"{name}:")
        shorten = _without_built_ins if name == "plugins" else _together
        show(entries if verbose else shorten(entries), indent="" if kind else "  ", verbose=verbose)


def backends(registry: Registry) -> Iterable[dict[str, Any]]:
    from convbench.suites.processes.probe import ask_availability

    reasons = ask_availability(list(registry.backends))
    for name, backend in registry.backends.items():
        reason = reasons.get(name)
        yield {
            "name": name,
            "summary": backend.summary,
            "devices": ", ".join(backend.devices),
            "dtypes": ", ".join(backend.dtypes),
            "plugin": _origin(registry.backends.plugin(name)),
            "state": f"unavailable: {reason}" if reason else "available",
        }


def _architectures(registry: Registry) -> Iterable[dict[str, Any]]:
    for name, architecture in registry.architectures.items():
        yield {
            "name": name,
            "summary": architecture.summary,
            "input": "x".join(map(str, architecture.input_shape)),
            "source": architecture.source,
            "plugin": _origin(registry.architectures.plugin(name)),
        }


def _datasets(registry: Registry) -> Iterable[dict[str, Any]]:
    for name, dataset in registry.datasets.items():
        plugin = _origin(registry.datasets.plugin(name))
        yield {"name": name, "summary": dataset.summary, "source": dataset.source, "plugin": plugin}


def _suites(registry: Registry) -> Iterable[dict[str, Any]]:
    from convbench.suites.config.suite import load_suite

    for name, path in registry.suites.items():
        try:
            description = load_suite(path).description
        except ConvbenchError as error:
            description = f"cannot be used: {error}"
        yield {"name": name, "description": description, "plugin": _origin(registry.suites.plugin(name))}


def _devices(registry: Registry) -> Iterable[dict[str, Any]]:
    from convbench.results.storage.environment import device_name
    from convbench.suites.measure.devices import available_devices

    for device in available_devices():
        yield {"name": device, "model": device_name(device)}


def _plugins(registry: Registry) -> Iterable[dict[str, Any]]:
    from convbench.suites.processes.probe import ask_interference

    for plugin in ask_interference(registry.plugins):
        yield {
            "name": plugin.name,
            "plugin": _origin(plugin),
            "module": plugin.module,
            "state": state_of(plugin),
        }


def state_of(plugin: Plugin) -> str:
    where = f" ({plugin.place})" if plugin.place else ""
    if plugin.error:
        return f"broken: {plugin.error}{where}"
    return f"interferes: {'; '.join(plugin.changes)} (undone)" if plugin.changes else "loaded"


LISTINGS: Mapping[str, Callable[[Registry], Iterable[dict[str, Any]]]] = {
    "backends": backends,
    "architectures": _architectures,
    "datasets": _datasets,
    "suites": _suites,
    "devices": _devices,
    "plugins": _plugins,
}


def _origin(plugin: Any) -> str:
    return f"{plugin.distribution} {plugin.version}"


def _together(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Names of one library, such as torchvision/*, as one entry where they are many."""
    counts = Counter(entry["name"].partition("/")[0] for entry in entries if "/" in entry["name"])
    shown: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        library, slash, _ = entry["name"].partition("/")
        if slash and counts[library] > MANY:
            summary = f"{counts[library]} models (--verbose lists them)"
            entry = {"name": f"{library}/*", "summary": summary, "plugin": entry["plugin"]}
        shown[entry["name"]] = entry
    return list(shown.values())


def _without_built_ins(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Plugins of others, and those that are broken; the built-in ones are counted."""
    ours = [
        entry for entry in entries if entry["module"].startswith("convbench.") and entry["state"] == "loaded"
    ]
    counted = (
        {"name": "built in", "plugin": ours[0]["plugin"], "state": f"{len(ours)} loaded"} if ours else None
    )
    return [*([counted] if counted else []), *(entry for entry in entries if entry not in ours)]


# The columns of listings, from the left: how wide they stay, and in which order they are left out.
COLUMNS = {
    "name": Column("name", ()),
    "state": Column("state", (), wraps=14),
    "found": Column("found", (), wraps=24),
    "advice": Column("advice", (), wraps=24, drops=6),
    "check": Column("check", ()),
    "model": Column("model", (), wraps=16),
    "summary": Column("summary", (), wraps=26),
    "description": Column("description", (), wraps=28),
    "input": Column("input", (), drops=3),
    "devices": Column("devices", (), drops=4),
    "dtypes": Column("dtypes", (), wraps=24, drops=5),
    "source": Column("source", (), wraps=20, drops=6),
    "plugin": Column("plugin", (), drops=7),
}


def show(entries: Sequence[Mapping[str, Any]], indent: str, verbose: bool) -> None:
    """Entries as a table without headings; where `verbose`, with all that is known of each."""
    if not entries:
        click.echo(f"{indent}none")
        return
    keys = [key for key in COLUMNS if any(key in entry for entry in entries)]
    keys += [key for entry in entries[:1] for key in entry if key not in COLUMNS] if verbose else []
    columns = []
    for key in keys:
        cells = [flatten(str(entry.get(key, ""))) for entry in entries]
        alone = key == "plugin" and all(cell.startswith(OURS) for cell in cells)
        if any(cells) and (verbose or not alone):
            column = replace(COLUMNS.get(key, Column(key, (), wraps=16, drops=8)), cells=cells)
            columns.append(replace(column, drops=0) if verbose else column)
    print_table(console(), columns, indent=indent)
