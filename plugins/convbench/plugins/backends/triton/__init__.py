"""`triton`: convolution as a matrix product that gathers its left matrix, and pooling, in Triton.

`kernels/` runs on the device, `block_sizes.py` chooses block sizes and stores them, `convolution.py` and
`pooling.py` launch the kernels, and `torch_ops.py` registers them so that `torch.compile` sees the launches.
Under Triton's interpreter (`TRITON_INTERPRET=1`) the same kernels run on the CPU, slowly, and the backend is
available there. `docs/triton.md` draws how it computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from convbench.registry import Backend, hookimpl, no_cuda_device

OPS = (
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "conv2d_activation",
    "activation_max_pool2d",
    "activation_avg_pool2d",
)


def interpreted() -> bool:
    """Whether this process interprets kernels: `TRITON_INTERPRET=1`, as Triton reads it when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "").strip().lower() in ("1", "true", "on")


def unavailable() -> str | None:
    """Why there are no kernels on this machine, in one line."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if interpreted() else no_cuda_device()


def load() -> Mapping[str, Any]:
    from convbench.plugins.backends.triton.convolution import CONVOLUTIONS
    from convbench.plugins.backends.triton.pooling import POOLING

    return {**CONVOLUTIONS, **POOLING}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="triton",
        summary="matrix products that gather their patches, in Triton",
        load=load,
        devices=("cuda", "cpu") if interpreted() else ("cuda",),
        dtypes=("float32", "tf32", "bfloat16", "float16"),
        dtype_devices={"tf32": ("cuda",)},  # the interpreter has no tensor cores
        unavailable=unavailable,
        second_order=OPS,
    )
