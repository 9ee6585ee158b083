"""The commands that look around: `convbench list` and `convbench doctor`."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from convbench.registry import ConvbenchError, Registry, UnknownName, hookimpl
from convbench.registry.cli.terminal import Column, console, print_table, print_text, working
from convbench.registry.discovery.plugin_errors import without_entry_point
from convbench.registry.discovery.plugins import Plugin
from convbench.results.tables.escaping import flatten

if TYPE_CHECKING:
    from rich.console import Console

OURS = "convbench "  # so begin name and version of the package that the built-in plugins are in
MANY = 5  # names of one library that are listed each on its own


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's commands."""
    group.add_command(list_)
    group.add_command(doctor)


@click.command("list")
@click.argument("kind", required=False, metavar="[KIND]")
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
        _show(entries if verbose else shorten(entries), indent="" if kind else "  ", verbose=verbose)


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--verbose", is_flag=True, help="Also list every plugin, and what is fine.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a script.")
@click.pass_obj
def doctor(registry: Registry, data_dir: Path | None, verbose: bool, as_json: bool) -> None:
    """Check plugins, devices, data, and how steady this machine is."""
    from convbench.suites.machine.noise import examine

    with working("looking at plugins, backends, devices and data"):
        report: dict[str, list[dict[str, Any]]] = {
            "plugins": [_traced(plugin) for plugin in registry.plugins],
            "backends": list(_backends(registry)),
            **_survey(data_dir),
        }
    with working("measuring how steady this machine is"):
        report["noise"] = [vars(finding) for finding in examine()]
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    out = console()
    _diagnose(out, registry, report)
    if verbose:
        for name in ("plugins", "backends", "noise"):
            out.print(f"\n{name}:", style="bold")
            _show(report[name], indent="  ", verbose=True)


def _diagnose(out: Console, registry: Registry, report: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """What is wrong, each with what to do about it; then what is fine, in short."""
    problems = [(plugin.fault, "") for plugin in registry.broken]
    problems += [(each, "") for each in without_entry_point()]
    for data in report["data"]:
        if "state" in data:
            problems.append((f"data: {data['name']}: {data['state']}", ""))
        elif data["name"].endswith("-sample"):
            problems.append(
                (
                    "data: only the embedded sample is here",
                    "`convbench data fetch` downloads the whole data set",
                )
            )
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for finding in report["noise"]:
        found[finding["state"]].append(finding)
    problems += [(f"{each['check']}: {each['found']}", each["advice"]) for each in found["warning"]]
    out.print("problems:" if problems else "no problems", style="bold")
    for problem, advice in problems:
        print_text(out, flatten(problem), indent="  ", style="red")
        if advice:
            print_text(out, flatten(advice), indent="      ")
    if faults := report.get("known_faults"):
        out.print("known faults of torch and its libraries here:", style="bold")
        for fault in faults:
            print_text(out, f"{fault['name']}: {fault['summary']}", indent="  ")
    out.print("fine:", style="bold")
    for line in _fine(report, [each["check"] for each in found["ok"]]):
        print_text(out, flatten(line), indent="  ")
    if found["unknown"]:
        out.print("cannot be told here:", style="bold")
        for each in found["unknown"]:
            print_text(out, f"{each['check']}: {each['found']}; {each['advice']}", indent="  ")


def _fine(report: Mapping[str, Sequence[Mapping[str, Any]]], checks: Sequence[str]) -> Iterator[str]:
    """What works, in a few lines."""
    loaded = [each for each in report["plugins"] if each["state"] == "loaded"]
    yield f"plugins: {len(loaded)} loaded"
    reasons: dict[str, list[str]] = defaultdict(list)
    for backend in report["backends"]:
        reasons[backend["state"].removeprefix("unavailable: ")].append(backend["name"])
    yield f"backends: {', '.join(reasons.pop('available', ['none']))}"
    if reasons:
        rest = (f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        yield f"backends that cannot run here: {'; '.join(rest)}"
    devices = report.get("devices", ())
    if devices:
        yield f"devices: {', '.join(' '.join(filter(None, each.values())) for each in devices)}"
    for data in report["data"]:
        if "train_images" in data:
            sizes = f"{data['train_images']:,} training and {data['test_images']:,} test images"
            yield f"data: {data['name']}, {sizes}"
    if checks:
        yield f"machine: {', '.join(checks)}"


def _backends(registry: Registry) -> Iterable[dict[str, Any]]:
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
    for plugin in registry.plugins:
        yield {
            "name": plugin.name,
            "plugin": _origin(plugin),
            "module": plugin.module,
            "state": _state(plugin),
        }


def _traced(plugin: Plugin) -> dict[str, Any]:
    """A plugin with everything that says where it came from."""
    built_in = plugin.module.startswith("convbench.")
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "entry_point": "built in" if built_in else f"{plugin.name.rpartition(':')[2]} = {plugin.module}",
        "file": _file(plugin.module) or "not found",
        "state": _state(plugin),
    }


def _file(module: str) -> str | None:
    """Where the module of an entry point is, whether it can be imported or not."""
    try:
        with redirect_stdout(sys.stderr):
            spec = find_spec(module.partition(":")[0])
    except Exception:  # noqa: BLE001 - it imports the packages around the module, and those can do anything
        return None
    return spec.origin if spec else None


def _state(plugin: Plugin) -> str:
    where = f" ({plugin.place})" if plugin.place else ""
    return f"broken: {plugin.error}{where}" if plugin.error else "loaded"


LISTINGS = {
    "backends": _backends,
    "architectures": _architectures,
    "datasets": _datasets,
    "suites": _suites,
    "devices": _devices,
    "plugins": _plugins,
}


def _origin(plugin: Any) -> str:
    return f"{plugin.distribution} {plugin.version}"


def _survey(data_dir: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Devices and data, as a worker of a run would find them."""
    from convbench.suites.processes.probe import survey
    from convbench.suites.processes.supervisor import Supervisor

    with TemporaryDirectory() as scratch, Supervisor(Path(scratch) / "log") as supervisor:
        try:
            found = survey(supervisor, "fashion-mnist", data_dir)
        except ConvbenchError as error:
            return {"data": [{"name": "fashion-mnist", "state": f"broken: {error}"}]}
    faults = found.environment["known_faults"] or {}
    return {
        "known_faults": [{"name": name, "summary": summary} for name, summary in faults.items()],
        "devices": [{"name": name, "model": model} for name, model in found.devices.items()],
        "data": [
            {
                "name": found.images.name,
                "train_images": found.train_images,
                "test_images": found.test_images,
            }
        ],
    }


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


def _show(entries: Sequence[Mapping[str, Any]], indent: str, verbose: bool) -> None:
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
