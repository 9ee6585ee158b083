"""The charts of a run: which there are, and the frames they are drawn from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from convbench.results.analysis.contents import Contents, read_contents
from convbench.results.analysis.coverage import Rank
from convbench.results.analysis.roofline import Roof, positive, reached, roof
from convbench.results.analysis.scaling import ideal_speedup, scaling
from convbench.results.analysis.significance import Scatter, time_interval
from convbench.results.analysis.standings import (
    BASELINE,
    Accuracy,
    Group,
    Line,
    Table,
    middle,
    step_ms_by_process,
    step_samples,
)
from convbench.results.charts.charts import (
    Chart,
    curves,
    ratio_forest,
    roofline,
    shares,
    shorten,
    speed_bars,
    step_times,
)
from convbench.results.charts.render import write_files
from convbench.results.schema import PHASES, PHASES_TOGETHER, Epoch
from convbench.results.storage.csv_format import Process
from convbench.results.tables.escaping import flatten
from convbench.results.wording import number

DRAWN = 24  # lines in one chart: more cannot be told apart, and the tables have them all
SPOTS = 120  # combinations in one roofline


def write_plots(run_dir: Path | str, *, rank: Rank = "served") -> list[Path]:
    """Write each chart of a run into its directory `plots`, as PNG and as SVG, and return the paths.

    Backends that left convolutions to torch are not ranked, unless `rank` is "all".

    Raises:
        UsageError: the directory holds no run, or cannot be written to.
    """
    contents = read_contents(run_dir, rank=rank)
    charts = [
        (group.conditions.title, chart)
        for group in contents.table.groups
        for chart in group_charts(contents, group)
    ]
    whole = [overview(contents.table), *rooflines(contents)]
    charts += [("", chart) for chart in whole if chart is not None]
    return write_files(charts, Path(run_dir) / "plots")


def group_charts(contents: Contents, group: Group, *, brief: bool = False) -> list[Chart]:
    """The charts of one comparison group, of which there may be none; only that of the speeds if `brief`."""
    lines = [line for line in group.lines if line.images_per_second is not None or line.accuracy]
    note = f"the first {DRAWN} of {len(lines)} {group.subject}s" if len(lines) > DRAWN else ""
    lines = lines[:DRAWN]
    styles = {line.name: style(line, group) for line in lines}
    fast = speed(lines, styles, note, group.scatter)
    if brief:
        return [fast] if fast else []
    epochs = epochs_of(contents, group, lines)
    trainings = [
        training(epochs, styles, *which, note)
        for which in (("train_seconds", "val_accuracy"), ("steps", "train_loss"))
    ]
    if trainings[0] is None:
        trainings[0] = accuracies(lines, styles, note)
    found = [
        fast,
        distribution(lines, contents.samples, styles, note),
        phases(lines, styles, note),
        coverage(lines, styles, note),
        *trainings,
    ]
    return [chart for chart in found if chart is not None]


def style(line: Line, group: Group) -> dict[str, str]:
    """The name and the role of a line in all charts of its group."""
    ranked = [each.name for each in group.lines if each.ranked and each.images_per_second is not None]
    fastest = "fastest" if line.name in ranked[:1] else "other"
    return {"name": flatten(line.name), "role": "torch" if line.name == BASELINE else fastest}


Styles = Mapping[str, Mapping[str, str]]


def speed(lines: Sequence[Line], styles: Styles, note: str, spread: Scatter) -> Chart | None:
    """Throughputs with their intervals over processes, and how they compare with torch's."""
    bars: list[dict[str, Any]] = []
    for line in lines:
        if not positive(line.images_per_second):
            continue
        value = float(line.images_per_second or 0)
        low = high = math.nan
        interval = time_interval(step_ms_by_process(line.rows).values(), spread)
        if interval is not None and line.step_ms:
            low, high = value * line.step_ms / interval.high, value * line.step_ms / interval.low
        ratio = f", {number(line.speedup)}×" if line.speedup and line.name != BASELINE else ""
        text = number(value) + ratio + ", not ranked" * (not line.ranked)
        span = "" if math.isnan(low) else f" ({number(low)} to {number(high)})"
        label = f"{line.name}: {number(value)} images/s{span}{ratio}{' torch' * bool(ratio)}"
        bar = {"images_per_second": value, "low": low, "high": high, "text": text, "label": flatten(label)}
        bars.append({**styles[line.name], **bar})
    if not bars:
        return None
    known = any(not math.isnan(bar["low"]) for bar in bars)
    notes = [
        "line: 95 % interval over processes" * known,
        "×: speed relative to torch" * any("×" in b["text"] for b in bars),
    ]
    return speed_bars(pd.DataFrame(bars), "Training throughput", joined(*notes, note))  # fmt: skip


def distribution(
    lines: Sequence[Line], samples: Mapping[Process, Sequence[float]], styles: Styles, note: str
) -> Chart | None:
    """The step times that were measured."""
    steps = [
        {**styles[line.name], "label": styles[line.name]["name"], "process": process, "step_ms": value}
        for line in lines
        for process, values in enumerate(step_samples(line.timed, samples), 1)
        for value in values
        if positive(value)
    ]
    legend = "thin: all steps; thick: the middle half; tick: the median of a process"
    return step_times(pd.DataFrame(steps), "Step times", joined(legend, note)) if steps else None


def phases(lines: Sequence[Line], styles: Styles, note: str) -> Chart | None:
    """What share of a step its parts take."""
    parts: list[dict[str, Any]] = []
    for line in lines:
        own = styles[line.name]
        taken = {phase: middle(getattr(row, phase) for row in line.timed) or 0.0 for phase in PHASES_TOGETHER}
        whole = sum(taken.values())
        if positive(whole) and all(each >= 0 for each in taken.values()):
            for phase, each in taken.items():
                if not each and phase not in PHASES:
                    continue  # of one process alone
                part = phase.removesuffix("_ms")
                label = f"{own['name']}, {part}: {each / whole:.0%}, {each:.3g} ms"
                parts.append({**own, "part": part, "share": each / whole, "label": label})
    return (
        shares(pd.DataFrame(parts), "Where a step's time goes", "share of the step", note) if parts else None
    )


def coverage(lines: Sequence[Line], styles: Styles, note: str) -> Chart | None:
    """What share of the FLOPs a backend left to torch, where one did."""
    known = [line for line in lines if line.coverage is not None and line.name != BASELINE]
    if all((line.coverage or 0) >= 0.995 for line in known):
        return None
    parts = [
        {
            **styles[line.name],
            "part": part,
            "share": share,
            "label": f"{styles[line.name]['name']}, {part}: {share:.1%}",
        }
        for line in known
        for own in [line.coverage or 0.0]
        for part, share in (("computed by the backend", own), ("left to torch", 1 - own))
    ]
    return shares(pd.DataFrame(parts), "Coverage", "share of the FLOPs", note)


TRAINING = {
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "steps": "steps",
    "train_seconds": "seconds of training",
}


def epochs_of(contents: Contents, group: Group, lines: Sequence[Line]) -> Mapping[str, list[Epoch]]:
    """The epochs of each line's trainings."""
    trained = {row.combination for line in lines for row in line.rows}
    found: dict[str, list[Epoch]] = defaultdict(list)
    for epoch in contents.epochs:
        if epoch.combination in trained:
            found[getattr(epoch, group.subject)].append(epoch)
    return {line.name: found[line.name] for line in lines if line.name in found}


def training(
    epochs: Mapping[str, Sequence[Epoch]], styles: Styles, x: str, y: str, note: str
) -> Chart | None:
    """A quantity at the end of each epoch, a curve for each seed."""
    points = [
        {
            **styles[name],
            "series": epoch.seed,
            x: float(across),
            y: float(up),
            "label": f"{styles[name]['name']}: {up:.4g} at {across:,.4g}",
        }
        for name, own in epochs.items()
        for epoch in own
        for across, up in [(getattr(epoch, x), getattr(epoch, y))]
        if positive(across) and up is not None and math.isfinite(up)
    ]
    if not points:
        return None
    frame = pd.DataFrame(points)
    if frame.groupby(["name", "series"]).size().max() < 2:
        return None  # a point is no curve
    title = f"{TRAINING[y].capitalize()} against {TRAINING[x].split()[0]}"
    return curves(frame, title, (x, TRAINING[x]), (y, TRAINING[y]), note)


def accuracies(lines: Sequence[Line], styles: Styles, note: str) -> Chart | None:
    """The accuracy at the end of finished trainings over the time they took, where their curves are not known."""
    points = [
        {
            **styles[line.name],
            "series": 0,
            "seconds": reached.seconds,
            "accuracy": reached.mean,
            "label": f"{styles[line.name]['name']}: {reached.mean:.4g} after {reached.seconds:,.4g} s",
        }
        for line in lines
        if (reached := finished(line)) and positive(reached.seconds) and math.isfinite(reached.mean)
    ]
    x, y = ("seconds", "seconds of training"), ("accuracy", "validation accuracy at the end")
    return curves(pd.DataFrame(points), "Accuracy against time", x, y, note, points=True) if points else None


def finished(line: Line) -> Accuracy | None:
    """The accuracy of a line whose trainings did all of their epochs."""
    known = line.accuracy
    return known if known and not known.is_loss and not known.budgeted else None


def overview(table: Table) -> Chart | None:
    """Each group's speeds relative to torch in one row, where there are several groups of backends."""
    dots = []
    for group in table.groups[:40]:
        others = [line for line in group.lines if line.name != BASELINE and positive(line.speedup)]
        best = next((line for line in others if line.ranked), None)
        for line in others:
            if group.subject == "backend":
                role, ratio = style(line, group)["role"], float(line.speedup or 1)
                interval = line.speedup_interval if line is best else None
                dots.append(
                    {
                        "name": flatten(group.conditions.title),
                        "role": role,
                        "ratio": ratio,
                        "low": interval.low if interval else math.nan,
                        "high": interval.high if interval else math.nan,
                        "text": f"{shorten(flatten(line.name), 14)} {number(ratio)}×" if line is best else "",
                        "label": flatten(f"{group.conditions.title}, {line.name}: {number(ratio)}×"),
                    }
                )
    if len({dot["name"] for dot in dots}) < 3:
        return None
    note = f"the first 40 of {len(table.groups)} comparisons" if len(table.groups) > 40 else ""
    frame = pd.DataFrame(dots)
    frame["name"] = without_common_end(list(frame.name))
    return ratio_forest(frame, "Speed relative to torch", "ratio; right of one is faster", note)


def without_common_end(titles: Sequence[str]) -> list[str]:
    """Titles such as `lenet on cpu, float32` without what all of them end with."""
    parts = [title.replace(" on ", ", on ", 1).split(", ") for title in titles]
    shared = 0
    while min(map(len, parts)) > shared + 1 and len({own[len(own) - 1 - shared] for own in parts}) == 1:
        shared += 1
    return [", ".join(own[: len(own) - shared]) for own in parts]


def rooflines(contents: Contents) -> Iterator[Chart]:
    """A chart for each device whose peaks were measured, if the bytes of a step were counted."""
    places = [place for place in reached(contents) if place.roof]
    for device in dict.fromkeys(place.group.conditions.device for place in places):
        here = [place for place in places if place.group.conditions.device == device]
        dtypes = dict.fromkeys(place.group.conditions.dtype for place in here)
        roofs = [roof(contents.environment, device, dtype) for dtype in dtypes]
        spots = [
            {
                "name": flatten(place.line.name + f" {place.group.conditions.dtype}" * (len(dtypes) > 1)),
                "role": style(place.line, place.group)["role"],
                "network": flatten(place.line.architecture),
                "intensity": place.intensity,
                "gflops_per_second": place.gflops_per_second,
                "label": flatten(place.text),
            }
            for place in here[:SPOTS]
        ]
        note = f"the first {SPOTS} of {len(here)} combinations" if len(here) > SPOTS else ""
        frame = pd.DataFrame([{**each._asdict(), "label": peaks(each)} for each in roofs if each])
        yield roofline(pd.DataFrame(spots), frame, f"Roofline of {flatten(device)}", note)


def scalings(contents: Contents) -> Iterator[Chart]:
    """The speed of several processes by how many they are, with the line of what is possible."""
    found = scaling(contents.table.lines)
    for kind, device in dict.fromkeys((each.kind, each.line.device) for each in found):
        here = [each for each in found if (each.kind, each.line.device) == (kind, device)]
        sizes = sorted({1, *(each.line.world_size for each in here)})
        points = [
            {"name": "ideal", "role": "other", "series": 0, "processes": size,
             "speedup": ideal_speedup(device, size), "label": "what is possible"}
            for size in sizes
        ]  # fmt: skip
        for each in here:
            batch = each.base.batch_size
            name = flatten(f"{each.line.architecture} {each.line.backend} {batch}")
            role = "torch" if each.line.backend == BASELINE else "fastest"
            for size, speedup in ((1, 1.0), (each.line.world_size, each.speedup)):
                label = f"{name}: {number(speedup)}× with {size}"
                points.append(
                    {
                        "name": name,
                        "role": role,
                        "series": 0,
                        "processes": size,
                        "speedup": speedup,
                        "label": label,
                    }
                )
        batches = "one batch, divided among them" if kind == "strong" else "a batch for each"
        frame = pd.DataFrame(points).drop_duplicates(["name", "processes"])
        frame = frame.sort_values(["name", "processes"], kind="stable")
        title = f"{kind.capitalize()} scaling on {flatten(device)}"
        yield curves(
            frame, title, ("processes", "processes"), ("speedup", f"speed relative to one process; {batches}"),
            start=1.0,
        )  # fmt: skip


def peaks(limit: Roof) -> str:
    """The peaks of a device in words."""
    return (
        f"{flatten(limit.name)} at most {limit.gflops_per_second:.3g} GFLOP/s and {limit.gb_per_second:.3g} GB/s, "
        f"which meet at {limit.ridge:.3g} FLOPs per byte"
    )


def joined(*notes: str) -> str:
    """The notes that say something."""
    return "; ".join(filter(None, notes))
