"""What the charts of a run show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.standings import (
    Group,
    Line,
    measured,
    middle,
    step_ms_by_process,
    step_samples,
)
from convbench.results.analysis.statistics import mean_interval
from convbench.results.charts.figures import (
    Axis,
    Bar,
    Bars,
    Curve,
    Curves,
    Figure,
    Stack,
    Stacks,
    Strip,
    Strips,
)
from convbench.results.charts.palette import hues
from convbench.results.charts.scales import positive
from convbench.results.schema import Epoch, Row
from convbench.results.wording import number

DRAWN = 24  # competitors in one chart: more cannot be told apart, and the tables hold them all
STEPS_DRAWN = 120  # of one process, at even ranks of their order, so that their distribution stays
WIDE = 20.0  # ranges whose ends differ by a larger factor are drawn on a logarithmic axis
PHASES = ("data", "forward", "backward", "optimizer")


def figures(contents: Contents, group: Group) -> Iterator[Figure]:
    """The charts of one race, of which there may be none; a competitor has one colour in all races."""
    colours = hues(contents)
    lines = [line for line in group.lines if line.images_per_second is not None or line.accuracy]
    names = [line.name for line in lines[:DRAWN]]
    rows = {line.name: contents.table.rows_of(group, line.name) for line in lines}
    note = f"the first {DRAWN} of {len(lines)} {group.subject}s" if len(lines) > DRAWN else ""
    epochs: dict[str, list[Epoch]] = defaultdict(list)
    trained = {row.combination for own in rows.values() for row in own}
    for epoch in contents.epochs:
        if epoch.combination in trained:
            epochs[getattr(epoch, group.subject)].append(epoch)
    found = [
        speed(lines, rows, contents, colours, note),
        distribution(names, rows, contents, colours, note),
        phases(names, rows, note),
        *(
            training(names, epochs, colours, x, y, note)
            for y in ("val_accuracy", "train_loss")
            for x in ("steps", "train_seconds")
        ),
        reached(lines, colours, note),
    ]
    yield from (figure for figure in found if figure is not None)


def speed(
    lines: Iterable[Line],
    rows: Mapping[str, Sequence[Row]],
    contents: Contents,
    colours: Mapping[str, int],
    note: str,
) -> Bars | None:
    """Throughputs, with their intervals over processes."""
    bars = []
    for line in lines:
        if not positive(line.images_per_second):
            continue
        value = float(line.images_per_second or 0)
        low = high = None
        interval = mean_interval(list(step_ms_by_process(rows[line.name]).values()))
        if interval is not None and line.step_ms:
            low, high = value * line.step_ms / interval.high, value * line.step_ms / interval.low
        bars.append(
            Bar(
                line.name,
                colours[line.name],
                value,
                low,
                high,
                number(value) + ", not ranked" * (not line.ranked),
            )
        )
    if not bars:
        return None
    whiskers = "whiskers: 95 % interval over processes" if any(bar.low is not None for bar in bars) else ""
    axis = Axis("images per second, more is better")
    return Bars("Training throughput", axis, tuple(bars[:DRAWN]), joined(whiskers, note))


def distribution(
    names: Iterable[str],
    rows: Mapping[str, Sequence[Row]],
    contents: Contents,
    colours: Mapping[str, int],
    note: str,
) -> Strips | None:
    """Every step time that was measured, process by process."""
    strips = []
    for name in names:
        processes = step_samples(measured(rows[name], "time"), contents.samples)
        kept = tuple(tuple(thinned(list(filter(positive, steps)))) for steps in processes)
        if kept := tuple(steps for steps in kept if steps):
            strips.append(Strip(name, colours[name], kept))
    if not strips:
        return None
    values = [value for strip in strips for steps in strip.processes for value in steps]
    legend = "a dot is a step, a tick the median of its process"
    return Strips("Step times", Axis("milliseconds", wide(values)), tuple(strips), joined(legend, note))


def phases(names: Iterable[str], rows: Mapping[str, Sequence[Row]], note: str) -> Stacks | None:
    """What share of a step its parts take."""
    stacks = []
    for name in names:
        timed = measured(rows[name], "time")
        parts = tuple(middle(getattr(row, f"{phase}_ms") for row in timed) or 0.0 for phase in PHASES)
        if positive(sum(parts)) and all(part >= 0 for part in parts):
            stacks.append(Stack(name, parts))
    if not stacks:
        return None
    return Stacks("Where a step's time goes", Axis("share of the step"), PHASES, tuple(stacks), note)


TRAINING = {
    "val_accuracy": "Validation accuracy",
    "train_loss": "Training loss",
    "steps": "steps",
    "train_seconds": "seconds of training",
}


def training(
    names: Iterable[str],
    epochs: Mapping[str, Sequence[Epoch]],
    colours: Mapping[str, int],
    x: str,
    y: str,
    note: str,
) -> Curves | None:
    """A quantity at the end of each epoch, a curve per seed."""
    curves = []
    for name in names:
        seeds: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for epoch in epochs.get(name, ()):
            point = (getattr(epoch, x), getattr(epoch, y))
            if all(value is not None and math.isfinite(value) for value in point) and point[0] > 0:
                seeds[epoch.seed].append(point)
        curves += [Curve(name, colours[name], tuple(sorted(points))) for points in seeds.values()]
    if all(len(curve.points) < 2 for curve in curves):
        return None  # the ends alone are no curve; `reached` shows them
    log = wide([point[0] for curve in curves for point in curve.points])
    title = f"{TRAINING[y]} against {TRAINING[x].split()[0]}"
    return Curves(
        title, Axis(TRAINING[x], log, zero=True), Axis(TRAINING[y].lower()), tuple(curves), note=note
    )


def reached(lines: Iterable[Line], colours: Mapping[str, int], note: str) -> Curves | None:
    """What accuracy training ended with, and how long it took."""
    points = [
        Curve(line.name, colours[line.name], ((line.accuracy.seconds, line.accuracy.mean),))
        for line in lines
        if line.accuracy and not line.accuracy.is_loss and line.accuracy.seconds is not None
        if positive(line.accuracy.seconds) and math.isfinite(line.accuracy.mean)
    ]
    if not points:
        return None
    log = wide([curve.points[0][0] for curve in points])
    x = Axis("seconds of training, less is better", log, zero=True)
    y = Axis("validation accuracy at the end")
    return Curves("Accuracy against time", x, y, tuple(points[:DRAWN]), labelled=True, note=note)


def joined(*notes: str) -> str:
    """The notes that say something."""
    return "; ".join(filter(None, notes))


def wide(values: Sequence[float]) -> bool:
    """Whether a linear axis would squeeze the small values into one."""
    return max(values) > WIDE * min(values)


def thinned(values: Sequence[float]) -> list[float]:
    """At most STEPS_DRAWN of the values, sorted, at even ranks."""
    ordered = sorted(values)
    if len(ordered) <= STEPS_DRAWN:
        return ordered
    return [ordered[rank * (len(ordered) - 1) // (STEPS_DRAWN - 1)] for rank in range(STEPS_DRAWN)]
