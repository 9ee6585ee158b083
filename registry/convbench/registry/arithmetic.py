"""The dtypes of the contract: what tensors of one hold, and how the factors of a product are rounded first.

A dtype is named after its arithmetic. All but one are torch's own. `tf32` has float32 tensors, whose products a
CUDA device's tensor cores form from 10 explicit bits of each factor, and add up in float32. torch leaves it to a
setting of the process whether float32 means one or the other, and by default lets cuDNN's convolutions use TF32,
so that both are set here, for float32 as well. Only torch's newer `fp32_precision` settings are used: torch
refuses to answer where they are mixed with the older `allow_tf32`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from convbench.registry.errors import UnknownName

if TYPE_CHECKING:
    import torch

FLOAT32_PRODUCTS = (("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"))  # where torch keeps such a setting


@dataclass(frozen=True)
class Arithmetic:
    """How numbers of a dtype are kept and multiplied.

    Attributes:
        name: as suites and `Backend.dtypes` have it.
        stored: the name of its tensors' torch dtype.
        factors: the most by which a factor may be off, relatively, once it enters a product; 0 where it enters
            as it is stored. Tensor cores cut the bits that they do not take, which is off by up to twice as
            much as rounding.
        capability: the least compute capability of a CUDA device that has it.
    """

    name: str
    stored: str
    factors: float = 0.0
    capability: tuple[int, int] = (0, 0)

    @property
    def tensors(self) -> torch.dtype:
        """The torch dtype of its tensors."""
        import torch

        dtype: torch.dtype = getattr(torch, self.stored)
        return dtype

    @property
    def float32_precision(self) -> str:
        """What torch calls the way in which float32 tensors are multiplied."""
        return "tf32" if self.factors else "ieee"

    def set(self) -> None:
        """Have this process multiply so from now on."""
        import torch

        for backend, op in FLOAT32_PRODUCTS:
            torch._C._set_fp32_precision_setter(backend, op, self.float32_precision)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Multiply so within, and as before afterwards."""
        import torch

        before = [torch._C._get_fp32_precision_getter(*where) for where in FLOAT32_PRODUCTS]
        self.set()
        try:
            yield
        finally:
            for where, precision in zip(FLOAT32_PRODUCTS, before, strict=True):
                torch._C._set_fp32_precision_setter(*where, precision)


ARITHMETICS: Mapping[str, Arithmetic] = MappingProxyType(
    {
        each.name: each
        for each in (
            Arithmetic("float32", "float32"),
            Arithmetic("tf32", "float32", factors=2.0**-10, capability=(8, 0)),
            Arithmetic("float64", "float64"),
            Arithmetic("bfloat16", "bfloat16", capability=(8, 0)),
            Arithmetic("float16", "float16"),
        )
    }
)
DTYPES = tuple(ARITHMETICS)


def arithmetic(dtype: str) -> Arithmetic:
    """What a dtype stands for.

    Raises:
        UnknownName: no dtype of that name.
    """
    if dtype not in ARITHMETICS:
        raise UnknownName("dtype", dtype, DTYPES)
    return ARITHMETICS[dtype]
