"""The pictures of docs/chapter.md: each function draws with Altair what its parameters name.

Backgrounds are transparent, and grey text and colours of medium lightness can be read on white as on black.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from PIL import Image, PngImagePlugin
from torch import Tensor

GREY, BLUE, ORANGE, GREEN = "#7d848c", "#3b82d6", "#e0701c", "#2f9e5b"
SCALE = 2  # pixels of the file for one of the picture
AXIS = {"labelColor": GREY, "titleColor": GREY, "domainColor": GREY, "tickColor": GREY, "gridColor": GREY}
STYLE: dict[str, Any] = {
    "axis": {**AXIS, "gridOpacity": 0.25, "titleFontWeight": "normal"},
    "background": "transparent",
    "legend": {"labelColor": GREY, "title": None, "orient": "right"},
    "title": {"color": GREY, "fontWeight": "normal"},
    "view": {"stroke": None},
}
SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
Picture = alt.HConcatChart | alt.VConcatChart


def render(name: str, namespace: Mapping[str, Any]) -> bytes:
    """Draw a picture, as a PNG file that knows which code drew it.

    Raises:
        LookupError: no such picture, or no such variable.
    """
    draw = globals().get(name)
    if draw is None:
        raise LookupError(f"chapter_pictures.py has no {name!r}")
    wanted = inspect.signature(draw).parameters
    if missing := [variable for variable in wanted if variable not in namespace]:
        raise LookupError(f"{name} draws {', '.join(missing)}, which no block before it made")
    picture: Picture = draw(*(namespace[variable] for variable in wanted))
    alt.data_transformers.disable_max_rows()
    spec = picture.to_dict() | {"config": STYLE}
    about = PngImagePlugin.PngInfo()
    about.add_text("Source", SOURCE)
    about.add_text("Software", f"vl-convert {vl_convert.__version__}")
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, scale=SCALE))) as drawn:
        drawn.save(buffer, format="png", pnginfo=about, optimize=True)
    return buffer.getvalue()


def comparable(path: Path, drawn: bytes) -> bool:
    """Whether the file was drawn by this version of vl-convert; others set type a little differently."""
    with Image.open(path) as before, Image.open(io.BytesIO(drawn)) as after:
        return bool(before.info.get("Software") == after.info.get("Software"))


def staleness(path: Path, drawn: bytes) -> str | None:
    """Why the file is not the picture as drawn now, None if it is.

    Pixels are compared where they are `comparable`.
    """
    if not path.exists():
        return "there is no such file"
    with Image.open(path) as before, Image.open(io.BytesIO(drawn)) as after:
        if before.info.get("Source") != SOURCE:
            return "chapter_pictures.py has changed"
        if not comparable(path, drawn):
            return None
        if before.size != after.size:
            return f"it was {before.size} pixels, and is {after.size} now"
        pixels = [np.asarray(image.convert("RGBA"), dtype=np.int16) for image in (before, after)]
    changed = float((abs(pixels[0] - pixels[1]).max(axis=-1) > 64).mean())
    return f"{changed:.1%} of its pixels have changed" if changed > 0.01 else None


def _cells(values: Tensor) -> pd.DataFrame:
    """A row for each element of a matrix."""
    rows, columns = np.indices(values.shape)
    return pd.DataFrame(
        {"row": rows.ravel(), "column": columns.ravel(), "value": values.numpy().ravel().astype(float)}
    )


def _matrix(
    frame: pd.DataFrame, scheme: str, limits: tuple[float, float], side: int, *, reverse: bool
) -> alt.Chart:
    """A matrix as coloured squares, `side` pixels wide; `reverse` begins with the dark end of the scheme."""
    place = {
        "x": alt.X("column:O").axis(None).scale(padding=0),
        "y": alt.Y("row:O").axis(None).scale(padding=0),
    }
    shade = alt.Color("value:Q").scale(scheme=scheme, domain=limits, reverse=reverse, clamp=True).legend(None)
    size = {"width": side * (frame.column.max() + 1), "height": side * (frame.row.max() + 1)}
    return alt.Chart(frame).mark_rect().encode(**place, color=shade).properties(**size)


def _numbers(
    values: Tensor,
    title: str,
    scheme: str,
    limits: tuple[float, float],
    dark: Callable[[float], bool],
    *,
    reverse: bool = False,
) -> alt.LayerChart:
    """A small matrix as coloured squares with their values, white where the square is `dark`."""
    frame = _cells(values)
    frame["text"] = [f"{value:g}" for value in frame.value]
    frame["ink"] = ["white" if dark(value) else "black" for value in frame.value]
    squares = _matrix(frame, scheme, limits, 22, reverse=reverse)
    texts = alt.Chart(frame).mark_text(fontSize=10).encode(
        alt.X("column:O"), alt.Y("row:O"), alt.Text("text:N"), alt.Color("ink:N").scale(None)
    )  # fmt: skip
    return alt.layer(squares, texts).resolve_scale(color="independent").properties(title=title)


def _image(values: Tensor, title: str, side: int, scheme: str = "greys") -> alt.Chart:
    """An image in its own range of values."""
    limits = (float(values.min()), float(values.max()))
    chart = _matrix(_cells(values), scheme, limits, side, reverse=scheme == "greys")
    return chart.properties(title=title) if title else chart


def _row(charts: Sequence[alt.Chart | alt.LayerChart]) -> alt.HConcatChart:
    return alt.hconcat(*charts).resolve_scale(color="independent", x="independent", y="independent")


def edge_detector(image: Tensor, edges: Tensor, unseen: Tensor) -> Picture:
    """What a vertical edge detector answers to a bar, and to the bar turned on its side."""
    return _row(
        [
            _numbers(image, "image", "greys", (0, 1), lambda value: value < 0.5, reverse=True),
            _numbers(edges, "its edges", "redblue", (-1.4, 1.4), lambda value: abs(value) > 0.9),
            _numbers(image.t(), "turned on its side", "greys", (0, 1), lambda value: value < 0.5, reverse=True),
            _numbers(unseen, "no edges", "redblue", (-1.4, 1.4), lambda value: abs(value) > 0.9),
        ]
    )  # fmt: skip


def learned_kernel(
    image: Tensor, edges: Tensor, path: Sequence[Sequence[float]], losses: Sequence[float]
) -> Picture:
    """The loss by step, and the kernel's way over the loss of every kernel there is."""
    steps = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    left = alt.Chart(steps).mark_line(color=BLUE, point={"color": BLUE, "size": 40}).encode(
        alt.X("step:Q").axis(tickMinStep=1, format="d"), alt.Y("loss:Q").scale(type="log")
    )  # fmt: skip

    first, second = np.meshgrid(np.linspace(-0.6, 1.4, 81), np.linspace(-1.4, 0.4, 73))
    pixels, neighbours = image[:, :-1].numpy(), image[:, 1:].numpy()
    residuals = first[..., None, None] * pixels + second[..., None, None] * neighbours - edges.numpy()
    level = np.floor(np.log((residuals**2).sum((-2, -1)) + 0.05) * 1.5)
    half = (first[0, 1] - first[0, 0]) / 2
    field = pd.DataFrame({"x": first.ravel(), "y": second.ravel(), "level": level.ravel()})
    field = field.assign(x1=field.x - half, x2=field.x + half, y1=field.y - half, y2=field.y + half)
    shade = alt.Color("level:Q").scale(scheme="greys", domain=[-5, 12]).legend(None)
    x = (
        alt.X("x1:Q")
        .scale(domain=[-0.6 - half, 1.4 + half], nice=False)
        .axis(title="left weight", grid=False)
    )
    y = (
        alt.Y("y1:Q")
        .scale(domain=[-1.4 - half, 0.4 + half], nice=False)
        .axis(title="right weight", grid=False)
    )
    ground = alt.Chart(field).mark_rect(clip=True).encode(x, alt.X2("x2"), y, alt.Y2("y2"), shade)
    way = pd.DataFrame([(*point[:2], at) for at, point in enumerate(path)], columns=["x", "y", "at"])
    ends = pd.DataFrame(
        [(1.0, -1.0, "[1, −1]", ORANGE), (*path[0][:2], "start", BLUE)], columns=["x", "y", "text", "ink"]
    )
    line = alt.Chart(way).mark_line(color=BLUE, point={"color": BLUE, "size": 40})
    words = alt.Chart(ends).mark_text(dy=16, fontWeight="bold")
    goal = alt.Chart(ends.head(1)).mark_point(color=ORANGE, filled=True, opacity=1, shape="diamond", size=120)
    right = alt.layer(
        ground,
        line.encode(alt.X("x:Q"), alt.Y("y:Q"), alt.Order("at:Q")),
        goal.encode(alt.X("x:Q"), alt.Y("y:Q")),
        words.encode(alt.X("x:Q"), alt.Y("y:Q"), alt.Text("text:N"), alt.Color("ink:N").scale(None)),
    ).resolve_scale(color="independent")
    return _row(
        [
            left.properties(width=243, height=219, title="ten steps downhill"),
            right.properties(width=3 * 81, height=3 * 73, title="the same steps; darker is a greater loss"),
        ]
    )


def looks(seen: Mapping[str, Tensor]) -> Picture:
    """How many windows each pixel of an image is in."""
    return _row(
        [_numbers(counts, title, "blues", (0, 12), lambda value: value > 6) for title, counts in seen.items()]
    )


def pooling(pooled: Mapping[str, Tensor]) -> Picture:
    """One image and what pooling makes of it."""
    return _row([_image(image, title, 112 // image.shape[-1]) for title, image in pooled.items()])


def training_curves(curves: Mapping[str, Any]) -> Picture:
    """Training loss and validation accuracy by epoch."""
    points = pd.DataFrame(
        [
            {"name": name, "epoch": each.epochs, "loss": each.train_loss, "accuracy": each.val_accuracy}
            for name, curve in curves.items()
            for each in curve
        ]
    )
    across = alt.X("epoch:Q").axis(values=list(range(int(points.epoch.max()) + 1)), format="d")
    colour = alt.Color("name:N").scale(domain=list(curves), range=[BLUE, ORANGE, GREEN][: len(curves)])

    def side(column: str, title: str, most: float, guess: float, word: str) -> alt.LayerChart:
        y = alt.Y(f"{column}:Q").scale(domain=[0, most]).title(title)
        lines = alt.Chart(points).mark_line(point={"size": 40}).encode(across, y, colour)
        chance = alt.Chart(pd.DataFrame([{"guess": guess, "word": word, "epoch": points.epoch.max()}]))
        rule = chance.mark_rule(color=GREY, strokeDash=[2, 3]).encode(alt.Y("guess:Q"))
        text = chance.mark_text(color=GREY, dy=-7, align="right").encode(
            alt.X("epoch:Q"), alt.Y("guess:Q"), alt.Text("word:N")
        )
        return alt.layer(lines, rule, text).properties(width=250, height=190)

    return alt.hconcat(
        side("loss", "training loss", 2.6, math.log(10), "guessing: ln 10"),
        side("accuracy", "validation accuracy", 1.0, 0.1, "guessing: 0.1"),
    )


def feature_maps(images: Tensor, maps: Tensor) -> Picture:
    """A row for each image: the image, then its channels."""
    rows = []
    for row, (image, channels) in enumerate(zip(images, maps, strict=True)):
        drawn = [_image(image[0], "image" if row == 0 else "", 84 // image.shape[-1])]
        for number, channel in enumerate(channels):
            least, most = (float(bound) for bound in maps[:, number].aminmax())
            title = f"channel {number}" if row == 0 else ""
            chart = _matrix(_cells(channel), "viridis", (least, most), 84 // channel.shape[-1], reverse=False)
            drawn.append(chart.properties(title=title) if title else chart)
        rows.append(_row(drawn))
    return alt.vconcat(*rows)


def where_vgg_is(stages: Mapping[str, tuple[int, int]]) -> Picture:
    """Each stage's share of the parameters and of the work."""
    charts = []
    for column, (colour, title) in enumerate(((BLUE, "parameters"), (ORANGE, "FLOPs"))):
        total = sum(stage[column] for stage in stages.values())
        frame = pd.DataFrame(
            [{"stage": name, "share": stage[column] / total} for name, stage in stages.items()]
        )
        frame["text"] = [f"{share:.0%}" if share >= 0.01 else "< 1%" for share in frame.share]
        y = alt.Y("stage:N").sort(None).axis(title=None, ticks=False, domain=False, labels=column == 0)
        x = alt.X("share:Q").scale(domain=[0, 1]).axis(None)
        bars = alt.Chart(frame).mark_bar(color=colour).encode(x, y)
        texts = alt.Chart(frame).mark_text(color=GREY, align="left", dx=4).encode(x, y, alt.Text("text:N"))
        charts.append(
            alt.layer(bars, texts).properties(title=f"{title}: {total:,}", width=250, height=26 * len(frame))
        )
    return alt.hconcat(*charts)
