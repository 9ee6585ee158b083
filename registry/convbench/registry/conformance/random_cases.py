"""Cases beyond the curated ones: drawn at random from the whole space of calls, the same ones for the same seed.

Sizes are small, so that a backend that loops over pixels in Python can be asked too; what is unusual is drawn
often: uneven kernels, kernels larger than the image, single pixels, empty batches, depthwise groups, views.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from convbench.registry.conformance.cases import (
    Case,
    Layout,
    chain,
    conv2d,
    fused,
    has_output,
    output_shape,
    pool,
    stage,
)
from convbench.registry.errors import UnknownName, Unsupported
from convbench.registry.ops.activations import ACTIVATIONS
from convbench.registry.ops.window import Window, conv2d_window, pool2d_window

T = TypeVar("T")

POSITIONS = 100  # the most output positions of a case, each an iteration of a slow backend
PRODUCTS = 300_000  # the most multiplications


def generated_cases(op: str, number: int, seed: int = 0) -> list[Case]:
    """So many different cases of an op. The same seed has the same cases on every machine, the first ones first.

    Raises:
        UnknownName: no cases can be generated for an op of that name.
    """
    if op not in _GENERATORS:
        raise UnknownName("op", op, _GENERATORS)
    cases: dict[Case, None] = {}
    for case in _endless(op, seed):
        if len(cases) >= number:
            break
        cases[case] = None
    return list(cases)


def _endless(op: str, seed: int) -> Iterator[Case]:
    draw = Draw(f"convbench {op} {seed}")
    while True:
        case = _GENERATORS[op](draw)
        if case is not None:
            yield case


class Draw:
    """Random choices that are the same for every version of Python: only `random()` is promised to stay so."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def of(self, choices: Sequence[T]) -> T:
        """One of these, each as likely as another; repeat one to make it likelier."""
        return choices[int(self._random() * len(choices))]

    def chance(self, probability: float) -> bool:
        """True as often as that."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._random() * (high - low + 1))

    def pair(self, choices: Sequence[int]) -> int | tuple[int, int]:
        """An int or a pair of such numbers."""
        return (self.of(choices), self.of(choices)) if self.chance(0.4) else self.of(choices)

    def options(self, **options: Any) -> dict[str, Any]:
        """These options, those that are None left out."""
        return {name: value for name, value in options.items() if value is not None}


def _conv2d(draw: Draw) -> Case | None:
    groups = draw.of((1, 1, 1, 1, 2, 3, 4, 5))
    depthwise = groups > 1 and draw.chance(0.5)
    channels = groups * (1 if depthwise else draw.between(1, 4))
    filters = groups * draw.between(1, 3 if groups > 1 else 6)
    kernel = (draw.of((1, 1, 2, 3, 3, 3, 4, 5, 7)), draw.of((1, 1, 2, 3, 3, 3, 4, 5, 7)))
    together = draw.chance(0.3)  # a stride and a dilation of the same axis share their arithmetic
    options = draw.options(
        stride=draw.pair((1, 2, 2, 3, 4)) if together or draw.chance(0.4) else None,
        padding=_padding(draw, kernel),
        dilation=draw.pair((1, 2, 2, 3)) if together or draw.chance(0.2) else None,
        groups=groups if groups > 1 or draw.chance(0.1) else None,
    )
    if options.get("padding") == "same":
        options.pop("stride", None)
    images = (_batch(draw), channels, *_size(draw))
    weight = (filters, channels // groups, *kernel)
    bias = draw.chance(0.5)
    call = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    window = _window(lambda: conv2d_window(_meta(images), _meta(weight), None, **call))
    if window is None or not _small(window, images[0] * filters * channels // groups * kernel[0] * kernel[1]):
        return None
    tensors = ("input", "weight", "bias") if bias else ("input", "weight")
    weight_layout: Layout = "contiguous"
    if draw.chance(0.3):
        weight_layout = draw.of(("channels_last", "strided", "transposed", "expanded"))
    return conv2d(
        images, weight, bias=bias, **options, weight_layout=weight_layout, **_circumstances(draw, tensors)
    )


def _padding(draw: Draw, kernel: tuple[int, int]) -> Any:
    if draw.chance(0.3):
        return None
    if draw.chance(0.25):
        return draw.of(("same", "same", "valid"))
    return draw.pair(range(max(kernel) + 2))


def _pool(op: str, draw: Draw) -> Case | None:
    kernel = draw.pair((1, 2, 2, 3, 3, 4, 5))
    most = min(kernel) // 2 if isinstance(kernel, tuple) else kernel // 2
    together = op == "max_pool2d" and draw.chance(0.3)
    options = draw.options(
        kernel_size=kernel,
        stride=draw.pair((1, 2, 2, 3, 4)) if together or draw.chance(0.6) else None,
        padding=draw.pair(range(most + 1)) if draw.chance(0.6) else None,
        ceil_mode=draw.chance(0.5) if draw.chance(0.6) else None,
    )
    dilation: int | tuple[int, int] = 1
    if together or (op == "max_pool2d" and draw.chance(0.2)):
        options["dilation"] = dilation = draw.pair((1, 2, 2, 3))
    if op == "avg_pool2d":
        options |= draw.options(
            count_include_pad=draw.chance(0.3) if draw.chance(0.5) else None,
            divisor_override=draw.between(1, 7) if draw.chance(0.3) else None,
        )
    images = (_batch(draw), draw.between(1, 4), *_size(draw))
    stride, padding = options.get("stride"), options.get("padding", 0)
    window = _window(
        lambda: pool2d_window(
            _meta(images), kernel, stride, padding, dilation, options.get("ceil_mode", False)
        )
    )
    if window is None or not _small(window, images[0] * images[1] * 25) or not _sees(window, images[2:]):
        return None
    return pool(op, images, **options, **_circumstances(draw, ("input",)))


def _batch(draw: Draw) -> int:
    return draw.of((1, 1, 1, 2, 2, 3, 4)) if not draw.chance(0.04) else 0


def _size(draw: Draw) -> tuple[int, int]:
    if draw.chance(0.15):  # tiny, or a line
        return draw.of((1, 1, 2, 3)), draw.of((1, 2, 5, 16))
    return draw.between(1, 15), draw.between(1, 15)


def _circumstances(draw: Draw, tensors: tuple[str, ...]) -> dict[str, Any]:
    """How the call is made: layouts, which gradients are asked for, to which order, and of what values."""
    chosen: dict[str, Any] = {}
    if draw.chance(0.35):
        chosen["layout"] = draw.of(("channels_last", "strided", "transposed", "expanded"))
    if draw.chance(0.35):
        chosen["grad_output_layout"] = draw.of(
            ("channels_last", "strided", "transposed", "expanded", "scalar")
        )
    if draw.chance(0.3):
        chosen["needs"] = tuple(name for name in tensors if draw.chance(0.5))
    elif draw.chance(0.2):
        chosen["order"] = 2
    elif draw.chance(0.08):
        chosen["special"] = True
    return chosen


def _meta(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _window(resolve: Callable[[], Window]) -> Window | None:
    """None where torch refuses the call, or where there may be a window without a pixel."""
    try:
        return resolve()
    except (ValueError, Unsupported):
        return None


def _small(window: Window, products: int) -> bool:
    positions = window.output_size[0] * window.output_size[1]
    return positions <= POSITIONS and products * positions <= PRODUCTS


def _sees(window: Window, size: tuple[int, ...]) -> bool:
    """Whether every window covers a pixel of the image: there is no maximum of padding alone."""
    for axis in (0, 1):
        taps = [tap * window.dilation[axis] - window.before[axis] for tap in range(window.kernel_size[axis])]
        for position in range(window.output_size[axis]):
            start = position * window.stride[axis]
            if not any(0 <= start + tap < size[axis] for tap in taps):
                return False
    return True


def _fused(op: str, base: str, draw: Draw) -> Case | None:
    like = _GENERATORS[base](draw)
    return None if like is None else fused(op, like, draw.of(tuple(ACTIVATIONS)))


def _staged(op: str, draw: Draw) -> Case | None:
    like = _conv2d(draw)
    window, step = draw.of((1, 2, 3, (2, 1))), draw.of((None, 1, 2, (2, 3)))
    if like is None:
        return None
    case = stage(op, like, draw.of(tuple(ACTIVATIONS)), window, step)
    return case if has_output(case) else None


def _chain(draw: Draw) -> Case | None:
    images = draw.of((1, 2, 3, 10, 16, 17, 21)) if not draw.chance(0.04) else 0
    channels, height, width = shape = draw.between(1, 3), draw.between(4, 9), draw.between(4, 9)
    layers: list[tuple[tuple[int, ...] | None, tuple[Any, ...]]] = []
    for _ in range(draw.between(1, 2)):
        groups = channels if draw.chance(0.2) else 1
        filters = groups * draw.between(1, 3)
        kernel = draw.of((1, 2, 3, 3)), draw.of((1, 2, 3))
        pooling = draw.of(("max_pool2d", "avg_pool2d"))
        options = 1, draw.of((0, 1, "same")), draw.of((1, 1, 1, 2)), groups, draw.of(tuple(ACTIVATIONS))
        window = draw.of((1, 2, 2, (1, 2), 3)), draw.of((None, None, 1))
        weight = filters, channels // groups, *kernel
        layers.append((weight, (f"conv2d_activation_{pooling}", *options, *window)))
        output = output_shape(chain((images, *shape), *layers))
        if output is None:
            return None
        channels, height, width = output[1:]
    features = channels * height * width
    linear = draw.between(0, 2)
    if linear:
        layers.append((None, ("flatten",)))
    for _ in range(linear):
        outputs = draw.between(1, 20)
        layers.append(((outputs, features), ("linear", draw.of(("none", *ACTIVATIONS)))))
        features = outputs
    bias = draw.chance(0.7)
    case = chain((images, *shape), *layers, bias=bias)
    further = _circumstances(draw, tuple(name for name, _ in case.shapes))
    if any("max_pool2d" in layer[0] or "relu" in layer for _, layer in layers):
        further.pop("order", None)  # where rounding decides, of second order nothing is known
    return replace(case, **further)


_GENERATORS: dict[str, Callable[[Draw], Case | None]] = {
    "conv2d": _conv2d,
    "max_pool2d": lambda draw: _pool("max_pool2d", draw),
    "avg_pool2d": lambda draw: _pool("avg_pool2d", draw),
    "conv2d_activation": lambda draw: _fused("conv2d_activation", "conv2d", draw),
    "activation_max_pool2d": lambda draw: _fused("activation_max_pool2d", "max_pool2d", draw),
    "activation_avg_pool2d": lambda draw: _fused("activation_avg_pool2d", "avg_pool2d", draw),
    "conv2d_activation_max_pool2d": lambda draw: _staged("conv2d_activation_max_pool2d", draw),
    "conv2d_activation_avg_pool2d": lambda draw: _staged("conv2d_activation_avg_pool2d", draw),
    "sequential": _chain,
}
