"""Where training ended, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convbench.results.analysis.significance import MIN_POINTS
from convbench.results.analysis.standings import Accuracy, Group
from convbench.results.wording import count, number

SAME_LOSS = 1e-3  # of the loss: round-off takes trainings of the same weights this far apart


def accuracy(group: Group) -> list[str]:
    """What accuracy, or loss, the competitors of one race reached, in at most two sentences."""
    known = [(line.name, line.accuracy) for line in group.lines if line.accuracy]
    is_loss = all(each.is_loss for _, each in known)
    reached = [(n, each) for n, each in known if each.is_loss == is_loss and math.isfinite(each.mean)]
    if not reached:
        return []
    reached.sort(key=lambda pair: pair[1].mean if is_loss else -pair[1].mean)
    cut = sum(each.budgeted for _, each in reached)
    said = (
        f"{ends(reached, is_loss)}{quickest(group, reached) if alike(reached, is_loss) and not cut else ''}."
    )
    return [said, *budgeted(cut, len(reached))]


def alike(reached: Sequence[tuple[str, Accuracy]], is_loss: bool) -> bool:
    """Whether best and worst are too near to each other to matter."""
    best, worst = reached[0][1].mean, reached[-1][1].mean
    return abs(best - worst) <= (SAME_LOSS * abs(best) if is_loss else MIN_POINTS)


def ends(reached: Sequence[tuple[str, Accuracy]], is_loss: bool) -> str:
    """The best and the worst end."""
    what = "validation loss" if is_loss else "validation accuracy"
    (first, best), (last, worst) = reached[0], reached[-1]
    if len(reached) == 1:
        return f"{first} reached a {what} of {best.mean:.3f}"
    if not alike(reached, is_loss):
        return f"Training ended at a {what} from {best.mean:.3f} ({first}) to {worst.mean:.3f} ({last})"
    within = "" if is_loss else ", to within a percentage point"
    return f"All reached the same {what}, {best.mean:.3f}{within}"


def budgeted(cut: int, trained: int) -> list[str]:
    """What a budget that ended trainings early means for what they reached."""
    if not cut:
        return []
    if cut == trained:
        return ["The budget ended training before its last epoch, so none of this is final."]
    return [
        f"{count(cut, 'of these trainings was', 'of these trainings were')} cut by the budget: not final."
    ]


def quickest(group: Group, reached: Sequence[tuple[str, Accuracy]]) -> str:
    """Who of those that are ranked took the shortest time to get there, and who the longest."""
    ranked = {line.name for line in group.lines if line.ranked}
    took = sorted(
        (each.seconds, name) for name, each in reached if each.seconds is not None and name in ranked
    )
    if len(took) < 2:
        return ""
    (shortest, first), (longest, last) = took[0], took[-1]
    return f"; {first} in the shortest time, {number(shortest)} s, {last} in the longest, {number(longest)} s"
