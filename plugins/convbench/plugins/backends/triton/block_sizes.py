"""Choose the block sizes of a matrix product: candidates for a call, which Triton's autotuner times.

Candidates are reduced to the size of the call. One is left out if its stages need more shared memory than the
device has, or if a lane gathers more than its registers hold. Triton keeps the times in its cache directory, by
the kernel's source, architecture, dtypes, candidates and key, so that a shape is tuned once on a machine. The key
has the order of magnitude of sizes: a layer with another batch size is the same problem.

Small calls, for which all tiles are about equally fast, are not tuned. They share one compiled variant of each
kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
import triton

from convbench.plugins.backends.triton import interpreted

SMALL = 2**21  # multiplications; smaller calls are not tuned
SHARED_MEMORY = 99 * 1024  # bytes of a block if there is no device: the least of sm_80 and newer
KEY = (
    "size_class", "groups", "inner", "outer", "kernel_h", "kernel_w", "stride_h", "stride_w", "source_c",
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A block of the product: rows x columns of sums, each over `depth` terms in one step.

    Attributes:
        folded: channels and taps are one axis; see `kernels/correlation.py`.
        even: all steps have whole blocks of channels.
        warps: of 32 lanes.
        stages: steps whose operands are loaded at the same time.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    folded: bool = False
    even: bool = False

    def shared_memory(self, itemsize: int) -> int:
        """Bytes of the operands of all stages."""
        return self.stages * self.depth * (self.rows + self.columns) * itemsize

    @property
    def gathered(self) -> int:
        """Elements that a lane loads in a step. Each has an address, and a mask if the axes are folded."""
        return self.depth * (self.rows + self.columns) // (32 * self.warps)

    @property
    def sums(self) -> int:
        """Sums that a lane holds."""
        return self.rows * self.columns // (32 * self.warps)


@dataclass(frozen=True)
class Product:
    """The matrix product of a call: rows x columns sums over channels and taps, or over positions.

    Attributes:
        rows: positions; for the weight gradient, filters.
        columns: channels of the output; for the weight gradient, channels of the input.
        depth: channels that are summed over; for the weight gradient, positions.
        taps: of the kernel.
        folds: the axis of the source's channels, which taps can be folded into: "depth" or "columns".
        groups: the number of such products.
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
        """Channels of the source in one group."""
        return self.depth if self.folds == "depth" else self.columns


# Tensor cores, 16 bits; wgmma needs at least 64 rows and 4 warps. TF32 has the same bytes at half the depth.
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
# Full float32 is multiplied without tensor cores, from registers.
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
# The most elements and sums of a lane. With more, kernels spilled when layers of the suite `ops` were compiled for
# sm_80, sm_90 and sm_100. The weight gradient gathers both operands; with folded axes each element has a mask.
REGISTERS = {
    ("depth", False): (96, 128),
    ("depth", True): (64, 64),
    ("columns", False): (80, 64),
    ("columns", True): (48, 64),
}
INTERPRETED = {  # a step takes milliseconds, however many elements it has
    "depth": Tile(1024, 32, 64, 4, 1),
    "columns": Tile(32, 64, 1024, 4, 1),
}


def candidates(product: Product, dtype: torch.dtype, precision: str, shared_memory: int) -> tuple[Tile, ...]:
    """The tiles to time for a call, at least one; exactly one if the call is small."""
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
    """Few channels leave a block mostly empty unless it is folded; with many, folding only costs masks."""
    if product.taps == 1:
        return not folded
    return product.channels < 64 if folded else product.channels >= 16


def _fitted(tile: Tile, product: Product, folded: bool) -> Tile:
    """The tile, reduced to the size of the call on each axis."""
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
    while warps > 2 and tile.rows * tile.columns < 256 * warps:  # less than 8 sums for a lane
        warps //= 2
    return replace(
        tile, warps=warps, even=product.folds == "depth" and not folded and product.depth % tile.depth == 0
    )


def _blocks(extent: int) -> int:
    """The next power of two; tensor cores need at least 16."""
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
    """The kernel, tuned over these tiles; `names` are its arguments for rows, columns and depth."""
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
    """The number of bits of a size; sizes of one class share their tile.

    A compiler that traces a symbolic size records these comparisons, so that its graph holds for the whole class.
    """
    magnitude = 0
    while extent >= 2**magnitude:
        magnitude += 1
    return magnitude


def variant(kernel: Any, product: Product) -> Any:
    """The kernel, specialised for the call's strides; for a small call, a variant for all strides."""
    small = product.multiplications <= SMALL and not interpreted()
    return _for_any(kernel) if small else kernel


@cache
def _for_any(kernel: Any) -> Any:
    arguments = [parameter.name for parameter in kernel.params if not parameter.is_constexpr]
    return triton.jit(kernel.fn, do_not_specialize=arguments)
