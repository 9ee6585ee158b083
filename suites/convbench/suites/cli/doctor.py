"""`convbench doctor`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from convbench.registry import ConvbenchError, Registry, hookimpl
from convbench.registry.cli.terminal import console, print_text, working
from convbench.registry.discovery.plugin_errors import without_entry_point
from convbench.registry.discovery.plugins import Plugin
from convbench.results.tables.escaping import flatten
from convbench.suites.cli.list import backends, show, state_of

if TYPE_CHECKING:
    from rich.console import Console


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's command."""
    group.add_command(doctor)


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--verbose", is_flag=True, help="Also list every plugin, and what is fine.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a script.")
@click.pass_obj
def doctor(registry: Registry, data_dir: Path | None, verbose: bool, as_json: bool) -> None:
    """Check plugins, devices, data, and how steady this machine is."""
    from convbench.suites.machine.noise import examine
    from convbench.suites.processes.probe import ask_interference

    with working("looking at plugins, backends, devices and data"):
        plugins = ask_interference(registry.plugins)
        report: dict[str, list[dict[str, Any]]] = {
            "plugins": [_traced(plugin) for plugin in plugins],
            "backends": list(backends(registry)),
            **_survey(data_dir),
        }
    with working("measuring how steady this machine is"):
        report["noise"] = [vars(finding) for finding in examine()]
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    out = console()
    _diagnose(out, plugins, report)
    if verbose:
        for name in ("plugins", "backends", "noise"):
            out.print(f"\n{name}:", style="bold")
            show(report[name], indent="  ", verbose=True)


def _diagnose(
    out: Console, plugins: Sequence[Plugin], report: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """What is wrong, each with what to do about it; then what is fine, in short."""
    problems = [(plugin.fault, "") for plugin in plugins if plugin.error]
    problems += [
        (plugin.interference, "its backends are not measured") for plugin in plugins if plugin.changes
    ]
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


def _traced(plugin: Plugin) -> dict[str, Any]:
    """A plugin with everything that says where it came from."""
    built_in = plugin.module.startswith("convbench.")
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "entry_point": "built in" if built_in else f"{plugin.name.rpartition(':')[2]} = {plugin.module}",
        "file": _file(plugin.module) or "not found",
        "state": state_of(plugin),
    }


def _file(module: str) -> str | None:
    """Where the module of an entry point is, whether it can be imported or not."""
    try:
        with redirect_stdout(sys.stderr):
            spec = find_spec(module.partition(":")[0])
    except Exception:  # noqa: BLE001 - it imports the packages around the module, and those can do anything
        return None
    return spec.origin if spec else None


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
