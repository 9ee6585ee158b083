"""Receptive fields, followed through a forward pass: how much of the image one unit can see.

A torch function mode sees every torch call a network makes, whoever makes it, so that residual sums, branches
and functional calls count as modules do. Each kind of call has its rule:

- a window (convolution, pooling): the field grows by (kernel_size - 1) * dilation * jump, and the jump, the
  distance in pixels between neighbouring units, is multiplied by the stride;
- element by element: the largest field among the inputs;
- data movement (permute, concatenate, slice): the field stays, and `positions` is moved along, so that later
  rules know which dimensions hold different places of the image;
- a mixture over dimensions (linear, mean, softmax, attention): nothing changes where these dimensions hold one
  place, such as the channels of a pixel; over all places the field is the whole image.

What no rule covers is unknown, never guessed. Sizes are the theoretical ones: padding counts, and a field may
be larger than the image. Source: Araujo, Norris and Sim, "Computing receptive fields of convolutional neural
networks" (Distill, 2019).
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

from convbench.registry.geometry import pair
from convbench.registry.ops import OPS

MOVEMENTS = frozenset(
    "__get__ __getitem__ cat channel_shuffle chunk clone concat concatenate contiguous expand expand_as flatten "
    "flip movedim moveaxis narrow pad permute repeat reshape reshape_as roll select split squeeze stack swapaxes "
    "swapdims t tensor_split transpose unbind unflatten unsqueeze view view_as".split()
)
REDUCTIONS = frozenset("amax amin logsumexp max mean min prod sum".split())
PRODUCTS = frozenset("__matmul__ __rmatmul__ baddbmm bmm einsum matmul mm".split())
# They may keep the shape, and are nevertheless not element by element.
OPAQUE = frozenset(
    "conv1d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cummax cummin cumprod cumsum gather "
    "grid_sample index_select interpolate scatter sort".split()
)


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
        positions: the tensor's shape, int32: which place of the feature map each element belongs to, -1 for
            none. None where it no longer matters.
    """

    size: tuple[int, int]
    jump: tuple[int, int]
    reach: Reach
    positions: Tensor | None


class ReceptiveFields(TorchFunctionMode):
    """While active, follows the fields of all that is computed from the image given to `start`."""

    def __init__(self) -> None:
        super().__init__()
        self._fields: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def start(self, image: Tensor) -> None:
        """Let every pixel of `image` (N, C, H, W) see itself."""
        self._fields[image] = Field((1, 1), (1, 1), Reach.SIZE, _places(image))

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
        call = _Call(func, args, kwargs, list(tensors(output)), sources, self.of)
        if sources and call.name == "__setitem__":  # writes into its first argument, returns nothing
            self._fields[args[0]] = _written(call)
        elif sources and not call.name.startswith("new_") and not call.name.endswith("_like"):
            self._fields.update(zip(call.outputs, _follow(call) if call.outputs else [], strict=True))
        return output


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
    def first(self) -> Field | None:
        """The field of the first argument."""
        return self.field_of(self.args[0]) if self.args and isinstance(self.args[0], Tensor) else None

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings, from left to right."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def _follow(call: _Call) -> list[Field]:
    """The fields of the outputs."""
    if call.name in MOVEMENTS:
        return _moved(call)
    return [_rule(call)] * len(call.outputs)


def _rule(call: _Call) -> Field:
    name, field = call.name, call.first
    if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        return _attention(call)
    if name in PRODUCTS and not (field and len(call.sources) == 1 and call.args[1].dim() == 2):
        return _unknown(_union(call.sources))
    if name in OPAQUE or name.startswith("fft_"):
        return _unknown(_union(call.sources))
    if field is None:
        return _element_by_element(call)
    image, output = call.args[0], call.outputs[0]
    if name.removesuffix("_with_indices") in OPS:
        return _window(call, field)
    if name.startswith("adaptive_"):
        return _adaptive(field, image, output)
    if name == "linear" or name in PRODUCTS:
        return _linear(field, image, output)
    if name in REDUCTIONS and not isinstance(call.argument(1, "other"), Tensor):
        return _reduced(call, field, image)
    return _mixed(_element_by_element(call), _normalised_dimensions(call, image))


def _places(features: Tensor) -> Tensor:
    """Number the places of (N, C, H, W), the same in every image and channel; takes no memory."""
    height, width = features.shape[2:]
    numbers = torch.arange(height * width, dtype=torch.int32, device="cpu")
    return numbers.view(1, 1, height, width).expand(features.shape)


def _unknown(field: Field) -> Field:
    return replace(field, reach=max(field.reach, Reach.UNKNOWN), positions=None)


def _everything(field: Field) -> Field:
    return replace(field, reach=Reach.EVERYTHING, positions=None)


def _window(call: _Call, field: Field) -> Field:
    kwargs = {name: value for name, value in call.kwargs.items() if name != "return_indices"}
    name, output = call.name.removesuffix("_with_indices"), call.outputs[0]
    arguments = OPS[name].bind(call.args, kwargs)
    if output.dim() != 4:
        return _unknown(field)
    kernel = arguments["weight"].shape[2:] if "weight" in arguments else arguments["kernel_size"]
    kernel_size = pair(kernel, "kernel_size")
    stride = pair(arguments["stride"] or kernel_size, "stride")  # pooling strides by its window if not told
    dilation = pair(arguments.get("dilation", 1), "dilation")
    return _slid(field, kernel_size, stride, dilation, output)


def _slid(
    field: Field,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    output: Tensor,
) -> Field:
    size, jump = field.size, field.jump
    vertical, horizontal = ((kernel_size[axis] - 1) * dilation[axis] * jump[axis] for axis in (0, 1))
    return Field(
        (size[0] + vertical, size[1] + horizontal),
        (jump[0] * stride[0], jump[1] * stride[1]),
        field.reach,
        _places(output) if field.reach == Reach.SIZE else None,
    )


def _adaptive(field: Field, image: Tensor, output: Tensor) -> Field:
    before, after = image.shape[2:], output.shape[2:]
    if output.dim() != 4:
        return _unknown(field)
    if after == (1, 1):
        return _everything(field)
    if before[0] % after[0] or before[1] % after[1]:  # windows of unlike sizes
        return _unknown(field)
    window = (before[0] // after[0], before[1] // after[1])
    return _slid(field, window, window, (1, 1), output)


def _linear(field: Field, image: Tensor, output: Tensor) -> Field:
    """One layer over the last dimension: all there is of a matrix, or the channels of a place or token."""
    if image.dim() <= 2:
        return _everything(field)
    field = _mixed(field, [-1])
    positions = field.positions
    return field if positions is None else replace(field, positions=positions[..., :1].expand(output.shape))


def _reduced(call: _Call, field: Field, image: Tensor) -> Field:
    dim = call.argument(1, "dim", call.kwargs.get("axis"))
    dims = [dim] if isinstance(dim, int) else list(range(image.dim()) if dim is None else dim)
    field = _mixed(field, dims)
    if field.positions is None:
        return field
    keep = call.outputs[0].dim() == image.dim()
    return replace(field, positions=field.positions.amax(dims, keepdim=keep))


def _attention(call: _Call) -> Field:
    """Every token sees all tokens given to the call: the whole image, unless attention is within windows."""
    value = call.argument(2, "value")
    field = call.field_of(value)
    if field is None:
        return _unknown(_union(call.sources))
    return _unknown(_mixed(field, [-2 if call.name == "scaled_dot_product_attention" else 0]))


def _normalised_dimensions(call: _Call, image: Tensor) -> list[int]:
    """The dimensions over which a normalisation takes its statistics; none for anything else."""
    spatial = list(range(2, image.dim()))
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


def _mixed(field: Field, dims: Sequence[int]) -> Field:
    """Every element now depends on all elements along these dimensions."""
    places = field.positions
    if places is None:
        return field
    if not any(bool((places != places.narrow(dim, 0, 1)).any()) for dim in dims):
        return field
    own = {dim % places.dim() for dim in dims}
    together = places[tuple(slice(None) if dim in own else 0 for dim in range(places.dim()))]
    if together.unique().numel() == places.unique().numel():
        return _everything(field)
    return _unknown(field)  # some places, such as one window of many


def _union(sources: Sequence[tuple[Tensor, Field]]) -> Field:
    """The smallest field with all of these in it, taking them as concentric."""
    fields = [field for _, field in sources]
    return Field(
        (max(field.size[0] for field in fields), max(field.size[1] for field in fields)),
        (max(field.jump[0] for field in fields), max(field.jump[1] for field in fields)),
        max(field.reach for field in fields),
        None,
    )


def _element_by_element(call: _Call) -> Field:
    """The union of the inputs' fields, if the output has the shape that broadcasting them gives."""
    union = _union(call.sources)
    shape = call.outputs[0].shape
    largest, field = max(call.sources, key=lambda source: source[0].numel())
    if union.reach != Reach.SIZE or field.positions is None:
        return union
    try:
        fits = torch.broadcast_shapes(largest.shape, shape) == shape
    except RuntimeError:  # not shapes that broadcast
        fits = False
    return replace(union, positions=field.positions.expand(shape)) if fits else _unknown(union)


def _written(call: _Call) -> Field:
    """What a tensor sees after a part of it was assigned."""
    before, union = call.first, _union(call.sources)
    return _unknown(union) if before is None else replace(union, positions=before.positions)


def _moved(call: _Call) -> list[Field]:
    """Move the positions as the call moves the elements."""
    union = _union(call.sources)
    if union.reach != Reach.SIZE:
        return [union] * len(call.outputs)
    if call.name == "__getitem__" and any(isinstance(key, slice) and key.step not in (None, 1) for key in _keys(call.args[1])):
        return [_unknown(union)] * len(call.outputs)  # a jump of its own
    func = Tensor.reshape if call.name == "view" else call.func  # positions are not contiguous
    try:
        moved = list(tensors(func(*_positions(call, call.args), **_positions(call, dict(call.kwargs)))))
    except (RuntimeError, IndexError, TypeError):  # such as an index on another device
        moved = []
    if [positions.shape for positions in moved] != [output.shape for output in call.outputs]:
        return [_unknown(union)] * len(call.outputs)
    return [replace(union, positions=positions) for positions in moved]


def _keys(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _positions(call: _Call, value: Any) -> Any:
    """The arguments of a call with the positions of every tensor in the tensor's place."""
    if isinstance(value, Tensor):
        field = call.field_of(value)
        if field is not None:
            return field.positions
        return value if call.name == "__getitem__" else value.new_full(value.shape, -1, dtype=torch.int32, device="cpu")
    if isinstance(value, dict):
        return {name: _positions(call, item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_positions(call, item) for item in value)
    return value
