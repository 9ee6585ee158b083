"""How large the blocks of a matrix product are: candidates for a call, of which the autotuner takes the fastest.

Candidates are made smaller where the call is smaller than they are, and left out where their stages need more
shared memory than there is, or where a lane gathers more than its registers hold. What was measured is kept in
Triton's cache directory, by the kernel's source, the architecture, dtypes, candidates and key, so that a shape is
tuned once on a machine and not in every process. The key has sizes by their order of magnitude: another batch of
the same layer is not another problem.

Calls so small that any tile is as good as another are not tuned, and share one compiled variant of each kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
import triton

from convbench.plugins.backends.triton.availability import interpreted

SMALL = 2**21  # multiplications of a call that is not tuned
SHARED_MEMORY = 99 * 1024  # bytes of a block, where no device can be asked: the least of sm_80 and newer
KEY = (
    "size_class", "groups", "inner", "outer", "kernel_h", "kernel_w", "stride_h", "stride_w", "source_c",
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A block of the product: rows x columns of sums, and how much of the sum is done at one step.

    Attributes:
        folded: channels and taps are one axis; see `kernels/correlation.py`.
        even: steps have whole blocks of channels.
        warps: of 32 lanes.
        stages: how many steps' operands are on their way at once.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    folded: bool = False
    even: bool = False

    def shared_memory(self, itemsize: int) -> int:
        """Bytes that the operands of all stages take."""
        return self.stages * self.depth * (self.rows + self.columns) * itemsize

    @property
    def gathered(self) -> int:
        """Elements that a lane loads at each step, each with its address and, where folded, its mask."""
        return self.depth * (self.rows + self.columns) // (32 * self.warps)

    @property
    def sums(self) -> int:
        """Sums that a lane holds."""
        return self.rows * self.columns // (32 * self.warps)


@dataclass(frozen=True)
class Product:
    """The matrix product of a call: rows x columns, each a sum over depth; depth is channels x taps or positions.

    Attributes:
        rows: positions, or filters for the weight gradient.
        columns: channels that come out; for the weight gradient channels that go in, or with their taps.
        depth: channels that are summed over, or positions.
        taps: of the kernel.
        folds: which axis has the channels that taps can be folded into, "depth" or "columns".
        groups: how many such products there are.
    """

    rows: int
    columns: int
    depth: int
    taps: int
    folds: str
    groups: int

    @property
    def multiplications(self) -> int:
        return self.rows * self.columns * self.depth * self.taps * self.groups

    @property
    def channels(self) -> int:
        """Those of the source, in one group."""
        return self.depth if self.folds == "depth" else self.columns


# Tensor cores, 16 bits; wgmma wants at least 64 rows and 4 warps. With TF32 half the depth has the same bytes.
HALF: tuple[Tile, ...] = (
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 32, 4, 4),
    Tile(128, 256, 64, 8, 3),
    Tile(256, 64, 64, 8, 3),
    Tile(128, 64, 64, 4, 3),
    Tile(64, 128, 64, 4, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(128, 32, 64, 4, 3),
    Tile(64, 32, 64, 4, 3),
    Tile(128, 32, 32, 4, 4),
    Tile(256, 32, 32, 8, 3),
    Tile(64, 64, 32, 4, 4),
)
# float32 in full precision is multiplied outside of tensor cores, from registers.
FULL: tuple[Tile, ...] = (
    Tile(128, 64, 16, 8, 2),
    Tile(64, 64, 16, 4, 3),
    Tile(64, 64, 32, 8, 2),
    Tile(128, 32, 16, 4, 3),
    Tile(64, 32, 32, 4, 2),
    Tile(128, 16, 16, 4, 3),
    Tile(32, 32, 32, 4, 2),
)
UNTUNED = Tile(64, 32, 32, 4, 2)
# What a lane may gather and sum up at most: more spilled where layers of the suite `ops` were compiled for
# sm_80, sm_90 and sm_100. The weight gradient gathers on both sides; folded, each element has a mask of its own.
REGISTERS = {
    ("depth", False): (96, 128),
    ("depth", True): (64, 64),
    ("columns", False): (80, 64),
    ("columns", True): (48, 64),
}
INTERPRETED = {  # where a step costs milliseconds, and its elements next to nothing
    "depth": Tile(1024, 32, 64, 4, 1),
    "columns": Tile(32, 64, 1024, 4, 1),
}


def candidates(product: Product, dtype: torch.dtype, precision: str, shared_memory: int) -> tuple[Tile, ...]:
    """The tiles worth measuring for a call, the one without measuring where it is small; never none."""
    if product.multiplications <= SMALL:
        return (replace(UNTUNED, folded=product.channels < UNTUNED.depth),)
    if interpreted():
        return (_fitted(INTERPRETED[product.folds], product, product.channels < 16),)
    if dtype != torch.float32:
        tiles = HALF
    elif precision == "tf32":
        tiles = tuple(replace(tile, depth=tile.depth // 2) for tile in HALF)
    else:
        tiles = FULL
    choices = [folded for folded in (False, True) if _worth(product, folded)]
    fitted = [_fitted(tile, product, folded) for folded in choices for tile in tiles]
    fitting = [
        tile
        for tile in fitted
        if tile.shared_memory(dtype.itemsize) <= shared_memory
        and tile.gathered <= REGISTERS[product.folds, tile.folded][0]
        and tile.sums <= REGISTERS[product.folds, tile.folded][1]
    ]
    if not fitting:
        fitting = [replace(UNTUNED, folded=choices[0], stages=1)]
    return tuple(dict.fromkeys(fitting))


def _worth(product: Product, folded: bool) -> bool:
    """With few channels a block of them is mostly empty, with many the larger masks have nothing to gain."""
    if product.taps == 1:
        return not folded
    return product.channels < 64 if folded else product.channels >= 16


def _fitted(tile: Tile, product: Product, folded: bool) -> Tile:
    """The tile, no larger than the call needs it on any axis."""
    columns = product.columns * (product.taps if folded and product.folds == "columns" else 1)
    depth = product.depth * (product.taps if folded and product.folds == "depth" else 1)
    tile = replace(
        tile,
        rows=min(tile.rows, _blocks(product.rows)),
        columns=min(tile.columns, _blocks(columns)),
        depth=min(tile.depth, _blocks(depth)),
        folded=folded,
    )
    warps = tile.warps
    while warps > 2 and tile.rows * tile.columns < 256 * warps:  # 8 sums for a lane
        warps //= 2
    return replace(
        tile, warps=warps, even=product.folds == "depth" and not folded and product.depth % tile.depth == 0
    )


def _blocks(extent: int) -> int:
    """The power of two that holds it; tensor cores take no fewer than 16."""
    return max(16, 1 << (int(extent) - 1).bit_length())


@lru_cache(maxsize=4096)
def candidates_on(
    product: Product, dtype: torch.dtype, precision: str, device: torch.device
) -> tuple[Tile, ...]:
    """The candidates on a device."""
    return candidates(product, dtype, precision, _shared_memory(device))


@cache
def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda" or not torch.cuda.is_available():
        return SHARED_MEMORY
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


@cache
def autotuned(kernel: Any, tiles: tuple[Tile, ...], names: tuple[str, str, str]) -> Any:
    """The kernel with these tiles to choose from; `names` are its arguments for rows, columns and depth."""
    configs = [
        triton.Config(
            {
                **dict(zip(names, (tile.rows, tile.columns, tile.depth), strict=True)),
                "FOLDED": tile.folded,
                **({"EVEN": tile.even} if "EVEN" in kernel.arg_names else {}),
            },
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        for tile in tiles
    ]
    key = [name for name in KEY if name in kernel.arg_names]
    return triton.autotune(configs=configs, key=key, cache_results=True)(kernel)


def size_class(extent: int) -> int:
    """The order of magnitude of a size, to the power of two: sizes of one class share their tile.

    Where the size is a symbol of a compiler, the comparisons are what it keeps: a graph is for a class of sizes.
    """
    magnitude = 0
    while extent >= 2**magnitude:
        magnitude += 1
    return magnitude


def variant(kernel: Any, product: Product) -> Any:
    """The kernel as it is compiled for a call: for its very strides, or for any where the call is small."""
    small = product.multiplications <= SMALL and not interpreted()
    return _for_any(kernel) if small else kernel


@cache
def _for_any(kernel: Any) -> Any:
    arguments = [parameter.name for parameter in kernel.params if not parameter.is_constexpr]
    return triton.jit(kernel.fn, do_not_specialize=arguments)
