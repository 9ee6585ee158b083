"""`torch`: what PyTorch itself does, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from convbench.registry import Backend, hookimpl


def load() -> Mapping[str, Any]:
    import torch.nn.functional as F

    return {"conv2d": F.conv2d, "max_pool2d": F.max_pool2d, "avg_pool2d": F.avg_pool2d}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="torch",
        summary="PyTorch's own kernels (oneDNN on the CPU, cuDNN on CUDA)",
        load=load,
        devices=("cpu", "cuda"),
        dtypes=("float32", "tf32", "float64", "bfloat16", "float16"),
        dtype_devices={"tf32": ("cuda",)},
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )
