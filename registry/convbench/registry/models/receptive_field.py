"""Receptive fields: how much of the image one unit can see, traced through any network.

A torch function mode sees every torch call of a network, so that residual sums, branches and functional
calls count as modules do. Each kind of call has its rule:

- a window (convolution, pooling): the field grows by (kernel_size - 1) * dilation * jump, and the jump, the
  distance in pixels between neighbouring units, is multiplied by the stride. Sizes are the theoretical ones:
  padding counts, and a field may be larger than the image;
- element by element: the largest field among the inputs;
- data movement (permute, concatenate, slice): the field stays, and its positions move as the elements do;
- a mixture over dimensions (linear, mean, softmax, attention): see `Field.mixed`.

What no rule covers is unknown, never guessed. Source: Araujo, Norris and Sim, "Computing receptive fields of
convolutional neural networks" (Distill, 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from convbench.registry.ops.contract import OPS
from convbench.registry.ops.window import pair


class Reach(IntEnum):
    """What is known about a field; of several that meet, the last one prevails."""

    SIZE = 0
    UNKNOWN = 1
    EVERYTHING = 2


@dataclass(frozen=True, eq=False)
class Field:
    """What every element of a tensor sees.

    Attributes:
        size: (height, width) in pixels.
        jump: pixels between the fields of neighbouring units, (vertical, horizontal).
        reach: whether these two mean anything.
        positions: int32, of the tensor's shape: which place of the feature map each element belongs to, -1 for
            none. It tells which dimensions hold different places. None where that no longer matters.
    """

    size: tuple[int, int]
    jump: tuple[int, int]
    reach: Reach
    positions: Tensor | None

    def unknown(self) -> Field:
        """After something no rule covers."""
        return replace(self, reach=max(self.reach, Reach.UNKNOWN), positions=None)

    def everything(self) -> Field:
        """After a mixture of the whole feature map."""
        return replace(self, reach=Reach.EVERYTHING, positions=None)

    def at(self, positions: Tensor) -> Field:
        """The same field for elements at other positions."""
        return replace(self, positions=positions) if self.reach == Reach.SIZE else self

    def slid(
        self,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        positions: Tensor,
    ) -> Field:
        """After a sliding window."""
        grown = [(kernel_size[axis] - 1) * dilation[axis] * self.jump[axis] for axis in (0, 1)]
        size = (self.size[0] + grown[0], self.size[1] + grown[1])
        jump = (self.jump[0] * stride[0], self.jump[1] * stride[1])
        return Field(size, jump, self.reach, None).at(positions)

    def mixed(self, dims: Sequence[int]) -> Field:
        """After every element came to depend on all elements along these dimensions.

        Nothing changes where they hold one place, such as the channels of a pixel. Over all places the field
        is the whole image; over some, such as one window of many, it is unknown.
        """
        places = self.positions
        if places is None:
            return self
        if not any(bool((places != places.narrow(dim, 0, 1)).any()) for dim in dims):
            return self
        own = {dim % places.dim() for dim in dims}
        together = places[tuple(slice(None) if dim in own else 0 for dim in range(places.dim()))]
        everywhere = together.unique().numel() == places.unique().numel()
        return self.everything() if everywhere else self.unknown()


def pixels(image: Tensor) -> Field:
    """The field of the pixels of (N, C, H, W) themselves."""
    return Field((1, 1), (1, 1), Reach.SIZE, places(image))


def places(features: Tensor) -> Tensor:
    """Number the places of (N, C, H, W), the same in every image and channel; takes the memory of one."""
    height, width = features.shape[2:]
    numbers = torch.arange(height * width, dtype=torch.int32, device="cpu")
    return numbers.view(1, 1, height, width).expand(features.shape)


def union(fields: Sequence[Field]) -> Field:
    """The smallest field with all of these in it, taking them as concentric; it has no positions."""
    return Field(
        (max(field.size[0] for field in fields), max(field.size[1] for field in fields)),
        (max(field.jump[0] for field in fields), max(field.jump[1] for field in fields)),
        max(field.reach for field in fields),
        None,
    )


# fmt: off
MOVEMENTS = {
    "__get__", "__getitem__", "cat", "channel_shuffle", "chunk", "clone", "concat", "concatenate", "contiguous",
    "expand", "expand_as", "flatten", "flip", "movedim", "moveaxis", "narrow", "pad", "permute", "repeat",
    "reshape", "reshape_as", "roll", "select", "split", "squeeze", "stack", "swapaxes", "swapdims", "t",
    "tensor_split", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
}
REDUCTIONS = {"amax", "amin", "logsumexp", "max", "mean", "min", "prod", "sum"}
PRODUCTS = {"__matmul__", "__rmatmul__", "baddbmm", "bmm", "matmul", "mm"}
ATTENTION = {"multi_head_attention_forward": 0, "scaled_dot_product_attention": -2}  # the tokens' dimension
OPAQUE = {  # they may keep the shape, and are nevertheless not element by element
    "conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "cummax", "cummin",
    "cumprod", "cumsum", "gather", "grid_sample", "index_select", "interpolate", "scatter", "sort",
}
# fmt: on


class ReceptiveFields(TorchFunctionMode):
    """While active, follows the fields of all that is computed from the image given to `start`."""

    def __init__(self) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()

    def start(self, image: Tensor) -> None:
        """Let every pixel of `image` (N, C, H, W) see itself."""
        self._fields[image] = pixels(image)

    def of(self, tensor: Tensor) -> Field | None:
        """The field of a tensor, None if no pixel of the image went into it."""
        field: Field | None = self._fields.get(tensor)
        return field

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        sources = [(tensor, field) for tensor in tensors((args, kwargs)) if (field := self.of(tensor))]
        if sources:
            call = _Call(func, args, kwargs, list(tensors(output)), sources, self.of)
            for tensor, field in _fields_after(call):
                self._fields[tensor] = field
        return output


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings, from left to right."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


@dataclass(frozen=True, eq=False)
class _Call:
    """One torch call: its arguments, its output tensors, and the tensor arguments that see the image."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: list[Tensor]
    sources: list[tuple[Tensor, Field]]
    field_of: Callable[[Tensor], Field | None]

    @property
    def name(self) -> str:
        return getattr(self.func, "__name__", "")

    @property
    def union(self) -> Field:
        return union([field for _, field in self.sources])

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)


def _fields_after(call: _Call) -> Iterator[tuple[Tensor, Field]]:
    """The tensors that a call returned or wrote into, with their fields."""
    name = call.name
    if name == "__setitem__":  # returns nothing
        target = call.args[0]
        before = call.field_of(target)
        if before is None or before.positions is None:
            yield target, call.union.unknown()
        else:
            yield target, call.union.at(before.positions)
    elif name in MOVEMENTS:
        yield from zip(call.outputs, _moved(call), strict=True)
    elif call.outputs and not name.startswith("new_") and not name.endswith("_like"):
        field = _rule(call)
        for output in call.outputs:
            yield output, field


def _rule(call: _Call) -> Field:
    """The field of what a call computes."""
    name = call.name
    first = call.args[0] if call.args else None
    field = call.field_of(first) if isinstance(first, Tensor) else None
    alone = len(call.sources) == 1  # the other factors are parameters
    if name in ATTENTION:
        return _attention(call)
    if name == "einsum" and alone:
        return _einsum(call)
    if name in OPAQUE or name == "einsum" or name.startswith("fft_"):
        return call.union.unknown()
    if name == "linear" or (name in PRODUCTS and field and alone and call.args[1].dim() == 2):
        return _linear(call)
    if name in PRODUCTS:
        return call.union.unknown()
    if field is None or not isinstance(first, Tensor):
        return _element_by_element(call)
    if name.removesuffix("_with_indices") in OPS:
        return _window(call, field)
    if name == "unfold" and first.dim() == 4 and len(call.outputs[0].shape) == 3:
        return _unfolded(call, field)
    if name.startswith("adaptive_"):
        return _adaptive(field, first, call.outputs[0])
    if name in REDUCTIONS and not isinstance(call.argument(1, "other"), Tensor):
        return _reduced(call, field, first)
    return _element_by_element(call).mixed(_normalised_dimensions(call, first))


def _window(call: _Call, field: Field) -> Field:
    output = call.outputs[0]
    if output.dim() != 4:
        return field.unknown()
    kwargs = {name: value for name, value in call.kwargs.items() if name != "return_indices"}
    arguments = OPS[call.name.removesuffix("_with_indices")].bind(call.args, kwargs)
    kernel = arguments["weight"].shape[2:] if "weight" in arguments else arguments["kernel_size"]
    kernel_size = pair(kernel, "kernel_size")
    stride = pair(arguments["stride"] or kernel_size, "stride")  # pooling strides by its window if not told
    return field.slid(kernel_size, stride, pair(arguments.get("dilation", 1), "dilation"), places(output))


def _unfolded(call: _Call, field: Field) -> Field:
    """`F.unfold`: (N, C, H, W) -> (N, C * taps, places), what a convolution multiplies with its kernel."""
    kernel_size, dilation = call.argument(1, "kernel_size"), call.argument(2, "dilation", 1)
    stride, shape = call.argument(4, "stride", 1), call.outputs[0].shape
    numbers = torch.arange(shape[-1], dtype=torch.int32, device="cpu").expand(shape)
    return field.slid(pair(kernel_size, ""), pair(stride, ""), pair(dilation, ""), numbers)


def _adaptive(field: Field, features: Tensor, output: Tensor) -> Field:
    if output.dim() != 4:
        return field.unknown()
    before, after = features.shape[2:], output.shape[2:]
    if after == (1, 1):
        return field.everything()
    if before[0] % after[0] or before[1] % after[1]:  # windows of unlike sizes
        return field.unknown()
    window = (before[0] // after[0], before[1] // after[1])
    return field.slid(window, window, (1, 1), places(output))


def _linear(call: _Call) -> Field:
    """A layer over the last dimension: all there is of a matrix, or the channels of a place or a token."""
    features = call.args[0]
    if features.dim() <= 2:
        return call.union.everything()
    field = _element_by_element(call, features.shape).mixed([-1])
    return (
        field if field.positions is None else field.at(field.positions[..., :1].expand(call.outputs[0].shape))
    )


def _einsum(call: _Call) -> Field:
    """One operand sees the image, the others are parameters."""
    equation = call.args[0]
    operands = list(tensors(call.args[1:]))
    inputs, _, result = (equation if isinstance(equation, str) else "").replace(" ", "").partition("->")
    letters = dict(zip(operands, inputs.split(","), strict=False)).get(call.sources[0][0], "")
    field = call.sources[0][1]
    if not letters.isalpha() or not result.isalpha() or field.positions is None:
        return field.unknown()
    summed = [dim for dim, letter in enumerate(letters) if letter not in result]
    field = field.mixed(summed)
    if field.positions is None:
        return field
    kept = field.positions[tuple(0 if dim in summed else slice(None) for dim in range(len(letters)))]
    left = [letter for letter in letters if letter in result]
    kept = kept.permute([left.index(letter) for letter in result if letter in left])
    spread = kept[tuple(slice(None) if letter in left else None for letter in result)]
    return field.at(spread.expand(call.outputs[0].shape))


def _reduced(call: _Call, field: Field, features: Tensor) -> Field:
    dim = call.argument(1, "dim", call.kwargs.get("axis"))
    dims = [dim] if isinstance(dim, int) else list(range(features.dim()) if dim is None else dim)
    field = field.mixed(dims)
    if field.positions is None:
        return field
    return field.at(field.positions.amax(dims, keepdim=call.outputs[0].dim() == features.dim()))


def _attention(call: _Call) -> Field:
    """Every token sees all tokens given to the call: the whole image, unless attention is within windows."""
    field = call.field_of(call.argument(2, "value"))
    return call.union.unknown() if field is None else field.mixed([ATTENTION[call.name]]).unknown()


def _normalised_dimensions(call: _Call, features: Tensor) -> list[int]:
    """The dimensions over which a normalisation takes its statistics; none for anything else."""
    spatial = list(range(2, features.dim()))
    match call.name:
        case "softmax" | "log_softmax" | "softmin":
            return [call.argument(1, "dim", -1)]
        case "normalize":
            return [call.argument(2, "dim", 1)]
        case "layer_norm" | "rms_norm":
            return list(range(-len(call.argument(1, "normalized_shape")), 0))
        case "group_norm" | "instance_norm":
            return spatial
        case "batch_norm" if call.argument(5, "training", False):
            return spatial
    return []


def _element_by_element(call: _Call, shape: torch.Size | None = None) -> Field:
    """The union of the inputs' fields, if broadcasting them gives the output's shape."""
    shape = call.outputs[0].shape if shape is None else shape
    largest, field = max(call.sources, key=lambda source: source[0].numel())
    try:
        fits = torch.broadcast_shapes(largest.shape, shape) == shape
    except RuntimeError:  # not shapes that broadcast
        fits = False
    if not fits or field.positions is None:
        return call.union.unknown()
    return call.union.at(field.positions.expand(shape))


def _moved(call: _Call) -> list[Field]:
    """Move the positions as the call moves the elements."""
    field = call.union
    lost = [field.unknown()] * len(call.outputs)
    if field.reach != Reach.SIZE or (call.name == "__getitem__" and _skips(call.args[1])):
        return lost
    func = Tensor.reshape if call.name == "view" else call.func  # positions are not contiguous
    try:
        moved = list(tensors(func(*_positions(call, call.args), **_positions(call, dict(call.kwargs)))))
    except (RuntimeError, IndexError, TypeError):  # such as an index on another device
        return lost
    if [positions.shape for positions in moved] != [output.shape for output in call.outputs]:
        return lost
    return [field.at(positions) for positions in moved]


def _skips(index: Any) -> bool:
    """Whether an index takes every other row, which makes a jump of its own."""
    keys = index if isinstance(index, tuple) else (index,)
    return any(isinstance(key, slice) and key.step not in (None, 1) for key in keys)


def _positions(call: _Call, value: Any) -> Any:
    """The arguments of a call with positions in the place of every tensor."""
    if isinstance(value, Tensor):
        field = call.field_of(value)
        if field is not None:
            return field.positions
        if call.name == "__getitem__":  # an index
            return value
        return torch.full(value.shape, -1, dtype=torch.int32, device="cpu")
    if isinstance(value, dict):
        return {name: _positions(call, item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_positions(call, item) for item in value)
    return value
