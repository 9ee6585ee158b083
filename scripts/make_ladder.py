"""Draw the ladder of docs/ladder.md, from the formula to the roof, from what the suite `ladder` measured.

    convbench run --suite ladder --out DIR
    python scripts/make_ladder.py DIR        # keep that run in results/reference/ladder-DEVICE, and draw
    python scripts/make_ladder.py            # draw what is kept
    python scripts/make_ladder.py --check    # write nothing; exit with 1 where something is stale

Parts of the document stand between `<!-- KIND: RUN ... -->` and `<!-- end of KIND -->`: `machine`, `rungs` of an
architecture, and the `rung` of a backend and mode. `![...](pictures/RUN.png)` is the picture of a run. RUN is a
directory of results/reference.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert
from generated import ROOT, between_marks, table, write_or_check
from PIL import Image, PngImagePlugin

from convbench.results.analysis.contents import Contents, read_contents
from convbench.results.analysis.roofline import roof
from convbench.results.analysis.significance import time_ratio
from convbench.results.analysis.standings import Line, conditions_of, step_ms_by_process, summed_up
from convbench.results.analysis.statistics import Interval
from convbench.results.schema import Row
from convbench.results.wording import number, percent

GUIDE = ROOT / "docs" / "ladder.md"
REFERENCE = ROOT / "results" / "reference"
KEPT = ("results.csv", "samples.csv", "environment.json", "suite.toml", "table.md")

# from the bottom; what is not named here comes last, under its own name
RUNGS = {
    ("scalar", "eager"): "the formula",
    ("loops", "eager"): "channels at once",
    ("shift", "eager"): "positions at once",
    ("im2col", "eager"): "one matrix product",
    ("fft", "eager"): "spectra",
    ("winograd", "eager"): "fewer multiplications",
    ("winograd_4x4", "eager"): "fewer still",
    ("cuda_naive", "eager"): "a thread per output",
    ("triton", "eager"): "tiles in Triton",
    ("cuda", "eager"): "tiles in CUDA",
    ("native", "eager"): "our kernels",
    ("torch", "eager"): "the library",
    ("auto", "eager"): "the best of each layer",
    ("native", "compile"): "our kernels, compiled",
    ("torch", "compile"): "the library, compiled",
    ("auto", "compile"): "the best, compiled",
}
NETWORKS = {"layers/vgg-narrow-small": "The layer", "lenet": "LeNet"}

PICTURE = re.compile(r"^!\[[^\]]*\]\((?P<path>pictures/(?P<run>ladder-\w+)\.png)\)", re.MULTILINE)

GREY, BLUE = "#7d848c", "#3b82d6"  # of medium lightness: they can be read on white as on black
AXIS = {"labelColor": GREY, "titleColor": GREY, "domainColor": GREY, "gridColor": GREY, "gridOpacity": 0.25}
STYLE = {
    "axis": AXIS,
    "axisX": {"grid": False},
    "background": "transparent",
    "title": {"color": GREY, "anchor": "start"},
    "view": {"stroke": None},
}
WIDTH, HEIGHT = 560, 230  # pixels of one staircase
FLOOR = 0.01  # GFLOP/s, where the axis begins


def title(rung: Line) -> str:
    """What the rung is called."""
    return RUNGS.get((rung.backend, rung.mode), rung.backend)


def spelled(rung: Line) -> str:
    """The backend, and its mode where that is not the usual one."""
    return rung.backend + f", {rung.mode}" * (rung.mode != "eager")


def reason(rung: Line) -> str:
    """Why a backend did not run."""
    errors = (row.error for row in rung.rows if row.kind == "verify" and row.error)
    return next(errors, rung.rows[0].status)


def speed_ratio(rung: Line, other: Line) -> Interval | None:
    """How many times as fast as another rung, image by image, with an interval over processes."""
    return time_ratio(
        *(
            {process: step / each.batch_size for process, step in step_ms_by_process(each.rows).items()}
            for each in (rung, other)
        )
    )


@cache
def contents_of(run: str) -> Contents:
    return read_contents(REFERENCE / run)


def ladder(contents: Contents, architecture: str) -> list[Line]:
    """The rungs of one network, from the bottom."""
    found = []
    for group in contents.table.groups:
        if group.conditions.shared == architecture:
            rows: dict[str, list[Row]] = defaultdict(list)
            for row in contents.table.rows:
                if conditions_of(row, row.architecture) == group.conditions:
                    rows[row.backend].append(row)
            found += [summed_up(name, own, (), "served") for name, own in rows.items()]
    order = {key: place for place, key in enumerate(RUNGS)}
    return sorted(found, key=lambda each: (order.get((each.backend, each.mode), len(order)), spelled(each)))


def peak(contents: Contents) -> float:
    """The measured peak of arithmetic of the run's device, in GFLOP/s."""
    conditions = contents.table.groups[0].conditions
    found = roof(contents.environment, conditions.device, conditions.dtype)
    if found is None:
        sys.exit(
            f"{contents.name}: its environment.json has no peak of {conditions.device} in {conditions.dtype}"
        )
    return found.gflops_per_second


def body(kind: str, what: str) -> str:
    """What stands between the marks of a part; `what` is a run, and what else the part is about."""
    run, *names = what.split()
    contents = contents_of(run)
    if kind == "machine":
        return machine(contents)
    if kind == "rungs":
        return rungs_table(ladder(contents, names[0]), peak(contents))
    return rung_text(contents, *names)


def machine(contents: Contents) -> str:
    conditions = contents.table.groups[0].conditions
    limit = roof(contents.environment, conditions.device, conditions.dtype)
    timed = [row for row in contents.table.rows if row.kind == "time"]
    row = timed[0]
    processes = max(line.processes or 0 for line in contents.table.lines)
    assert limit is not None
    return (
        f"{row.device_name}, {row.threads} threads, torch {row.torch_version}, {conditions.dtype}; the machine "
        f"was measured to do {number(limit.gflops_per_second)} GFLOP/s in matrix products and to move "
        f"{number(limit.gb_per_second)} GB/s. {processes} fresh processes for each rung, interleaved "
        f"({row.started_at[:10]}; all rows are in [results/reference/{contents.name}]"
        f"(../results/reference/{contents.name}))."
    )


def rungs_table(rungs: Sequence[Line], peak: float) -> str:
    headings = ["rung", "backend", "batch", "images/s", "GFLOP/s", "of the peak", "of its roofline"]
    headings += ["times the rung before", "times the formula"]
    lines = []
    bottom = before = None
    for each in rungs:
        cells = [
            title(each),
            f"`{each.backend}`" + f" {each.mode}" * (each.mode != "eager"),
            str(each.batch_size),
        ]
        if each.images_per_second is None or each.gflops_per_second is None:
            cells += ["–"] * 6
            cells[3] = reason(each).partition(",")[0]
        else:
            cells += [
                number(each.images_per_second),
                number(each.gflops_per_second),
                percent(each.gflops_per_second / peak),
                "–" if each.roofline_fraction is None else percent(each.roofline_fraction),
                times(each, before),
                times(each, bottom).partition(" ")[0],
            ]
            before, bottom = each, bottom or each
        lines.append(cells)
    return table(headings, lines, "llrrrrrrr")


def times(each: Line, other: Line | None) -> str:
    if other is None or not each.images_per_second or not other.images_per_second:
        return "–"
    interval = speed_ratio(each, other)
    span = f" ({number(interval.low)}–{number(interval.high)})" if interval else ""
    return f"{number(each.images_per_second / other.images_per_second)}×{span}"


def rung_text(contents: Contents, backend: str, mode: str = "eager") -> str:
    """One rung in figures: a sentence for each network."""
    said = []
    for architecture, called in NETWORKS.items():
        rungs = ladder(contents, architecture)
        each = next((found for found in rungs if (found.backend, found.mode) == (backend, mode)), None)
        if each is None:
            said.append(f"{called}: not in this run.")
        elif each.gflops_per_second is None:
            said.append(f"{called}: {reason(each)}.")
        else:
            below = [other for other in rungs[: rungs.index(each)] if other.gflops_per_second]
            than = f", {times(each, below[-1]).partition(' ')[0]} {spelled(below[-1])}" if below else ""
            said.append(
                f"{called}: {number(each.images_per_second)} images/s, {number(each.gflops_per_second)} GFLOP/s, "
                f"{percent(each.gflops_per_second / peak(contents))} of the peak{than}; a multiplication and an "
                f"addition every {span_of(2 / each.gflops_per_second)}."
            )
    return "*" + " ".join(said) + "*"


def span_of(nanoseconds: float) -> str:
    return f"{number(nanoseconds)} ns" if nanoseconds >= 0.1 else f"{number(1000 * nanoseconds)} ps"


def draw(contents: Contents) -> bytes:
    """A staircase for each network, below the roof of the machine, as a PNG."""
    stairs = {name: ladder(contents, name) for name in NETWORKS}
    stairs = {name: rungs for name, rungs in stairs.items() if any(each.gflops_per_second for each in rungs)}
    keys = {(each.backend, each.mode): each for rungs in stairs.values() for each in rungs}
    shown = [key for key in RUNGS if key in keys] + [key for key in keys if key not in RUNGS]
    labels = {key: f"{title(keys[key])}: {spelled(keys[key])}" for key in shown}
    charts = []
    for name, rungs in stairs.items():
        last = name == list(stairs)[-1]
        chart = staircase(rungs, labels, peak(contents), named=last)
        charts.append(chart.properties(title=f"{NETWORKS[name]} ({name})", width=WIDTH, height=HEIGHT))
    spec = alt.vconcat(*charts).configure(**STYLE).to_dict()
    drawn: bytes = vl_convert.vegalite_to_png(spec, scale=1.5)
    return drawn


def staircase(
    rungs: Sequence[Line], labels: dict[tuple[str, str], str], peak: float, *, named: bool
) -> alt.LayerChart:
    """The speeds of one network's rungs; those without a speed say why."""
    best = max(rungs, key=lambda each: each.gflops_per_second or 0)
    allowed = peak
    if best.roofline_fraction and best.gflops_per_second:
        allowed = best.gflops_per_second / best.roofline_fraction
    there = {(each.backend, each.mode): each for each in rungs}
    rows = []
    for key, label in labels.items():
        each = there.get(key)
        speed = each.gflops_per_second if each else None
        why = reason(each).rpartition(": ")[2].partition(",")[0] if each and speed is None else ""
        high = speed is not None and speed * 3 > min(peak, allowed)  # no room between it and the roof
        rows.append(
            {
                "rung": label,
                "speed": speed,
                "text": number(speed) if speed else "",
                "high": high,
                "reason": why,
            }
        )
    frame = pd.DataFrame(rows)
    x = alt.X("rung:N").sort(list(labels.values())).scale(padding=0)
    x = x.axis(labels=named, title=None, ticks=False, labelAngle=-40, labelLimit=0)
    scale = alt.Scale(type="log", domain=[FLOOR, 5 * peak], nice=False)
    y = alt.Y("speed:Q", scale=scale).axis(title="GFLOP/s", format=",.3~r", tickCount=5)
    below, above = frame[frame.high], frame[~frame.high]
    low = alt.Y(datum=FLOOR * 1.4)
    lines = [(peak, -7, f"the roof: {number(peak)} GFLOP/s in a matrix product", [1, 0])]
    if allowed < 0.8 * peak:
        lines.append((allowed, 9, f"if every layer has a roof of its own: {number(allowed)}", [2, 3]))
    layers = [
        alt.Chart(frame).mark_bar(filled=False, stroke=BLUE, strokeWidth=1).encode(x, y, alt.Y2(datum=FLOOR)),
        alt.Chart(frame)
        .mark_tick(color=BLUE, opacity=1, thickness=2.5, bandSize=WIDTH / len(labels))
        .encode(x, y),
        alt.Chart(above).mark_text(color=GREY, dy=-8).encode(x, y, alt.Text("text:N")),
        alt.Chart(below).mark_text(color=GREY, dy=9).encode(x, y, alt.Text("text:N")),
        alt.Chart(frame).mark_text(color=GREY, angle=270, align="left").encode(x, low, alt.Text("reason:N")),
    ]
    for height, offset, text, dash in lines:
        line = alt.Chart(pd.DataFrame([{"height": height, "text": text}]))
        layers.append(line.mark_rule(color=GREY, strokeDash=dash).encode(alt.Y("height:Q", scale=scale)))
        words = line.mark_text(color=GREY, align="left", dy=offset, dx=4)
        layers.append(words.encode(alt.Y("height:Q", scale=scale), alt.X(value=0), alt.Text("text:N")))
    return alt.layer(*layers)


def mark(run: str) -> str:
    """What a picture is of: the code that draws it, and what was measured."""
    files = [Path(__file__), *(REFERENCE / run / name for name in ("results.csv", "environment.json"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def stale_picture(path: Path, run: str) -> bool:
    if not path.exists():
        return True
    with Image.open(path) as picture:
        return bool(picture.info.get("Source") != mark(run))


def keep(run: Path) -> str:
    """Copy a run to where the reference runs are, and return its name there."""
    devices = {row.device.partition(":")[0] for row in read_contents(run).rows}
    if len(devices) != 1:
        sys.exit(
            f"{run} is of {', '.join(sorted(devices))}: one ladder is of one device; run it with --device"
        )
    target = REFERENCE / f"ladder-{devices.pop()}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(run / name, target / name)
    return target.name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="a run of the suite, to be kept")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    if options.run is not None:
        if options.check:
            parser.error("--check looks at what is kept, not at a run")
        print(f"kept in results/reference/{keep(options.run)}", file=sys.stderr)
    old = GUIDE.read_text(encoding="utf-8")
    new = old
    for kind in ("machine", "rungs", "rung"):
        new = between_marks(new, kind, partial(body, kind))
    stale = [
        found for found in PICTURE.finditer(old) if stale_picture(GUIDE.parent / found["path"], found["run"])
    ]
    if options.check and stale:
        sys.exit(f"stale: {', '.join(found['path'] for found in stale)}; run: python scripts/make_ladder.py")
    for picture in stale:
        source = PngImagePlugin.PngInfo()
        source.add_text("Source", mark(picture["run"]))
        with Image.open(io.BytesIO(draw(contents_of(picture["run"])))) as drawn:
            drawn.save(GUIDE.parent / picture["path"], pnginfo=source, optimize=True)
    write_or_check({GUIDE: new}, options.check)


if __name__ == "__main__":
    main()
