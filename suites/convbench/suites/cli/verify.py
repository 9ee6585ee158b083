"""`convbench verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from convbench.registry import GateFailed, NothingRan, Registry, hookimpl
from convbench.registry.cli.completion import registered
from convbench.registry.cli.terminal import console, print_text
from convbench.registry.conformance.report import GENERATED, Outcome, grouped
from convbench.suites.cli.options import allowed, many, warn_of_broken_plugins

if TYPE_CHECKING:
    from rich.console import Console

LISTED = 3  # ways in which cases of an op fail


@hookimpl
def convbench_commands(group: click.Group) -> None:
    """Add this module's command."""
    group.add_command(verify)


@click.command()
@click.argument("backends", nargs=-1, metavar="[BACKEND]...", shell_complete=registered("backends"))
@click.option("--device", default="cpu", show_default=True, help="The torch device to run on.")
@many("--dtype", "Dtypes to check; every one a backend claims by default.", complete=allowed("dtypes"))
@click.option(
    "--cases",
    type=click.IntRange(min=0),
    default=GENERATED,
    show_default=True,
    metavar="N",
    help="Generated cases of every op and dtype, beside the curated ones.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of generated cases and random data."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time after which a backend's verification is ended.",
)
@click.option("--verbose", is_flag=True, help="List every case that failed, and what is unsupported.")
@click.pass_obj
def verify(
    registry: Registry,
    /,
    backends: tuple[str, ...],
    device: str,
    dtype: list[str] | None,
    cases: int,
    seed: int,
    timeout: float,
    verbose: bool,
) -> None:
    """Check backends against the float64 reference: forward, gradients, bad arguments. Exits 1 if one fails.

    Failures with the same cause are listed once, with the smallest case that fails so. Of each kind, one is
    printed as Python that shows the failure again.
    """
    from convbench.suites.processes.verification import verify_backends

    warn_of_broken_plugins(registry, backends or ("*",))
    out = console()
    results = verify_backends(
        registry,
        backends or ("*",),
        device=device,
        dtypes=dtype,
        timeout=timeout,
        generated=cases,
        seed=seed,
    )
    for result in results:
        print_text(out, result.line)
        groups = _listed(list(result.outcomes), verbose)
        tried: dict[tuple[str, str], set[str]] = {}
        for outcome in result.outcomes:
            tried.setdefault((outcome.op, outcome.kind), set()).add(outcome.dtype)
        for group in groups:
            _print_group(out, group, tried.get((group[0].op, group[0].kind), set()))
        hidden = len(result.report.failures) - sum(map(len, groups))
        if hidden > 0:
            print_text(
                out, f"and {hidden} more that fail in other ways (--verbose shows them)", indent="    "
            )
        for outcome in result.first_failures:
            fault = f" ({outcome.known_fault})" if outcome.known_fault else ""
            click.echo(f"\n# {outcome.state}{fault}: {outcome.case}\n{outcome.reproduction}\n")
        for name, number in result.report.faults_not_shown.items():
            click.echo(f"    {name}: it does not show in any of {number} cases")
    wrong = [
        result.backend for result in results if result.status not in ("ok", "unavailable", "unsupported")
    ]
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(results)} backends failed: {', '.join(wrong)}")
    if not any(result.status == "ok" for result in results):
        refused = any(result.status == "unsupported" and result.outcomes for result in results)
        why = "; --verbose lists the calls that are not supported" * (refused and not verbose)
        raise NothingRan(f"no backend could be verified on {device}{why}")


def _listed(outcomes: list[Outcome], verbose: bool) -> list[list[Outcome]]:
    """Groups of what did not pass, the largest first, of each op and kind a few; if verbose, every case."""
    if verbose:
        return [[outcome] for outcome in outcomes if outcome.state != "passed"]
    groups = grouped(outcome for outcome in outcomes if outcome.is_failure)
    by_kind: dict[tuple[str, str], list[list[Outcome]]] = {}
    for group in sorted(groups, key=len, reverse=True):
        by_kind.setdefault((group[0].op, group[0].kind), []).append(group)
    return [group for of_kind in by_kind.values() for group in of_kind[:LISTED]]


def _print_group(out: Console, group: list[Outcome], tried: set[str]) -> None:
    """What is wrong and what to do; where, with the smallest case; and how many cases fail like it."""
    first, dtypes = group[0], dict.fromkeys(outcome.dtype for outcome in group)
    fault = f" ({first.known_fault})" if first.known_fault else ""
    only = f" in {' and '.join(dtypes)} only" if first.is_failure and tried > set(dtypes) else ""
    lines = [f"in {first.case}, {first.dtype}"] if first.dtype else []
    if first.cause and first.message not in first.cause:
        lines.append(first.message)
    if first.shrunk_from:
        lines.append(f"the smallest case; it was {first.shrunk_from}")
    if len(group) > 1:
        more = "1 more case fails" if len(group) == 2 else f"{len(group) - 1} more cases fail"
        lines.append(f"{more} in this way")
    print_text(out, f"{first.state}{only}{fault}: {first.cause or first.message}", indent="    ")
    for line in lines:
        print_text(out, line, indent="        ")
