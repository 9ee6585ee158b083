"""Which kernel a convolution and its gradients take, on which grid.

`direct.cu` where there are few channels, `gemm.cu` for the rest. The gradient of the input is made of convolutions
(`kernel_arguments.py`), which choose for themselves. Everything that was chosen without a GPU at hand stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.driver import Machine
from convbench.plugins.backends.cuda.kernel_arguments import Correlation, Shape, Tile, forward, input_gradient
from convbench.plugins.backends.cuda.programs import ELEMENTS, Program, program
from convbench.registry import Unsupported

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")  # in the order of correlation.cuh

# --- direct -----------------------------------------------------------------------------------------------------

PIXELS = 4  # of a strip
MOST_THREADS = 128
MOST_STRIPS = 8  # side by side in a block
MOST_SHARED = 48 * 1024  # bytes
MOST_FILTERS = 8  # of a thread: 8 x 4 sums in registers
MOST_SUMS = 56  # of a thread, for the gradient of the weight
MOST_TAPS, MOST_SPAN = 11, 36  # of a row of the kernel, and of the window under a strip

# --- gemm -------------------------------------------------------------------------------------------------------

FMA, TF32, HALF = 0, 1, 2


@dataclass(frozen=True)
class Block:
    """The part of the product that a block of threads computes, and how many warps share it."""

    rows: int
    columns: int
    warps: tuple[int, int]

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1]


FLAT, MIDDLE, LARGE = Block(32, 128, (1, 4)), Block(64, 64, (2, 2)), Block(128, 128, (2, 4))


def float32_on_tensor_cores() -> bool:
    """Whether float32 may be rounded to TF32 in convolutions; torch asks for it in this way."""
    convolutions: Any = torch.backends.cudnn  # a module that is a class, which type checkers do not see
    return bool(convolutions.conv.fp32_precision == "tf32")


@dataclass(frozen=True)
class Convolution:
    """The kernels of `conv2d`, on tensors that lie in memory in the order of their dimensions."""

    machine: Machine

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """(N, C, H, W), (O, C/groups, kh, kw), (O,) -> (N, O, H', W')."""
        return self.activated(input, weight, bias, shape, "none")

    def activated(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, activation: str
    ) -> Tensor:
        """The same with one of `ACTIVATIONS` applied to what comes out."""
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
        """(N, O, H', W'), (N, C, H, W) -> (O, C/groups, kh, kw) of the weight, and (O,) of the bias."""
        size = shape.filters, shape.channels // shape.groups, *shape.kernel
        of_bias = grad_output.new_empty(shape.filters)
        if not shape.images:
            return grad_output.new_zeros(size), of_bias.zero_()
        gradient, correlation = grad_output.new_empty(size), forward(shape)
        numbers = shape.filters * (gradient[0].numel() + 1)  # with the bias's
        if direct_weight_gradient_fits(correlation, math_of(input.dtype)):
            partial, kernel = (
                self._direct_weight_gradient(correlation, grad_output, input, numbers),
                "sum_rows",
            )
            parts, per_block = partial.shape[1], MOST_THREADS // 32
        else:
            partial = self._gemm_weight_gradient(correlation, grad_output, input, numbers, with_bias)
            kernel, parts, per_block = "sum_columns", partial.shape[0], MOST_THREADS
        sums = program("sums.cu", ELEMENT=element(input.dtype))
        arguments = (
            numbers,
            numbers // shape.filters,
            parts,
            partial,
            gradient,
            of_bias if with_bias else None,
        )
        grid = (-(-numbers // per_block), 1, 1)
        self.machine.launch(input.device, sums, kernel, grid, MOST_THREADS, 0, arguments)
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
        tensors = source, weight, bias, target
        math = math_of(source.dtype)
        if direct_fits(correlation, math):
            made, tile, grid, threads, shared = direct_plan(correlation, element(source.dtype), activation)
            self.machine.launch(
                source.device, made, "direct", grid, threads, shared, (correlation, tile, *tensors)
            )
            return
        columns = correlation.images * correlation.rows * correlation.columns
        rows, groups = correlation.target_channels, correlation.groups
        block = block_for(rows, columns, groups, self.machine.processors(source.device))
        grid = (-(-columns // block.columns), -(-rows // block.rows), groups)
        made = gemm_program(element(source.dtype), math, block, activation)
        shared = gemm_shared(math, block)
        self.machine.launch(source.device, made, "gemm", grid, block.threads, shared, (correlation, *tensors))

    def _direct_weight_gradient(
        self, correlation: Correlation, grad_output: Tensor, input: Tensor, numbers: int
    ) -> Tensor:
        """Partial sums, (numbers, blocks)."""
        refuse_huge(correlation)
        plan = direct_weight_gradient_plan(
            correlation, element(input.dtype), self.machine.processors(input.device)
        )
        made, tile, grid, threads, shared = plan
        partial = torch.empty((numbers, grid[0]), dtype=torch.float32, device=input.device)
        arguments = correlation, tile, input, grad_output, partial
        self.machine.launch(input.device, made, "direct_weight_gradient", grid, threads, shared, arguments)
        return partial

    def _gemm_weight_gradient(
        self, correlation: Correlation, grad_output: Tensor, input: Tensor, numbers: int, with_bias: bool
    ) -> Tensor:
        """Partial sums, (splits, numbers)."""
        refuse_huge(correlation)
        math = math_of(input.dtype)
        rows, groups = correlation.target_channels, correlation.groups
        columns = numbers // (rows * groups) - (not with_bias)
        processors = self.machine.processors(input.device)
        block = block_for(rows, columns, groups, processors)
        tiles = -(-columns // block.columns), -(-rows // block.rows)
        positions = correlation.images * correlation.rows * correlation.columns
        step = steps_of(math)
        most = max(1, min(2 * processors // (tiles[0] * tiles[1] * groups), 65535 // groups))
        length = (
            -(-positions // min(most, -(-positions // (8 * step))) // step) * step
        )  # whole steps, at least 8
        splits = -(-positions // length)
        partial = torch.empty((splits, numbers), dtype=torch.float32, device=input.device)
        made = gemm_program(element(input.dtype), math, block, weight_gradient=True)
        table = 16 * block.columns
        shared = table + gemm_shared(math, block, weight_gradient=True)
        arguments = correlation, splits, length, int(with_bias), input, grad_output, partial
        grid = (*tiles, groups * splits)
        self.machine.launch(
            input.device, made, "gemm_weight_gradient", grid, block.threads, shared, arguments
        )
        return partial


def element(dtype: torch.dtype) -> str:
    """What the kernels call it."""
    return ELEMENTS[str(dtype).removeprefix("torch.")]


def math_of(dtype: torch.dtype) -> int:
    """What multiplies: `MATH` of gemm.cu."""
    if dtype == torch.float32:
        return TF32 if float32_on_tensor_cores() else FMA
    return HALF


def refuse_huge(correlation: Correlation) -> None:
    """Places in one image, in the weight and among all positions are counted in 32 bits.

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


# --- direct: when, and how --------------------------------------------------------------------------------------

Plan = tuple[Program, Tile, tuple[int, int, int], int, int]  # the grid, threads, and bytes of shared memory


@lru_cache(maxsize=1024)
def direct_fits(correlation: Correlation, math: int) -> bool:
    """Whether the direct kernel takes it: few channels, and a row of taps that fits into registers."""
    c = correlation
    few = c.source_channels <= 16 if math == FMA else max(c.source_channels, c.target_channels) <= 8
    few = few or min(c.source_channels, c.target_channels) <= 4
    return few and _window_fits(c) and _tile(c, c.taps_h, _filters(c)) is not None


@lru_cache(maxsize=1024)
def direct_weight_gradient_fits(correlation: Correlation, math: int) -> bool:
    """Whether the direct kernel takes the gradient of its weight, with one channel of the source at a time."""
    c = correlation
    few = c.source_channels <= (8 if math == FMA else 4)
    return few and _window_fits(c) and _tile(c, _taps(c)[1], 0) is not None


@lru_cache(maxsize=1024)
def direct_plan(correlation: Correlation, element: str, activation: str = "none") -> Plan:
    """How the direct kernel computes it."""
    c, filters = correlation, _filters(correlation)
    found = _tile(c, c.taps_h, filters)
    assert found is not None  # `direct_fits` was asked
    tile, threads, shared = found
    grid = (tile.tiles_x * tile.tiles_y * c.images, c.groups * -(-c.target_channels // filters), 1)
    made = direct_program(element, filters, c.taps_w, c.step_w, c.gap_w, activation=activation)
    return made, tile, grid, threads, shared


@lru_cache(maxsize=1024)
def direct_weight_gradient_plan(correlation: Correlation, element: str, processors: int) -> Plan:
    """How it computes the gradient of the weight: enough chunks of images for all processors, and no more."""
    c = correlation
    filters, taps = _taps(c)
    found = _tile(c, taps, 0)
    assert found is not None  # `direct_weight_gradient_fits` was asked
    tile, threads, shared = found
    tiles = tile.tiles_x * tile.tiles_y
    others = c.groups * -(-c.target_channels // filters), c.source_channels * -(-c.taps_h // taps)
    chunks = max(1, min(c.images, 4 * processors // (tiles * others[0] * others[1])))
    tile.images = -(-c.images // chunks)
    grid = (tiles * -(-c.images // tile.images), *others)
    padded = -(-(filters * taps * c.taps_w + filters) // 32) * 32
    made = direct_program(element, filters, c.taps_w, c.step_w, c.gap_w, rows_of_taps=taps)
    return made, tile, grid, threads, max(shared, threads // 32 * padded * 4)


def direct_program(
    element: str,
    filters: int,
    taps: int,
    step: int,
    gap: int,
    *,
    activation: str = "none",
    rows_of_taps: int | None = None,
) -> Program:
    macros: dict[str, str | int] = {
        "ELEMENT": element,
        "FILTERS": filters,
        "TAPS": taps,
        "STEP": step,
        "GAP": gap,
    }
    if rows_of_taps is not None:
        macros["ROWS_OF_TAPS"] = rows_of_taps
    else:
        macros["ACTIVATION"] = ACTIVATIONS.index(activation)
    return program("direct.cu", **macros)


def _span(c: Correlation) -> int:
    return int((PIXELS - 1) * c.step_w + (c.taps_w - 1) * c.gap_w + 1)


def _window_fits(c: Correlation) -> bool:
    return bool(c.taps_w <= MOST_TAPS and _span(c) <= MOST_SPAN)


def _filters(c: Correlation) -> int:
    """Of a thread: a power of two, so that few programs serve many layers."""
    return min(MOST_FILTERS, 1 << (int(c.target_channels) - 1).bit_length())


def _taps(c: Correlation) -> tuple[int, int]:
    """Filters, and rows of taps, whose sums a thread keeps for the gradient of the weight."""
    for filters in (4, 2):
        if filters < 2 * c.target_channels and filters * c.taps_h * c.taps_w <= MOST_SUMS:
            return filters, c.taps_h
    filters = 1 if c.target_channels == 1 else 2
    return filters, max(1, min(c.taps_h, MOST_SUMS // (filters * c.taps_w)))


def _tile(c: Correlation, taps_h: int, filters: int) -> tuple[Tile, int, int] | None:
    """What a block computes, its threads and its bytes of shared memory; None where none is small enough.

    With `filters` as many channels as fit are there at once, and their weights; without, one, and no weights.
    """
    strips = -(-c.columns // PIXELS)
    tiles_x = -(-strips // MOST_STRIPS)
    strips = -(-strips // tiles_x)
    pitch = (strips - 1) * PIXELS * c.step_w + -(-_span(c) // 4) * 4
    rows = min(c.rows, MOST_THREADS // strips)
    while rows:
        tiles_y = -(-c.rows // rows)
        rows = -(-c.rows // tiles_y)
        patch_rows = (rows - 1) * c.step_h + (taps_h - 1) * c.gap_h + 1
        of_channel = 4 * (patch_rows * pitch + taps_h * c.taps_w * filters)
        depth = (
            min(c.source_channels, MOST_SHARED // of_channel) if filters else int(of_channel <= MOST_SHARED)
        )
        if depth:
            tile = Tile(strips, rows, patch_rows, pitch, depth, tiles_x, tiles_y, 1)
            return tile, -(-strips * rows // 32) * 32, depth * of_channel
        rows //= 2
    return None


# --- gemm: how --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def block_for(rows: int, columns: int, groups: int, processors: int) -> Block:
    """The largest block that leaves no processor idle, and no more than half of its own rows."""
    if rows <= FLAT.rows:
        return FLAT
    blocks = groups * -(-rows // LARGE.rows) * -(-columns // LARGE.columns)
    return LARGE if rows > MIDDLE.rows and blocks >= processors else MIDDLE


def steps_of(math: int) -> int:
    """Terms of the sums in one step: BK."""
    return 32 if math == HALF else 16


@lru_cache(maxsize=1024)
def gemm_program(
    element: str, math: int, block: Block, activation: str = "none", weight_gradient: bool = False
) -> Program:
    macros: dict[str, str | int] = {
        "ELEMENT": element, "MATH": math, "BM": block.rows, "BN": block.columns, "BK": steps_of(math),
        "WARPS_M": block.warps[0], "WARPS_N": block.warps[1],
    }  # fmt: skip
    if weight_gradient:
        macros["WEIGHT_GRADIENT"] = 1
    else:
        macros["ACTIVATION"] = ACTIVATIONS.index(activation)
    return program("gemm.cu", **macros)


def gemm_shared(math: int, block: Block, weight_gradient: bool = False) -> int:
    """Bytes of shared memory for both factors: SIZE_A and SIZE_B of gemm.cu, in each of the buffers."""
    bk, gap_k, gap_n = steps_of(math), 8 if math == HALF else 4, 4 if math == FMA else 8
    of_a = bk * (block.rows + 4) if math == FMA else block.rows * (bk + gap_k)
    along_k = weight_gradient and math != FMA
    of_b = block.columns * (bk + gap_k) if along_k else bk * (block.columns + gap_n)
    return (of_a + of_b) * (2 * 2 if math == HALF else 3 * 4)
