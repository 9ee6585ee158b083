"""`cuda`: kernels of our own for NVIDIA's GPUs, in CUDA C++ that is compiled where it runs.

The kernels are in `kernels/`: `direct.cu` for few channels, `gemm.cu` on tensor cores for the rest, `pooling.cu`.
`compiler.py` compiles them and keeps the result on disk, `driver.py` launches them, `launch_config.py` and
`pooling.py` choose kernels and grids, and `torch_ops.py` registers ops of torch. `docs/cuda.md` has the drawings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from convbench.plugins.backends.cuda import compiler
from convbench.registry import Backend, hookimpl, no_cuda_device

DTYPES = ("float32", "bfloat16", "float16")  # of tensors; float32 ones are TF32 where torch's setting says so


def unavailable() -> str | None:
    """Why it cannot run here, in one line; no torch is imported to find out."""
    return no_cuda_device() or compiler.unavailable()


@cache  # torch takes an op's definition once in a process, and records are made anew by every discovery
def load() -> Mapping[str, Any]:
    from convbench.plugins.backends.cuda.driver import Gpu
    from convbench.plugins.backends.cuda.launch_config import Convolution
    from convbench.plugins.backends.cuda.pooling import Pooling
    from convbench.plugins.backends.cuda.torch_ops import operations

    gpu = Gpu()
    return operations("convbench_cuda", "cuda", DTYPES, Convolution(gpu), Pooling(gpu, fixed=True))


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="cuda",
        summary="our own kernels in CUDA C++: direct for few channels, tensor cores for the rest",
        load=load,
        devices=("cuda",),
        dtypes=("float32", "tf32", "bfloat16", "float16"),
        unavailable=unavailable,
        second_order=("conv2d", "conv2d_activation", "max_pool2d", "avg_pool2d"),
    )
