"""Choose the kernel of a convolution and of its gradients, and the grid to launch it on.

`direct.cu` computes convolutions of few channels, `gemm.cu` the others. The gradient of the input consists of
convolutions (`kernel_arguments.py`), each with a kernel and a grid of its own. The numbers here were chosen
without a GPU at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.compiler import Program, element, program
from convbench.plugins.backends.cuda.driver import Argument, Grid, Launch, Machine
from convbench.plugins.backends.cuda.kernel_arguments import Correlation, Shape, Tile, forward, input_gradient
from convbench.registry import Unsupported

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")  # in the order of correlation.cuh

# direct.cu
PIXELS = 4  # of a strip
MOST_THREADS = 128
MOST_STRIPS = 8  # side by side in a block
MOST_SHARED = 48 * 1024  # bytes
MOST_FILTERS = 8  # of a thread: 8 x 4 sums in registers
MOST_SUMS = 56  # of a thread, for the gradient of the weight
MOST_TAPS, MOST_SPAN = 11, 36  # of a row of the kernel, and of the window under a strip

# gemm.cu
FMA, TF32, HALF = 0, 1, 2


@dataclass(frozen=True)
class Block:
    """What a block of threads computes of the product, and how many warps it has, down and across."""

    rows: int
    columns: int
    warps: tuple[int, int]

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1]


FLAT, MIDDLE, LARGE = Block(32, 128, (1, 4)), Block(64, 64, (2, 2)), Block(128, 128, (2, 4))


def float32_on_tensor_cores() -> bool:
    """Whether convolutions may round float32 to TF32, by torch's setting."""
    convolutions: Any = torch.backends.cudnn  # a module that is a class, which type checkers do not see
    return bool(convolutions.conv.fp32_precision == "tf32")


@dataclass(frozen=True)
class Convolution:
    """The kernels of `conv2d`, on contiguous tensors."""

    machine: Machine

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
        return self.activated(input, weight, bias, shape, "none")

    def activated(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, activation: str
    ) -> Tensor:
        """The same, and one of `ACTIVATIONS` of the result."""
        output = input.new_empty((shape.images, shape.filters, *shape.output))
        if shape.images:
            self._correlate(forward(shape), input, weight, bias, output, activation)
        return output

    def input_gradient(self, grad_output: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        """(N, O, H', W'), (O, C/groups, kh, kw) -> (N, C, H, W)."""
        size = shape.images, shape.channels, *shape.size
        correlations, gaps = input_gradient(shape)
        gradient = grad_output.new_zeros(size) if gaps else grad_output.new_empty(size)
        if shape.images:
            for correlation in correlations:
                self._correlate(correlation, grad_output, weight, None, gradient, "none")
        return gradient

    def weight_gradient(
        self, grad_output: Tensor, input: Tensor, shape: Shape, with_bias: bool
    ) -> tuple[Tensor, Tensor]:
        """(N, O, H', W'), (N, C, H, W) -> (O, C/groups, kh, kw) of the weight, and (O,) of the bias.

        One kernel writes partial sums, and another one adds them up.
        """
        size = shape.filters, shape.channels // shape.groups, *shape.kernel
        of_bias = grad_output.new_empty(shape.filters)
        if not shape.images:
            return grad_output.new_zeros(size), of_bias.zero_()
        gradient, correlation = grad_output.new_empty(size), forward(shape)
        refuse_huge(correlation)
        numbers = shape.filters * (gradient[0].numel() + 1)  # with the bias's
        device, name = input.device, element(input.dtype)
        how = correlation, math_of(input.dtype), name, self.machine.processors(device)
        if plan := direct_weight_gradient_plan(*how):
            parts, kernel, per_block = plan.grid[0], "sum_rows", MOST_THREADS // 32
            partial = torch.empty((numbers, parts), dtype=torch.float32, device=device)
            self._launch(device, plan, correlation, plan.tile, input, grad_output, partial)
        else:
            plan, parts, length = gemm_weight_gradient_plan(*how, with_bias)
            kernel, per_block = "sum_columns", MOST_THREADS
            partial = torch.empty((parts, numbers), dtype=torch.float32, device=device)
            self._launch(
                device, plan, correlation, parts, length, int(with_bias), input, grad_output, partial
            )
        grid = (-(-numbers // per_block), 1, 1)
        sums = Plan(program("sums.cu", ELEMENT=name), kernel, grid, MOST_THREADS, 0)
        written = gradient, of_bias if with_bias else None
        self._launch(device, sums, numbers, numbers // shape.filters, parts, partial, *written)
        return gradient, of_bias

    def _correlate(
        self,
        correlation: Correlation,
        source: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        activation: str,
    ) -> None:
        refuse_huge(correlation)
        how = correlation, math_of(source.dtype), element(source.dtype), activation
        tensors = source, weight, bias, target
        if plan := direct_plan(*how):
            self._launch(source.device, plan, correlation, plan.tile, *tensors)
        else:
            plan = gemm_plan(*how, self.machine.processors(source.device))
            self._launch(source.device, plan, correlation, *tensors)

    def _launch(self, device: torch.device, plan: Plan, *arguments: Argument) -> None:
        self.machine.launch(device, Launch(*plan[:5], arguments))


class Plan(NamedTuple):
    """A launch without its arguments; `tile` is one of them where the kernel is direct."""

    program: Program
    kernel: str
    grid: Grid
    threads: int
    shared: int  # bytes of shared memory of a block
    tile: Tile | None = None


def math_of(dtype: torch.dtype) -> int:
    """What multiplies: `MATH` of gemm.cu."""
    if dtype == torch.float32:
        return TF32 if float32_on_tensor_cores() else FMA
    return HALF


def refuse_huge(correlation: Correlation) -> None:
    """The kernels count numbers of one image, of the weight, and all positions in 32 bits.

    Raises:
        Unsupported: there are more.
    """
    c = correlation
    counts = (
        c.source_channels * c.source_height * c.source_width,
        c.target_channels * c.target_height * c.target_width,
        c.groups * c.source_channels * c.target_channels * c.taps_h * c.taps_w,
        c.images * c.rows * c.columns,
    )
    if max(counts) > 2**31 - 2**16:
        raise Unsupported("more than 2**31 numbers in an image or a weight, or as many positions")


# --- direct -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def direct_plan(correlation: Correlation, math: int, element: str, activation: str = "none") -> Plan | None:
    """How the direct kernel computes it; None if it has too many channels, or too wide a kernel."""
    c = correlation
    few = c.source_channels <= 16 if math == FMA else max(c.source_channels, c.target_channels) <= 8
    if not (few or min(c.source_channels, c.target_channels) <= 4):
        return None
    filters = min(MOST_FILTERS, 1 << (int(c.target_channels) - 1).bit_length())  # so that programs are few
    found = _tile(c, c.taps_h, filters)
    if found is None:
        return None
    tile, threads, shared = found
    grid = (tile.tiles_x * tile.tiles_y * c.images, c.groups * -(-c.target_channels // filters), 1)
    made = _direct_program(c, element, filters, ACTIVATION=ACTIVATIONS.index(activation))
    return Plan(made, "direct", grid, threads, shared, tile)


@lru_cache(maxsize=1024)
def direct_weight_gradient_plan(
    correlation: Correlation, math: int, element: str, processors: int
) -> Plan | None:
    """How the direct kernel computes the gradient of the weight; None if it has too many channels.

    Images are summed in chunks: enough of them for all processors, and no more.
    """
    c = correlation
    if c.source_channels > (8 if math == FMA else 4):
        return None
    filters, taps = _taps(c)
    found = _tile(c, taps, 0)
    if found is None:
        return None
    tile, threads, shared = found
    tiles = tile.tiles_x * tile.tiles_y
    others = c.groups * -(-c.target_channels // filters), c.source_channels * -(-c.taps_h // taps)
    chunks = max(1, min(c.images, 4 * processors // (tiles * others[0] * others[1])))
    tile.images = -(-c.images // chunks)
    grid = (tiles * -(-c.images // tile.images), *others)
    padded = -(-(filters * taps * c.taps_w + filters) // 32) * 32
    made = _direct_program(c, element, filters, ROWS_OF_TAPS=taps)
    return Plan(made, "direct_weight_gradient", grid, threads, max(shared, threads // 32 * padded * 4), tile)


def _direct_program(c: Correlation, element: str, filters: int, **macros: int) -> Program:
    return program(
        "direct.cu", ELEMENT=element, FILTERS=filters, TAPS=c.taps_w, STEP=c.step_w, GAP=c.gap_w, **macros
    )


def _taps(c: Correlation) -> tuple[int, int]:
    """Filters, and rows of taps, whose sums a thread keeps for the gradient of the weight."""
    for filters in (4, 2):
        if filters < 2 * c.target_channels and filters * c.taps_h * c.taps_w <= MOST_SUMS:
            return filters, c.taps_h
    filters = 1 if c.target_channels == 1 else 2
    return filters, max(1, min(c.taps_h, MOST_SUMS // (filters * c.taps_w)))


def _tile(c: Correlation, taps_h: int, filters: int) -> tuple[Tile, int, int] | None:
    """What a block computes, its threads and its bytes of shared memory; None if none is small enough.

    With `filters`, shared memory has as many channels as fit, and their weights; without, one channel and no
    weights.
    """
    span = int((PIXELS - 1) * c.step_w + (c.taps_w - 1) * c.gap_w + 1)  # of the window under a strip
    if c.taps_w > MOST_TAPS or span > MOST_SPAN:
        return None
    strips = -(-c.columns // PIXELS)
    tiles_x = -(-strips // MOST_STRIPS)
    strips = -(-strips // tiles_x)
    pitch = (strips - 1) * PIXELS * c.step_w + -(-span // 4) * 4
    rows = min(c.rows, MOST_THREADS // strips)
    while rows:
        tiles_y = -(-c.rows // rows)
        rows = -(-c.rows // tiles_y)
        patch_rows = (rows - 1) * c.step_h + (taps_h - 1) * c.gap_h + 1
        of_channel = 4 * (patch_rows * pitch + taps_h * c.taps_w * filters)
        fitting = MOST_SHARED // of_channel
        depth = min(c.source_channels if filters else 1, fitting)
        if depth:
            tile = Tile(strips, rows, patch_rows, pitch, depth, tiles_x, tiles_y, 1)
            return tile, -(-strips * rows // 32) * 32, depth * of_channel
        rows //= 2
    return None


# --- gemm -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def gemm_plan(correlation: Correlation, math: int, element: str, activation: str, processors: int) -> Plan:
    """How a matrix product computes it."""
    c = correlation
    rows, columns = c.target_channels, c.images * c.rows * c.columns
    block = _block(rows, columns, c.groups, processors)
    made = _gemm_program(element, math, block, ACTIVATION=ACTIVATIONS.index(activation))
    grid = (-(-columns // block.columns), -(-rows // block.rows), c.groups)
    return Plan(made, "gemm", grid, block.threads, _gemm_shared(math, block))


@lru_cache(maxsize=1024)
def gemm_weight_gradient_plan(
    correlation: Correlation, math: int, element: str, processors: int, with_bias: bool
) -> tuple[Plan, int, int]:
    """How a matrix product computes the gradient of the weight; how many parts its sums have, and their length."""
    c = correlation
    rows, groups = c.target_channels, c.groups
    columns = c.source_channels * c.taps_h * c.taps_w + with_bias
    block = _block(rows, columns, groups, processors)
    tiles = -(-columns // block.columns), -(-rows // block.rows)
    positions, step = c.images * c.rows * c.columns, _terms(math)
    most = max(1, min(2 * processors // (tiles[0] * tiles[1] * groups), 65535 // groups))
    length = -(-positions // min(most, -(-positions // (8 * step))) // step) * step  # whole steps, at least 8
    splits = -(-positions // length)
    made = _gemm_program(element, math, block, WEIGHT_GRADIENT=1)
    shared = 16 * block.columns + _gemm_shared(math, block, weight_gradient=True)
    plan = Plan(made, "gemm_weight_gradient", (*tiles, groups * splits), block.threads, shared)
    return plan, splits, length


def _block(rows: int, columns: int, groups: int, processors: int) -> Block:
    """The largest block that leaves no processor idle, and no more than half of its own rows."""
    if rows <= FLAT.rows:
        return FLAT
    blocks = groups * -(-rows // LARGE.rows) * -(-columns // LARGE.columns)
    return LARGE if rows > MIDDLE.rows and blocks >= processors else MIDDLE


def _terms(math: int) -> int:
    """Terms of the sums in one step: `BK` of gemm.cu."""
    return 32 if math == HALF else 16


def _gemm_program(element: str, math: int, block: Block, **macros: int) -> Program:
    return program(
        "gemm.cu", ELEMENT=element, MATH=math, BM=block.rows, BN=block.columns, BK=_terms(math),
        WARPS_M=block.warps[0], WARPS_N=block.warps[1], **macros,
    )  # fmt: skip


def _gemm_shared(math: int, block: Block, weight_gradient: bool = False) -> int:
    """Bytes of shared memory for both factors: SIZE_A and SIZE_B of gemm.cu, in each of the buffers."""
    bk, gap_k, gap_n = _terms(math), 8 if math == HALF else 4, 4 if math == FMA else 8
    of_a = bk * (block.rows + 4) if math == FMA else block.rows * (bk + gap_k)
    along_k = weight_gradient and math != FMA
    of_b = block.columns * (bk + gap_k) if along_k else bk * (block.columns + gap_n)
    return (of_a + of_b) * (2 * 2 if math == HALF else 3 * 4)
