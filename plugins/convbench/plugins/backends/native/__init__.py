"""`native`: kernels of our own for the CPU, in C++ with the compiler's vector extension.

A convolution sums products over taps, and keeps a block of its output in registers meanwhile;
`core/correlation.hpp` draws it. The library is built when convbench is installed from source and comes with its
wheels (`build.py`), `library.py` calls it, and `convolution.py`, `pooling.py` and `network.py` make ops of
torch of it. `docs/native.md` has what it reaches, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from convbench.registry import Backend, hookimpl

OPS = (
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "conv2d_activation",
    "activation_max_pool2d",
    "activation_avg_pool2d",
    "conv2d_activation_max_pool2d",
    "conv2d_activation_avg_pool2d",
    "sequential",
)


def unavailable() -> str | None:
    """Why there are no kernels on this machine, in one line."""
    from convbench.plugins.backends.native import library

    return library.unavailable()


def load() -> Mapping[str, Any]:
    from convbench.plugins.backends.native.convolution import CONVOLUTIONS
    from convbench.plugins.backends.native.network import NETWORKS
    from convbench.plugins.backends.native.pooling import POOLING

    return {**CONVOLUTIONS, **POOLING, **NETWORKS}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="native",
        summary="our own kernels in C++: direct convolution, blocked for registers",
        load=load,
        devices=("cpu",),
        dtypes=("float32", "float64"),
        unavailable=unavailable,
        second_order=OPS,
    )
