"""The arithmetic of sliding windows: how stride, padding and dilation turn an input size into an output size.

For backends: one call checks the arguments as torch does and resolves them to plain numbers.
Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016); Dive into Deep
Learning, 7.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING

from convbench.registry.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

IntPair = int | tuple[int, int] | list[int]
INT, LONG = 2**31 - 1, 2**63 - 1  # the largest numbers of torch's options: pooling's, and all others
# A padded image may have so many times the numbers of input and output together, and some in any case: backends
# write it out, and where padding or overhang is nearly all there is, that could take any amount of memory.
MOSTLY_PADDING, LITTLE = 64, 2**24


@dataclass(frozen=True)
class Window:
    """A window sliding over (H, W), every quantity as a (vertical, horizontal) pair.

    `before` and `after` are the rows and columns of padding at the top and left, and at the bottom and right. A
    stride is at most the size of the padded image, and the dilation of a kernel with one tap is 1.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    output_size: tuple[int, int]

    @property
    def pad(self) -> tuple[int, int, int, int]:
        """Left, right, top and bottom padding, in the order of `torch.nn.functional.pad`."""
        return self.before[1], self.after[1], self.before[0], self.after[0]

    def at(self, row: int, column: int) -> tuple[slice, slice]:
        """Where the window of output position (row, column) lies in the padded input."""
        top, left = row * self.stride[0], column * self.stride[1]
        reach_down = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        reach_right = self.dilation[1] * (self.kernel_size[1] - 1) + 1
        return (
            slice(top, top + reach_down, self.dilation[0]),
            slice(left, left + reach_right, self.dilation[1]),
        )

    def counts(self, size: tuple[int, int], include_padding: bool) -> tuple[list[int], list[int]]:
        """How many rows of each output row, and columns of each output column, a mean over the window counts.

        Args:
            size: (H, W) of the input without padding.
            include_padding: count the padding too; the overhang of `ceil_mode` never counts.
        """
        counts = []
        for axis, extent in enumerate(size):
            low = 0 if include_padding else self.before[axis]
            high = self.before[axis] + extent + (self.before[axis] if include_padding else 0)
            starts = (position * self.stride[axis] for position in range(self.output_size[axis]))
            counts.append([min(start + self.kernel_size[axis], high) - max(start, low) for start in starts])
        return counts[0], counts[1]


def pair(value: IntPair, name: str) -> tuple[int, int]:
    """An int or a pair of ints as a (vertical, horizontal) pair.

    Raises:
        ValueError: not one or two numbers, or too large ones.
        TypeError: not whole numbers.
    """
    if isinstance(value, tuple | list):
        numbers = tuple(whole(number, name) for number in value)
        if len(numbers) not in (1, 2):
            raise ValueError(f"{name} must be an int or a pair, not {value!r}")
        return numbers[0], numbers[-1]
    number = whole(value, name)
    return number, number


def whole(value: int, name: str) -> int:
    """A whole number that torch takes: no truth value, and none that its 64 bits do not hold.

    Raises:
        TypeError: not a whole number.
        ValueError: too large.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if not -LONG - 1 <= number <= LONG:
        raise ValueError(f"{name} must be at most {LONG}, not {number}")
    return number


def conv2d_window(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    padding: IntPair | str,
    dilation: IntPair,
    groups: int,
) -> Window:
    """Check the arguments of a `conv2d` call and resolve them; shapes as in `torch.nn.functional.conv2d`.

    Raises:
        ValueError: arguments that torch refuses too.
        Unsupported: a single image (C, H, W), which torch takes and the contract does not.
    """
    _refuse_unbatched(input)
    if input.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"conv2d takes a 4-d input and weight, not {tuple(input.shape)} and {tuple(weight.shape)}"
        )
    if input.dtype != weight.dtype:
        raise ValueError(f"input is {input.dtype} but weight is {weight.dtype}")
    if 0 in input.shape[2:]:
        raise ValueError(f"conv2d needs pixels, not an input of {tuple(input.shape)}")
    channels, filters, groups = input.shape[1], weight.shape[0], whole(groups, "groups")
    if filters < 1:
        raise ValueError(f"conv2d needs filters, not a weight of {tuple(weight.shape)}")
    if groups < 1 or channels % groups or filters % groups or weight.shape[1] != channels // groups:
        raise ValueError(
            f"weight {tuple(weight.shape)} with groups={groups} does not fit an input of {channels} channels"
        )
    if bias is not None and (tuple(bias.shape) != (filters,) or bias.dtype != input.dtype):
        raise ValueError(
            f"bias must be {input.dtype} of shape ({filters},), not {bias.dtype} of {tuple(bias.shape)}"
        )
    kernel_size = (weight.shape[2], weight.shape[3])
    steps, gaps = pair(stride, "stride"), pair(dilation, "dilation")
    if isinstance(padding, str):
        before, after = _named_padding(padding, kernel_size, steps, gaps)
    else:
        before = after = pair(padding, "padding")
    return _window(input, filters, kernel_size, steps, gaps, before, after, ceil_mode=False)


def pool2d_window(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> Window:
    """Check the arguments of a pooling call and resolve them; `stride` defaults to `kernel_size`.

    With `ceil_mode` the last windows may hang over the edge; `after` then includes the overhang.

    Raises:
        ValueError: arguments that torch refuses too.
        Unsupported: a single image (C, H, W), which torch takes and the contract does not.
    """
    _refuse_unbatched(input)
    if input.dim() != 4:
        raise ValueError(f"pooling takes a 4-d input, not {tuple(input.shape)}")
    if 0 in input.shape[1:]:
        raise ValueError(f"pooling needs channels and pixels, not an input of {tuple(input.shape)}")
    sizes = pair(kernel_size, "kernel_size")
    steps = sizes
    if stride is not None and not (isinstance(stride, list | tuple) and not stride):  # an empty list is none
        steps = pair(stride, "stride")
    pads, gaps = pair(padding, "padding"), pair(dilation, "dilation")
    if max(*sizes, *steps, *pads, *gaps) > INT:
        raise ValueError(
            f"the options of pooling must be at most {INT}, not {max(*sizes, *steps, *pads, *gaps)}"
        )
    if any(2 * pad > size for pad, size in zip(pads, sizes, strict=True)):
        raise ValueError(f"padding {pads} must be at most half of kernel_size {sizes}")
    window = _window(input, input.shape[1], sizes, steps, gaps, pads, pads, ceil_mode)
    if any(pad and gap > size for pad, gap, size in zip(pads, window.dilation, input.shape[2:], strict=True)):
        raise Unsupported(f"dilation {window.dilation} exceeds the image, so that a window may hold no pixel")
    return window


def of_the_image(largest: Tensor, input: Tensor, window: Window) -> Tensor:
    """The largest values of windows, each one that is minus infinity a pixel of the image and not of the padding.

    It is the first pixel of its window, so that the gradient reaches the pixel that has it in torch's pooling.

    Args:
        largest: (N, C, H', W'), computed from an input that is padded with minus infinity.
        input: (N, C, H, W), without padding.
        window: of the call.
    """
    if not any(window.pad):
        return largest
    import torch

    first = input
    for axis in (0, 1):
        step, gap, pad = window.stride[axis], window.dilation[axis], window.before[axis]
        starts = (position * step - pad for position in range(window.output_size[axis]))
        places = [start if start >= 0 else start % gap for start in starts]
        first = first.index_select(axis + 2, torch.tensor(places, device=input.device))
    return largest.where(~largest.isneginf(), first)


def mean_divisor(divisor_override: int | None) -> int | None:
    """The divisor of a mean, checked as torch does.

    Raises:
        TypeError: not a whole number.
        ValueError: zero.
    """
    if divisor_override is None:
        return None
    divisor = whole(divisor_override, "divisor_override")
    if not divisor:
        raise ValueError("divisor_override must not be zero")
    return divisor


def _refuse_unbatched(input: Tensor) -> None:
    if input.dim() == 3:
        raise Unsupported("a single image without a batch dimension")


def _named_padding(
    padding: str, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f"padding must be numbers, 'same' or 'valid', not {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, not {stride}")
    total = (dilation[0] * (kernel_size[0] - 1), dilation[1] * (kernel_size[1] - 1))
    before = (total[0] // 2, total[1] // 2)
    return before, (total[0] - before[0], total[1] - before[1])  # an odd total pads more at the end


def _window(
    input: Tensor,
    filters: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    before: tuple[int, int],
    after: tuple[int, int],
    ceil_mode: bool,
) -> Window:
    if min(kernel_size) < 1 or min(stride) < 1 or min(dilation) < 1 or min(before) < 0:
        raise ValueError(
            f"kernel_size {kernel_size}, stride {stride} and dilation {dilation} must be positive, "
            f"padding {before} not negative"
        )
    sizes, ends, steps = [], [], []
    for axis, extent in enumerate(input.shape[2:]):
        reach = dilation[axis] * (kernel_size[axis] - 1) + 1
        room = extent + before[axis] + after[axis] - reach
        count = (room + (stride[axis] - 1 if ceil_mode else 0)) // stride[axis] + 1
        if ceil_mode and (count - 1) * stride[axis] >= extent + before[axis]:
            count -= 1  # the last window must start inside the input
        if count < 1:
            raise ValueError(f"a window of {reach} is larger than the padded input of {room + reach}")
        # no further than the image: there is one window then, and memory would grow with the stride
        step = min(stride[axis], extent + before[axis] + after[axis])
        overhang = max(0, (count - 1) * step - room)
        sizes.append(count)
        ends.append(after[axis] + overhang)
        steps.append(step)
    window = Window(
        kernel_size,
        (steps[0], steps[1]),
        (dilation[0] if kernel_size[0] > 1 else 1, dilation[1] if kernel_size[1] > 1 else 1),
        before,
        (ends[0], ends[1]),
        (sizes[0], sizes[1]),
    )
    if max(window.pad) > 8:
        _refuse_mostly_padding(input, filters, window)
    return window


def _refuse_mostly_padding(input: Tensor, filters: int, window: Window) -> None:
    height, width = input.shape[2:]
    batch, channels = max(1, input.shape[0]), max(1, input.shape[1])
    left, right, top, bottom = window.pad
    padded = batch * channels * (top + height + bottom) * (left + width + right)
    rows, columns = window.output_size
    numbers = batch * channels * height * width + batch * filters * rows * columns
    if padded > MOSTLY_PADDING * numbers + LITTLE:
        raise Unsupported(f"an image of {height}x{width} with far more padding than image, {window.pad}")
