"""The dtypes of the contract: what tensors of one hold, and how the factors of a product are rounded first.

A dtype is named after its arithmetic. All but one are torch's own. `tf32` has float32 tensors, whose products a
CUDA device's tensor cores form from 10 explicit bits of each factor, and add up in float32. torch leaves it to a
setting of the process whether float32 means one or the other, and by default lets cuDNN's convolutions use TF32,
so that both are set here, for float32 as well. Its newer `fp32_precision` settings decide. The older `allow_tf32`
are brought into line: torch raises when one of those is read and says something else, and its compiler, its own
`torch.backends.cudnn.flags` and other people's code do read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        factor_error: the largest relative error of a factor when it enters a product; 0 where it enters as it is
            stored. Tensor cores cut off the bits that they do not take, an error up to twice that of rounding.
        capability: the least compute capability of a CUDA device that has it.
    """

    name: str
    stored: str
    factor_error: float = 0.0
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
        return "tf32" if self.factor_error else "ieee"

    def set(self) -> None:
        """Have this process multiply so from now on."""
        _multiply((self.float32_precision,) * len(FLOAT32_PRODUCTS))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Multiply so within, and as before afterwards."""
        import torch

        before = [torch._C._get_fp32_precision_getter(*where) for where in FLOAT32_PRODUCTS]
        self.set()
        try:
            yield
        finally:
            _multiply(before)


def _multiply(precisions: Sequence[str]) -> None:
    """Set how float32 is multiplied, one word for each of `FLOAT32_PRODUCTS`."""
    import torch

    matmul, conv, _ = precisions
    torch._C._set_cublas_allow_tf32(matmul == "tf32")
    torch._C._set_cudnn_allow_tf32(conv == "tf32")
    for where, precision in zip(FLOAT32_PRODUCTS, precisions, strict=True):  # the last word
        torch._C._set_fp32_precision_setter(*where, precision)


ARITHMETICS: Mapping[str, Arithmetic] = MappingProxyType(
    {
        each.name: each
        for each in (
            Arithmetic("float32", "float32"),
            Arithmetic("tf32", "float32", factor_error=2.0**-10, capability=(8, 0)),
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
