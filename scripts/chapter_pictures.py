"""The pictures of docs/chapter.md: each function draws the guide's variables that its parameters name.

Backgrounds are transparent, and grey text and colours of medium lightness can be read on white as on black.
"""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

GREY, BLUE, ORANGE, GREEN = "#7d848c", "#3b82d6", "#e0701c", "#2f9e5b"
WIDTH = 8.0  # inches, the text's width
DPI = 150
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.facecolor": "none",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
}
SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def render(name: str, namespace: Mapping[str, Any]) -> bytes:
    """Draw a picture, as a file that knows which code drew it.

    Raises:
        LookupError: no such picture, or no such variable.
    """
    draw = globals().get(name)
    if draw is None:
        raise LookupError(f"chapter_pictures.py has no {name!r}")
    wanted = inspect.signature(draw).parameters
    if missing := [variable for variable in wanted if variable not in namespace]:
        raise LookupError(f"{name} draws {', '.join(missing)}, which no block before it made")
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = draw(*(namespace[variable] for variable in wanted))
        figure.savefig(buffer, format="png", dpi=DPI, transparent=True, metadata={"Source": SOURCE})
    return buffer.getvalue()


def comparable(path: Path, drawn: bytes) -> bool:
    """Whether the file was drawn by this version of matplotlib; others set type a little differently."""
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


def _figure(height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(*shape, **options)


def _grid_of_numbers(
    axes: Axes, values: Tensor, title: str, colours: str, limits: tuple[float, float]
) -> None:
    """A small matrix as coloured squares with their values."""
    shades = axes.imshow(values.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1])
    for (row, column), value in np.ndenumerate(values.numpy()):
        red, green, blue, _ = shades.to_rgba(value)
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set(xticks=[], yticks=[], title=title, anchor="N")


def _plain(axes: Axes, title: str = "") -> None:
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def _open(axes: Axes) -> None:
    """A grid, and no frame above and to the right."""
    axes.grid(True)
    axes.spines[["top", "right"]].set_visible(False)


def edge_detector(image: Tensor, edges: Tensor, unseen: Tensor) -> Figure:
    """What a vertical edge detector answers to a bar, and to the bar turned on its side."""
    figure, axes = _figure(2.7, 1, 4, width_ratios=(8, 7, 6, 5))  # squares of one size
    _grid_of_numbers(axes[0], image, "image", "gray", (0, 1))
    _grid_of_numbers(axes[1], edges, "its edges", "RdBu", (-1.4, 1.4))
    _grid_of_numbers(axes[2], image.t(), "turned on its side", "gray", (0, 1))
    _grid_of_numbers(axes[3], unseen, "no edges", "RdBu", (-1.4, 1.4))
    return figure


def learned_kernel(
    image: Tensor, edges: Tensor, path: Sequence[Sequence[float]], losses: Sequence[float]
) -> Figure:
    """The loss by step, and the kernel's way over the loss of every kernel there is."""
    figure, (left, right) = _figure(3.1, 1, 2, width_ratios=(1, 1.25))
    left.plot(range(1, len(losses) + 1), losses, color=BLUE, marker="o", markersize=4)
    left.set(
        yscale="log",
        xlabel="step",
        ylabel="loss",
        title="ten steps downhill",
        xticks=range(2, len(losses) + 1, 2),
    )
    _open(left)

    first, second = np.meshgrid(np.linspace(-0.6, 1.4, 161), np.linspace(-1.4, 0.4, 161))
    pixels, neighbours = image[:, :-1].numpy(), image[:, 1:].numpy()
    residuals = first[..., None, None] * pixels + second[..., None, None] * neighbours - edges.numpy()
    loss = (residuals**2).sum((-2, -1))
    levels = np.geomspace(0.05, 100, 12)
    right.contour(first, second, loss, levels=levels, colors=GREY, linewidths=0.8, alpha=0.6)
    right.plot(*zip(*path, strict=True), color=BLUE, marker="o", markersize=4)
    right.plot(1, -1, color=ORANGE, marker="*", markersize=13, linestyle="none")
    right.annotate("[1, −1]", (1, -1), (-12, -22), textcoords="offset points", color=ORANGE, ha="right")
    right.annotate("start", path[0], (0, 8), textcoords="offset points", color=BLUE, ha="center")
    right.set(xlabel="left weight", ylabel="right weight", title="the same steps, among all kernels")
    right.set_aspect("equal")
    return figure


def looks(seen: Mapping[str, Tensor]) -> Figure:
    """How many windows each pixel of an image is in."""
    figure, axes = _figure(2.5, 1, len(seen))
    for axis, (title, counts) in zip(axes, seen.items(), strict=True):
        _grid_of_numbers(axis, counts, title, "Blues", (0, 12))
    return figure


def pooling(pooled: Mapping[str, Tensor]) -> Figure:
    """One image and what pooling makes of it."""
    figure, axes = _figure(1.75, 1, len(pooled))
    for axis, (title, image) in zip(axes, pooled.items(), strict=True):
        axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        _plain(axis, title)
    return figure


def training_curves(curves: Mapping[str, Any]) -> Figure:
    """Training loss and validation accuracy by epoch."""
    figure, (left, right) = _figure(2.8, 1, 2)
    for (name, curve), colour in zip(curves.items(), (BLUE, ORANGE, GREEN), strict=False):
        epochs = [progress.epochs for progress in curve]
        left.plot(epochs, [progress.train_loss for progress in curve], color=colour, marker="o", markersize=4)
        right.plot(
            epochs,
            [progress.val_accuracy for progress in curve],
            color=colour,
            marker="o",
            markersize=4,
            label=name,
        )
    left.axhline(np.log(10), color=GREY, linewidth=1, linestyle=":")
    left.annotate("guessing: ln 10", (4.4, np.log(10)), (0, 5), textcoords="offset points", fontsize=8.5)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, 2.6))
    right.axhline(0.1, color=GREY, linewidth=1, linestyle=":")
    right.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1))
    right.legend(loc="lower right", labelcolor=GREY, bbox_to_anchor=(1, 0.1))
    for axis in (left, right):
        _open(axis)
    return figure


def feature_maps(images: Tensor, maps: Tensor) -> Figure:
    """A row for each image: the image, then its channels."""
    figure, axes = _figure(1.12 * len(images), len(images), 1 + maps.shape[1])
    for row, (image, channels) in enumerate(zip(images, maps, strict=True)):
        axes[row, 0].imshow(image[0].numpy(), cmap="gray")
        _plain(axes[row, 0], "image" if row == 0 else "")
        for number, channel in enumerate(channels):
            least, most = (float(bound) for bound in maps[:, number].aminmax())
            axes[row, number + 1].imshow(channel.numpy(), cmap="viridis", vmin=least, vmax=most)
            _plain(axes[row, number + 1], f"channel {number}" if row == 0 else "")
    return figure


def where_vgg_is(stages: Mapping[str, tuple[int, int]]) -> Figure:
    """Each stage's share of the parameters and of the work."""
    figure, axes = _figure(2.6, 1, 2, sharey=True)
    names = list(stages)
    for axis, column, colour, title in zip(
        axes, (0, 1), (BLUE, ORANGE), ("parameters", "FLOPs"), strict=True
    ):
        total = sum(stage[column] for stage in stages.values())
        shares = [100 * stage[column] / total for stage in stages.values()]
        bars = axis.barh(names, shares, color=colour)
        axis.bar_label(bars, [f"{share:.0f} %" if share >= 1 else "< 1 %" for share in shares], padding=4)
        axis.set(title=f"{title}: {total:,}", xticks=[], xlim=(0, 100))
        axis.tick_params(left=False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0].invert_yaxis()
    return figure
