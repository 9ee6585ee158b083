"""Lets a script depend on a comparison: what is refused, and what passing is worth.

The gate is a test of non-inferiority: a pair passes where its one-sided 95 % interval lies below the limit. All
pairs have to pass (an intersection-union test), so this needs no correction for their number. A pair fails where
the verdict, which is corrected for that number, is `slower`, and its 95 % interval lies beyond the limit.
docs/comparing.md has how often equals pass, and what is slower.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from convbench.registry.errors import GateFailed, NothingRan, UsageError
from convbench.results.analysis.coverage import served_change, unlike_shares
from convbench.results.analysis.significance import Difference, effect, processes_to_pass, would_decide
from convbench.results.comparison.pairing import name
from convbench.results.wording import count

if TYPE_CHECKING:
    from convbench.results.comparison.compare import Comparison, TimePair

FINEST = 1e-3  # the smallest effect that a gate has looked for, however little it lets pass


def gate(comparison: Comparison, slower: float, *, allow_unclear: bool) -> str:
    """See `Comparison.gate`."""
    if comparison.min_effect > max(slower, FINEST):
        raise UsageError(
            f"a gate of {slower:.1%} is deaf: differences below {comparison.min_effect:.1%} were not looked for; "
            f"compare with min_effect={max(slower, FINEST):g}"
        )
    failed = [pair for pair in comparison.times if pair.verdict == "slower" and pair.low > 1 + slower]
    lost = [left for left in comparison.left_out if left.lost]
    if failed:
        worst = max(failed, key=lambda pair: pair.ratio)
        raise GateFailed(
            f"{len(failed)} of {len(comparison.times)} pairs are slower by more than {slower:.1%}, the worst "
            f"by {effect(worst.ratio)}: {worst.name} in {worst.file}"
        )
    if lost:
        first = f"{name(lost[0].combination)} {lost[0].reason}"
        raise GateFailed(
            f"{count(len(lost), 'combination')} of the base could not be measured again: {first}"
        )
    if fallen := [pair for pair in comparison.times if pair.served_less]:
        worst = min(fallen, key=lambda pair: served_change(pair.base_served, pair.new_served))
        shares = unlike_shares(worst.base_served, worst.new_served)
        raise GateFailed(
            f"in {len(fallen)} of {len(comparison.times)} pairs the backend left to torch what it computed in the "
            f"base: {worst.name} in {worst.file}, {shares}"
        )
    if not comparison.times:
        raise NothingRan("the gate has nothing to judge: no step time was compared")
    undecided = [pair for pair in comparison.times if pair.upper >= 1 + slower]
    worst_of = max((pair for pair in undecided), key=lambda pair: pair.upper, default=None)
    if worst_of and (not allow_unclear or len(undecided) == len(comparison.times)):
        limit, together = math.log1p(slower), len(comparison.times)
        advice = would_decide([processes_to_pass(gap(pair), limit, together) for pair in undecided])
        raise NothingRan(
            f"the gate cannot tell: in {len(undecided)} of {together} pairs a slow-down by "
            f"{slower:.1%} is not ruled out; {worst_of.name} may be slower by up to "
            f"{effect(worst_of.upper)}. {advice[0].upper()}{advice[1:]} (--rounds), or fewer on a quieter machine"
        )
    passed = (
        f"none of {len(comparison.times)} pairs is slower by more than {slower:.1%}, at 95 % confidence each"
    )
    if worst_of:
        passed += (
            f"; but noise hides as much in {len(undecided)}, in the worst up to {effect(worst_of.upper)}"
        )
    if comparison.left_out:
        passed += f"; {count(len(comparison.left_out), 'combination')} could not be compared"
    return passed


def gap(pair: TimePair) -> Difference:
    """A pair's difference as it was tested, as far as the number of processes depends on it."""
    processes = 2 / (1 / pair.base_processes + 1 / pair.new_processes)
    return Difference(math.log(pair.ratio), pair.standard_error, math.nan, processes, paired=pair.paired)
