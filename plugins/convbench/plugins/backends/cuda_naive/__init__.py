"""`cuda_naive`: the formula on a GPU, one thread for each number of the output, as `loops` computes it on the CPU.

`naive.cu` is one page, to be read before the kernels of `cuda`. That package does everything else for it:
compiling, launching, and pooling, which is one thread for each output there as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from convbench.plugins.backends.cuda import unavailable
from convbench.registry import Backend, hookimpl

DTYPES = ("float32", "float64", "bfloat16", "float16")


@cache  # torch takes an op's definition once in a process, and records are made anew by every discovery
def load() -> Mapping[str, Any]:
    from convbench.plugins.backends.cuda.driver import Gpu
    from convbench.plugins.backends.cuda.pooling import Pooling
    from convbench.plugins.backends.cuda.torch_ops import operations
    from convbench.plugins.backends.cuda_naive.convolution import Convolution

    gpu = Gpu()
    return operations("convbench_cuda_naive", "cuda", DTYPES, Convolution(gpu), Pooling(gpu, fixed=False))


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="cuda_naive",
        summary="the formula in CUDA C++: one thread per output",
        load=load,
        devices=("cuda",),
        dtypes=DTYPES,
        unavailable=unavailable,
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )
