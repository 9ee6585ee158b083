"""`convbench cluster`."""

from __future__ import annotations

import json
import time

import click

from convbench.registry import hookimpl


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's command."""
    group.add_command(cluster)


@click.group()
def cluster() -> None:
    """Look at a Ray cluster that measures."""


@cluster.command()
@click.option(
    "--address", default="auto", help="Of the cluster; `auto` is the one that this machine belongs to."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(address: str, as_json: bool) -> None:
    """Show the machines, what they do, which runs wait for them, and how long it will take."""
    from convbench.suites.cluster.status import cluster_status
    from convbench.suites.config.durations import span

    found, now = cluster_status(address), time.time()
    if as_json:
        slots = [
            {
                "node": slot.node,
                "device": slot.device,
                "number": slot.number,
                "run": doing and doing.run,
                "doing": doing and doing.what,
                "seconds": doing and round(max(now - doing.since, 0.0), 1),
            }
            for slot, doing in found.slots.items()
        ]
        text = json.dumps({"slots": slots, "runs": found.runs, "waiting": found.waiting}, indent=2)
        click.echo(text)
        return
    for slot, doing in found.slots.items():
        does = f"{doing.run}: {doing.what} ({span(max(now - doing.since, 0.0))})" if doing else "free"
        click.echo(f"{slot.name}  {does}")
    if not found.slots:
        click.echo("no machine of this cluster offers itself for measuring")
    for run, left in found.runs.items():
        click.echo(f"{run}: {left or 'it has not said yet what is left'}")
    for name in found.waiting:
        click.echo(f"{name}: waits for this slot")
