"""The charts: each function takes a DataFrame and returns an Altair chart.

The same charts are shown in notebooks, on a report's page and in PNG and SVG files. All frames have the columns
`name` (of a row, a curve or a point), `role` (one of ROLES, which gives the colour) and `label` (the value in
words, for tooltips and screen readers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import pandas as pd

from convbench.registry.errors import listed

# report.css has a variable for each of these colours, so that the page follows light and dark schemes
BLUE, ORANGE, GREY = "#2d6edd", "#a76213", "#868e99"
INK, FAINT, GRID, PAPER = "#1a1d23", "#565d6b", "#e6e9ee", "#fefefe"
PARTS = ("#647186", "#3d5878", "#2c4361", "#0f1b2b")
ROLES = {"torch": BLUE, "fastest": ORANGE, "other": GREY, "faster": BLUE, "slower": ORANGE}

WIDTH, HEIGHT, ROW = 360, 230, 22  # pixels
LETTER = 6.2  # pixels: the average width of a letter
LONGEST = 22  # letters of a name
MARKED = 20  # points of a curve that can be read one by one
WIDE = 20.0  # a range whose ends differ by a larger factor gets a logarithmic axis
NUMBER = ",.4~r"
TOLD: dict[str, Any] = {"description": "label:N", "tooltip": "label:N"}

Chart = alt.LayerChart


def speed_bars(frame: pd.DataFrame, title: str, note: str = "") -> Chart:
    """Images per second with 95 % intervals. Columns: images_per_second, low, high, text (at the right)."""
    frame = shortened(frame)
    most = frame.images_per_second.max()
    frame["high"] = frame.high.clip(upper=1.5 * most)
    log = is_wide(frame.images_per_second)
    start = frame.images_per_second.min() / 1.5 if log else 0.0
    x = scale_x("images_per_second", "images per second", [start, most, frame.high.max()], frame, log)
    bars = alt.Chart(frame).mark_bar(height=14).encode(x, alt.X2(datum=start), names(), colours(), **TOLD)
    intervals = alt.Chart(frame).mark_rule(color=INK, strokeWidth=1.5, aria=False)
    spans = intervals.encode(alt.X("low:Q"), alt.X2("high"), names())
    return layered([bars, spans, values(frame)], title, note, ROW * len(frame), frame)


def ratio_forest(
    frame: pd.DataFrame, title: str, axis: str, note: str = "", band: tuple[float, float] | None = None
) -> Chart:
    """Ratios with intervals beside a line at one. Columns: ratio, low, high, text; `band` is too little to matter.

    Rows of one name are drawn into one row; those without an interval have no `low` and `high`.
    """
    frame = shortened(frame)
    middle = frame.ratio.median()
    for end in ("low", "high"):  # an interval of two processes can be longer than everything else
        frame[end] = frame[end].clip(middle / 30, middle * 30)
    ends = [
        1.0,
        *(band or ()),
        *frame[["ratio", "low", "high"]].min(),
        *frame[["ratio", "low", "high"]].max(),
    ]
    x = scale_x("ratio", axis, ends, frame, log=True)
    interval = alt.Chart(frame).mark_rule(strokeWidth=2.5, aria=False)
    layers = [
        interval.encode(alt.X("low:Q"), alt.X2("high"), names(), colours()),
        alt.Chart(frame).mark_point(filled=True, size=45, opacity=1).encode(x, names(), colours(), **TOLD),
        values(frame[frame.text != ""]),
    ]
    one = alt.Chart(pd.DataFrame({"one": [1.0]}))
    layers.insert(0, one.mark_rule(color=FAINT, strokeWidth=1.5, aria=False).encode(alt.X("one:Q")))
    if band:
        within = alt.Chart(pd.DataFrame([band], columns=["from", "to"]))
        layers.insert(0, within.mark_rect(color=GRID, aria=False).encode(alt.X("from:Q"), alt.X2("to")))
    return layered(layers, title, note, ROW * frame.name.nunique(), frame)


def step_times(frame: pd.DataFrame, title: str, note: str = "") -> Chart:
    """The spread of step times and the median of each process. Columns: process, step_ms; a row for each step."""
    frame = shortened(frame)
    grouped = frame.groupby(["name", "role"], sort=False).step_ms
    spread = grouped.agg(low="min", high="max").reset_index()
    spread["p25"], spread["p75"] = grouped.quantile(0.25).to_numpy(), grouped.quantile(0.75).to_numpy()
    each = frame.groupby(["name", "role", "label", "process"], sort=False).step_ms
    medians = each.agg(["median", "count", "min", "max"]).reset_index()
    medians["label"] = [
        f"{row.label}, process {row.process}: median {row.median:.4g} ms "
        f"({row.count} steps, {row.min:.4g} to {row.max:.4g})"
        for row in medians.rename_axis(None).itertuples(index=False)
    ]
    x = scale_x(
        "median", "milliseconds", [spread.low.min(), spread.high.max()], spread, is_wide(frame.step_ms)
    )
    wide = (
        alt.Chart(spread)
        .mark_rule(strokeWidth=1.5, aria=False)
        .encode(alt.X("low:Q"), alt.X2("high"), names(), colours())
    )
    half = (
        alt.Chart(spread)
        .mark_bar(height=9, opacity=0.45, aria=False)
        .encode(alt.X("p25:Q"), alt.X2("p75"), names(), colours())
    )
    ticks = alt.Chart(medians).mark_tick(color=INK, thickness=2, size=16).encode(x, names(), **TOLD)
    return layered([wide, half, ticks], title, note, ROW * len(spread), frame)


def shares(frame: pd.DataFrame, title: str, axis: str, note: str = "") -> Chart:
    """The parts of a whole, in a row for each name. Columns: part, share (they add up to one for each name)."""
    frame = shortened(frame)
    parts = list(dict.fromkeys(frame.part))
    sums = frame.groupby("name", sort=False).share.cumsum()
    frame = frame.assign(start=sums - frame.share, end=sums, text=[f"{share:.0%}" for share in frame.share])
    colour = alt.Color("part:N").scale(
        domain=parts, range=list(PARTS[:: 3 if len(parts) == 2 else 1][: len(parts)])
    )
    colour = colour.legend(orient="bottom", title=None, columns=2, symbolType="square", symbolOpacity=1)
    x = alt.X("start:Q").scale(domain=[0, 1]).axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], title=axis)
    bars = (
        alt.Chart(frame)
        .mark_bar(height=16, stroke=PAPER, strokeWidth=0.5)
        .encode(x, alt.X2("end"), names(), colour, **TOLD)
    )
    inside = alt.Chart(frame[frame.share > 0.12]).mark_text(
        color=PAPER, align="left", dx=4, fontSize=11, aria=False
    )
    texts = inside.encode(alt.X("start:Q"), names(), alt.Text("text:N"))
    return layered([bars, texts], title, note, ROW * frame.name.nunique(), frame)


def curves(
    frame: pd.DataFrame,
    title: str,
    x: tuple[str, str],
    y: tuple[str, str],
    note: str = "",
    points: bool = False,
    start: float = 0.0,
) -> Chart:
    """A line for each name and `series`, named at its end; `x` and `y` are a column and its title each.

    Curves that lie on each other are drawn once, under all of their names. With `points`, nothing is joined.
    A linear axis begins at `start`, or before it.
    """  # fmt: skip
    frame = shortened(merged(frame, x[0], y[0]))
    log = is_wide(frame[x[0]])
    low, high = frame[y[0]].min(), frame[y[0]].max()
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    ends = frame.sort_values(x[0], kind="stable").groupby("name", sort=False).tail(1)
    ends = ends.assign(at=spaced(ends[y[0]], (high - low + 2 * room) * 12 / HEIGHT))
    reach = [frame[x[0]].min() if log else min(frame[x[0]].min(), start), frame[x[0]].max()]
    beside = max(LETTER * ends.name.str.len().max() + 10, 10)
    domain = padded(reach, beside / (WIDTH - 40), log)
    across = alt.X(f"{x[0]}:Q").scale(type="log" if log else "linear", domain=domain, nice=False)
    across = across.axis(title=x[1] + ", logarithmic" * log, format=NUMBER, tickCount=4)
    up = (
        alt.Y(f"{y[0]}:Q")
        .scale(domain=[low - room, high + room], nice=False)
        .axis(title=None, format=NUMBER, tickCount=5)
    )
    kept = frame.groupby(["name", "series"], sort=False)[x[0]].transform("size")
    rank = frame.groupby(["name", "series"], sort=False).cumcount()
    few = frame[(kept <= MARKED) | (rank % (kept // MARKED + 1) == 0) | (rank == kept - 1)]
    layers = [
        alt.Chart(few).mark_point(filled=True, size=28, opacity=1).encode(across, up, colours(), **TOLD),
        alt.Chart(ends)
        .mark_text(align="left", dx=7, aria=False)
        .encode(across, alt.Y("at:Q"), alt.Text("name:N"), colours(FAINT)),
    ]
    if not points:
        line = alt.Chart(frame).mark_line(strokeWidth=2, aria=False)
        layers.insert(0, line.encode(across, up, colours(), alt.Detail(["name:N", "series:N"])))
    return layered(layers, title, "; ".join(filter(None, (y[1], note))), HEIGHT)


def roofline(spots: pd.DataFrame, roofs: pd.DataFrame, title: str, note: str = "") -> Chart:
    """Speeds over operations per byte, below the peaks of a device.

    Columns of `spots`: intensity, gflops_per_second, network; of `roofs`: name, label, gflops_per_second,
    gb_per_second.
    """
    spots = shortened(spots)
    ridges = roofs.gflops_per_second / roofs.gb_per_second
    low = min(spots.intensity.min(), ridges.min() / 3) / 1.5
    high = max(spots.intensity.max(), ridges.max() * 3) * 1.5
    corners = [
        {"roof": roof.name, "x": x, "y": min(roof.gflops_per_second, x * roof.gb_per_second)}
        for roof, ridge in zip(roofs.itertuples(index=False), ridges, strict=True)
        for x in (low, min(max(ridge, low), high), high)
    ]
    lines = pd.DataFrame(corners)
    floor = min(spots.gflops_per_second.min(), lines.y.min()) / 1.5
    top = max(spots.gflops_per_second.max(), lines.y.max()) * 1.6
    x = (
        alt.X("x:Q")
        .scale(type="log", domain=[low, high], nice=False)
        .axis(title="FLOPs per byte, logarithmic", format=NUMBER, tickCount=4)
    )
    y = (
        alt.Y("y:Q")
        .scale(type="log", domain=[floor, top], nice=False)
        .axis(title=None, format=NUMBER, tickCount=5)
    )
    texts = roofs.assign(
        x=high,
        y=roofs.gflops_per_second,
        text=[
            f"{r.name}: {r.gflops_per_second:,.3g} GFLOP/s, {r.gb_per_second:,.3g} GB/s"
            for r in roofs.itertuples()
        ],
    )
    networks = spots.groupby("network", sort=False, as_index=False).intensity.first().assign(y=floor)
    named = spots[(spots.role != "other") & (len(networks) <= 3)].drop_duplicates(["name", "network"])
    networks = networks.head(6 if len(networks) <= 6 else 0)  # the names of more would lie on each other
    corner = texts.assign(x=ridges.clip(low, high))
    across, up = alt.X("intensity:Q"), alt.Y("gflops_per_second:Q")
    text: dict[str, Any] = {"color": FAINT, "aria": False}
    layers = [
        alt.Chart(lines).mark_line(color=INK, strokeWidth=2, aria=False).encode(x, y, alt.Detail("roof:N")),
        alt.Chart(corner).mark_point(filled=True, size=25, opacity=1, color=INK).encode(x, y, **TOLD),
        alt.Chart(texts).mark_text(align="right", dy=-8, **text).encode(x, y, alt.Text("text:N")),
        alt.Chart(networks).mark_text(dy=-7, **text).encode(across, y, alt.Text("network:N")),
        alt.Chart(spots).mark_point(filled=True, size=45, opacity=1).encode(across, up, colours(), **TOLD),
        alt.Chart(named).mark_text(align="left", dx=7, **text).encode(across, up, alt.Text("name:N")),
    ]
    return layered(layers, title, "; ".join(filter(None, ("GFLOP/s, logarithmic", note))), HEIGHT)


def layered(
    layers: Sequence[alt.Chart], title: str, note: str, height: float, frame: pd.DataFrame | None = None
) -> Chart:
    """Layers as one chart; a frame whose names stand on the left leaves less of its width."""
    text = alt.Title(title, subtitle=note) if note else alt.Title(title)
    width = WIDTH - 40 if frame is None else room(frame)
    return alt.LayerChart(layer=list(layers), title=text, width=width, height=height)


def room(frame: pd.DataFrame) -> float:
    """The width that the names of a frame leave."""
    return round(WIDTH - LETTER * int(frame.name.str.len().max()) - 15)


def names() -> alt.Y:
    """A row for each name, in the order of the frame."""
    return alt.Y("name:N").sort(None).axis(title=None, labelLimit=0, ticks=False, domain=False)


def colours(text: str = "") -> alt.Color:
    """The colour of a role; of a text, which has to be darker, `text` where the role is any other."""
    found = ROLES | {"other": text or GREY}
    return alt.Color("role:N").scale(domain=list(found), range=list(found.values())).legend(None)


def values(frame: pd.DataFrame) -> alt.Chart:
    """The texts at the right end of the rows."""
    texts = alt.Chart(frame).mark_text(align="right", color=INK, aria=False)
    drawn: alt.Chart = texts.encode(alt.X(value="width"), names(), alt.Text("text:N"))
    return drawn


def scale_x(column: str, title: str, ends: Iterable[float], frame: pd.DataFrame, log: bool) -> alt.X:
    """A horizontal axis on which all `ends` fit, with room on the right for the texts of a frame."""
    there = [end for end in ends if math.isfinite(end)]
    reach = [min(there), max(there)]
    letters = frame.text.str.len().max() if "text" in frame else 0
    domain = padded(reach, (LETTER * letters + 8) / room(frame), log, start=not log and reach[0] == 0)
    scale = alt.X(f"{column}:Q").scale(type="log" if log else "linear", domain=domain, nice=False)
    return scale.axis(
        title=title + ", logarithmic" * (log and "ratio" not in title), format=NUMBER, tickCount=4,
    )  # fmt: skip


def padded(reach: Sequence[float], share: float, log: bool, start: bool = False) -> list[float]:
    """A domain with a little room at both ends of a range, and a share of the axis more at the right."""
    low, high = (math.log(each) for each in reach) if log else reach
    share = min(share, 0.65)
    room = 0.05 * (high - low) or abs(high) * 0.05 or 0.05
    low, high = low if start else low - room, high + room
    high = low + (high - low) / (1 - share)
    return [math.exp(low), math.exp(high)] if log else [low, high]


def is_wide(values: Iterable[float]) -> bool:
    """Whether a linear axis would squeeze the small values together."""
    values = list(values)
    return min(values) > 0 and max(values) > WIDE * min(values)


def shortened(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy whose long names have their middle left out; two names stay two."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(frame.name):
        short = shorten(name)
        taken = sum(each.partition(" (")[0] == short for each in found.values())
        found[name] = f"{short} ({taken + 1})" if taken else short
    return frame.assign(name=frame.name.map(found))


def shorten(name: str, longest: int = LONGEST) -> str:
    """A name of at most so many letters; names are told apart by how they begin and end."""
    tail = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[: longest - 1 - tail]}…{name[-tail:]}"


def merged(frame: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The curves of a frame without those that lie on another one, which gets their names as well."""
    reach = [float(frame[each].max() - frame[each].min()) / 200 for each in (x, y)]  # one or two pixels
    drawn: list[tuple[list[str], list[tuple[float, float]], pd.DataFrame]] = []
    for name, own in frame.groupby("name", sort=False):
        points = list(zip(own[x], own[y], strict=True))
        for others, there, _ in drawn:
            if len(points) == len(there) and all(
                abs(a[0] - b[0]) <= reach[0] and abs(a[1] - b[1]) <= reach[1]
                for a, b in zip(points, there, strict=True)
            ):
                others.append(str(name))
                break
        else:
            drawn.append(([str(name)], points, own))
    roles = dict(zip(frame.name, frame.role, strict=True))
    kept = []
    for own_names, _, own in drawn:
        role = min((roles[name] for name in own_names), key=list(ROLES).index)
        first = sorted(own_names, key=lambda name: roles[name] != role)
        kept.append(
            own.assign(role=role) if len(first) == 1 else own.assign(role=role, name=listed(first, 1))
        )
    return pd.concat(kept, ignore_index=True)


def spaced(heights: pd.Series, gap: float) -> list[float]:
    """Heights moved apart as far as texts need, in their order."""
    order = sorted(range(len(heights)), key=lambda at: heights.iloc[at])
    found = [float(heights.iloc[at]) for at in order]
    for at in range(1, len(found)):
        found[at] = max(found[at], found[at - 1] + gap)
    excess = (found[-1] - float(heights.max())) / 2
    placed = dict(zip(order, found, strict=True))
    return [placed[at] - excess for at in range(len(heights))]
