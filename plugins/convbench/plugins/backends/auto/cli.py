"""`convbench auto`: what was decided on this machine, and how to forget it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from convbench.registry import Registry, discover
from convbench.registry.cli.terminal import Column, console, print_table

if TYPE_CHECKING:
    from convbench.plugins.backends.auto.decisions import Entry

# On a narrow terminal the columns with the highest `drops` are left out first.
COLUMNS = (
    Column("call", (), wraps=20),
    Column("gradients of", (), wraps=13, drops=2),
    Column("winner", ()),
    Column("ms", (), right=True),
    Column("runner-up", (), drops=1),
    Column("ms", (), right=True, drops=1),
    Column("all, ms", (), wraps=30, drops=3),
    Column("holds", (), wraps=10),
)


@click.group()
def auto() -> None:
    """Show or forget what the backend `auto` has found to be fastest here."""


@auto.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(registry: Registry | None, as_json: bool) -> None:
    """List every decision: the call, the winner, the runner-up, and the times of all.

    Times are of forward and backward together, in milliseconds; a quarter of the rounds were faster. A decision
    made by another version of a plugin or of torch, or on another machine, no longer holds; the last column says
    what has changed.
    """
    from convbench.plugins.backends.auto import decisions
    from convbench.plugins.backends.auto.cache_key import lasting
    from convbench.plugins.backends.auto.candidates import candidates_of

    root = decisions.directory()
    found = list(decisions.entries(root))
    now = lasting(candidates_of(registry or discover())) if found else {}
    if as_json:
        entries = [_as_json(entry, changes(entry.key["conditions"], now)) for entry in found]
        click.echo(json.dumps({"directory": str(root), "entries": entries}, indent=2))
        return
    if found:
        cells = zip(*(_cells(entry, now) for entry in found), strict=True)
        columns = [replace(column, cells=each) for column, each in zip(COLUMNS, cells, strict=True)]
        print_table(console(), columns)
    click.echo(f"{len(found)} decisions in {root}", err=True)


@auto.command()
def clear() -> None:
    """Forget every decision; the next run times everything anew."""
    from convbench.plugins.backends.auto import decisions

    root = decisions.directory()
    click.echo(f"forgot {decisions.clear(root)} decisions in {root}", err=True)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a decision was made under and is no longer so, in words."""
    changed = [name for name in now if name != "candidates" and then.get(name) != now[name]]
    before, after = then.get("candidates", {}), now.get("candidates", {})
    changed += [f"{name} is gone" for name in before if name not in after]
    changed += [f"{name} is new" for name in after if name not in before]
    changed += [name for name in before if name in after and before[name] != after[name]]
    return changed


def _cells(entry: Entry, now: Mapping[str, Any]) -> list[str]:
    decision = entry.decision
    winner, *others = [(name, f"{1000 * seconds:.3g}") for name, seconds in _ranking(entry)] or [("", "")]
    runner_up = others[0] if others else ("", "")
    rest = ", ".join(f"{name} {ms}" for name, ms in [winner, *others])
    changed = changes(entry.key["conditions"], now)
    holds = f"no longer: {', '.join(changed)}" if changed else "yes"
    needs = ", ".join(entry.needs) or "nothing"
    return [entry.call, needs, str(decision), winner[1], *runner_up, rest, holds]


def _ranking(entry: Entry) -> list[tuple[str, float]]:
    """The winner and then the others by their times, in the contest that decided and in that of wholes."""
    decision = entry.decision
    times = {**decision.seconds.get("whole", {}), **decision.last}
    return sorted(times.items(), key=lambda each: (each[0] != str(decision), each[1]))


def _as_json(entry: Entry, changed: Sequence[str]) -> dict[str, Any]:
    decision = entry.decision
    return {
        "call": entry.call,
        "gradients_of": list(entry.needs),
        "chosen": str(decision),
        **decision.as_json(),
        "made_at": entry.made_at,
        "conditions": entry.key["conditions"],
        "holds": not changed,
        "changed": list(changed),
        "file": entry.path.name,
    }
