"""`convbench verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from convbench.registry import GateFailed, NothingRan, Registry, hookimpl
from convbench.registry.cli.completion import registered
from convbench.registry.conformance.report import GENERATED, grouped
from convbench.suites.cli.options import allowed, many, warn_of_broken_plugins

if TYPE_CHECKING:
    from convbench.suites.processes.verification import Verification

LISTED = 10  # failed cases of a backend


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
    """Hold backends against the float64 reference: forward, gradients, bad arguments. Exits 1 if one fails.

    Of what fails, the first case of each kind is shrunk to the smallest one that fails, and printed as Python
    that shows the failure again.
    """
    from convbench.suites.processes.verification import verify_backends

    warn_of_broken_plugins(registry, backends or ("*",))
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
        click.echo(result.line)
        for outcome in result.first_failures:
            fault = f" ({outcome.known_fault})" if outcome.known_fault else ""
            click.echo(f"\n# {outcome.state}{fault}: {outcome.case}\n{outcome.reproduction}\n")
        _list_outcomes(result, verbose)
        for name, number in result.report.faults_not_shown.items():
            click.echo(f"    {name}: it does not show in any of {number} cases")
    wrong = [
        result.backend for result in results if result.status not in ("ok", "unavailable", "unsupported")
    ]
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(results)} backends failed: {', '.join(wrong)}")
    if not any(result.status == "ok" for result in results):
        raise NothingRan(f"no backend could be verified on {device}")


def _list_outcomes(result: Verification, verbose: bool) -> None:
    """What did not pass, a line each, first what there is Python for; unless verbose not more than a few."""
    first = result.first_failures
    rest = [outcome for outcome in result.outcomes if outcome.state != "passed" and outcome not in first]
    listed = [outcome for outcome in first + rest if outcome.state != "unsupported" or verbose]
    groups = [[outcome] for outcome in listed] if verbose else grouped(listed)[:LISTED]
    for outcome, *like_it in groups:
        smaller = f" (the smallest; it was {outcome.shrunk_from})" if outcome.shrunk_from else ""
        fault = f" ({outcome.known_fault})" if outcome.known_fault else ""
        click.echo(f"    {outcome.state}{fault}: {outcome.case}, {outcome.dtype}: {outcome.message}{smaller}")
        if like_it:
            more = "1 more case fails" if len(like_it) == 1 else f"{len(like_it)} more cases fail"
            click.echo(f"        {more} in this way")
    shown = sum(map(len, groups))
    if shown < len(listed):
        click.echo(f"    and {len(listed) - shown} more like these (--verbose shows them)")
