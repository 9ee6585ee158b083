"""The commands that look around: `convbench list` and `convbench doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from convbench.registry import ConvbenchError, Registry, UnknownName, hookimpl
from convbench.registry.discovery import Plugin
from convbench.suites.asking import ask_availability


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's commands."""
    group.add_command(list_)
    group.add_command(doctor)


@click.command("list")
@click.argument("kind", required=False, metavar="[KIND]")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a script.")
@click.pass_obj
def list_(registry: Registry, kind: str | None, as_json: bool) -> None:
    """List backends, architectures, datasets, suites, devices or plugins; all but devices by default."""
    if kind is not None and kind not in LISTINGS:
        raise UnknownName("kind", kind, LISTINGS)
    kinds = [kind] if kind else [name for name in LISTINGS if name != "devices"]
    listings = {name: list(LISTINGS[name](registry)) for name in kinds}
    if as_json:
        click.echo(json.dumps(listings[kind] if kind else listings, indent=2))
        return
    for name, entries in listings.items():
        if kind is None:
            click.echo(f"{name}:")
        _show(entries, indent="" if kind else "  ")


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a script.")
@click.pass_obj
def doctor(registry: Registry, data_dir: Path | None, as_json: bool) -> None:
    """Check plugins, devices, data, and how steady this machine is."""
    from convbench.suites.noise import examine

    report = {
        "plugins": [_traced(plugin) for plugin in registry.plugins],
        **_survey(data_dir),
        "noise": [vars(finding) for finding in examine()],
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for name, entries in report.items():
        click.echo(f"{name}:")
        if name == "noise":
            for entry in entries:
                click.echo(f"  {entry['check']}: {entry['state']}: {entry['found']}")
                click.echo(f"      {entry['advice']}")
        else:
            _show(entries, indent="  ")


def _backends(registry: Registry) -> Iterable[dict[str, Any]]:
    reasons = ask_availability(list(registry.backends))
    for name, backend in registry.backends.items():
        reason = reasons[name]
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
    from convbench.suites.suite_files import load_suite

    for name, path in registry.suites.items():
        try:
            description = load_suite(path).description
        except ConvbenchError as error:
            description = f"cannot be used: {error}"
        yield {"name": name, "description": description, "plugin": _origin(registry.suites.plugin(name))}


def _devices(registry: Registry) -> Iterable[dict[str, Any]]:
    from convbench.results.environment import device_name
    from convbench.suites.devices import available_devices

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
    built_in = plugin.name == plugin.module
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
    return f"broken: {plugin.error}" if plugin.error else "loaded"


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
    from convbench.suites.host import Host
    from convbench.suites.survey import look_around
    from convbench.suites.watching import Silent

    with TemporaryDirectory() as scratch, Host(Path(scratch) / "log") as host:
        try:
            survey = look_around(host, Silent(), "fashion-mnist", data_dir)
        except ConvbenchError as error:
            return {"data": [{"name": "fashion-mnist", "state": f"broken: {error}"}]}
    shapes = survey.data["shapes"]
    return {
        "devices": [{"name": name, "model": model} for name, model in survey.devices.items()],
        "data": [
            {
                "name": survey.data["name"],
                "train_images": shapes["train_images"][0],
                "test_images": shapes["test_images"][0],
            }
        ],
    }


def _show(entries: Iterable[Mapping[str, Any]], indent: str) -> None:
    rows = [{key: str(value) for key, value in entry.items()} for entry in entries]
    if not rows:
        click.echo(f"{indent}none")
        return
    widths = {key: max(len(row.get(key, "")) for row in rows) for key in rows[0]}
    for row in rows:
        cells = [value.ljust(widths.get(key, 0)) for key, value in row.items()]
        click.echo((indent + "  ".join(cells)).rstrip())
