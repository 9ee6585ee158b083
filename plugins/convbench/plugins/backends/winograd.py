"""`winograd` and `winograd_4x4`: fewer multiplications for 3x3 kernels, by Winograd's minimal filtering.

The output is cut into tiles of m x m. F(m x m, 3x3) computes one from a tile of (m+2) x (m+2) inputs with
(m+2)² multiplications instead of 9·m² (Lavin and Gray, "Fast algorithms for convolutional neural networks",
2016, whose matrices these are):

    Y = Aᵀ [ (G g Gᵀ) * (Bᵀ d B) ] A        * elementwise, summed over channels: (m+2)² matrix products

Cost per output: C/groups·(m+2)²/m² multiplications, where direct summation has 9·C/groups: 4 with F(2x2, 3x3),
2.25 with F(4x4, 3x3). The transforms come on top, for N·C + O·C/groups + N·O planes of tiles, mostly additions;
with few channels they dominate. Overhanging tiles are computed whole.

Accuracy: the transforms amplify rounding errors, and an error spreads over its tile. `growth` is by how much,
for random data: in the transformed domain a product has the variance of its rows' squared norms, where direct
summation has 1, and the last transform adds them up; the largest over outputs and gradients is taken (after
Barabasz, Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution for
deep neural networks", 2020). Measured in float32 on random images, against im2col's root mean square errors:
F(2x2) 0.7 to 2 times in outputs and 1 to 4 in gradients; F(4x4) 4 to 10 and 5 to 12, and with up to 512 channels
at most 2e-5 of the largest output.

Not here: pooling, and convolutions of other kernel sizes, strides or dilations, which are `Unsupported`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, Unsupported, hookimpl
from convbench.registry.ops.window import IntPair, conv2d_window
from convbench.registry.records import Accuracy

if TYPE_CHECKING:
    from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Algorithm:
    """The transforms of F(m x m, 3x3): m outputs from m + 2 inputs, along each axis."""

    input: Matrix  # Bᵀ
    kernel: Matrix  # G
    output: Matrix  # Aᵀ
    growth: float  # of rounding errors, over those of direct sums

    @property
    def m(self) -> int:
        return len(self.output)


F2 = Algorithm(
    input=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    output=((1, 1, 1, 0), (0, 1, -1, -1)),
    growth=2.0,
)
F4 = Algorithm(
    input=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    kernel=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    output=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    growth=31.5,
)


def conv2d(
    algorithm: Algorithm,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation: (N, C, H, W), (O, C/groups, 3, 3), (O,) -> (N, O, H', W').

    Raises:
        Unsupported: another kernel size, stride or dilation; the algorithm is defined for these only.
    """
    import torch.nn.functional as F

    window = conv2d_window(input, weight, bias, stride, padding, dilation, groups)
    if window.kernel_size != (3, 3):
        raise Unsupported(f"kernels of 3x3 only, not {window.kernel_size[0]}x{window.kernel_size[1]}")
    if window.stride != (1, 1) or window.dilation != (1, 1):
        raise Unsupported(f"stride 1 and dilation 1 only, not {window.stride} and {window.dilation}")

    m, (height, width) = algorithm.m, window.output_size
    down, across = -(-height // m), -(-width // m)  # tiles; the last ones may hang over
    left, right, top, bottom = window.pad
    pad = (left, right + across * m - width, top, bottom + down * m - height)
    images = F.pad(input, pad).transpose(0, 1)  # (C, N, down·m + 2, across·m + 2)

    rows = [images[..., u : u + down * m : m, :] for u in range(m + 2)]
    tiles = combine(algorithm.input, rows)  # (m+2, C, N, down, across·m + 2)
    columns = [tiles[..., v : v + across * m : m] for v in range(m + 2)]
    tiles = combine(algorithm.input, columns)  # (m+2, m+2, C, N, down, across)
    kernels = combine(algorithm.kernel, weight.unbind(-2))
    kernels = combine(algorithm.kernel, kernels.unbind(-1))  # (m+2, m+2, O, C/groups)

    pixels = tiles.flatten(3).unflatten(2, (groups, -1))  # (..., groups, C/groups, N·down·across)
    products = (kernels.unflatten(2, (groups, -1)) @ pixels).flatten(2, 3)  # (m+2, m+2, O, N·down·across)

    outputs = combine(algorithm.output, products.unbind(0))
    outputs = combine(algorithm.output, outputs.unbind(1)).unflatten(-1, (images.shape[1], down, across))
    output: Tensor = outputs.permute(3, 2, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)  # (N, O, down·m, across·m)
    output = output[..., :height, :width]
    return output.contiguous() if bias is None else output + bias[:, None, None]


def combine(matrix: Matrix, parts: Iterable[Tensor]) -> Tensor:
    """Matrix times vector, where the vector's elements are tensors; the products form the first dimension.

    Written out as additions, for most coefficients are 0, 1 or -1: that is the algorithm's whole point.
    """
    import torch

    vector = list(parts)
    combined = []
    for row in matrix:
        (first, part), *others = [(factor, part) for factor, part in zip(row, vector, strict=True) if factor]
        total = part if first == 1 else first * part
        for factor, part in others:
            total = torch.add(total, part, alpha=factor)
        combined.append(total)
    return torch.stack(combined)


def load(algorithm: Algorithm) -> Mapping[str, Callable[..., Any]]:
    return {"conv2d": partial(conv2d, algorithm)}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    for name, algorithm in (("winograd", F2), ("winograd_4x4", F4)):
        yield Backend(
            name=name,
            summary=f"F({algorithm.m}x{algorithm.m}, 3x3): minimal filtering, for 3x3 kernels of stride 1",
            load=partial(load, algorithm),
            devices=("cpu", "cuda"),
            dtypes=("float32", "float64"),
            accuracy={"conv2d": Accuracy("normwise", growth=algorithm.growth)},
            second_order=("conv2d",),
        )
