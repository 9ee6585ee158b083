"""`auto`: for each call the fastest registered backend, found by timing them.

Before a call is computed for the first time, the backends that can compute it (`candidates.py`) are timed on
random data of its shapes (`tuner.py`, `timing.py`). Forward, input gradient and weight gradient are timed
separately where backends offer them as parts (`split_backward.py`). The fastest correct one is stored on disk
(`decisions.py`) under everything that could change the decision (`cache_key.py`). From then on a call costs a
dictionary look-up (`dispatch.py`). `docs/auto.md` has results, costs and limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, hookimpl

if TYPE_CHECKING:
    import click

# also those that fuse layers; a backend that has none of these computes the layers
OPS = (
    "conv2d", "max_pool2d", "avg_pool2d",
    "conv2d_activation", "activation_max_pool2d", "activation_avg_pool2d",
    "conv2d_activation_max_pool2d", "conv2d_activation_avg_pool2d", "sequential",
)  # fmt: skip
DTYPES = ("float32", "float64", "bfloat16", "float16")


def load() -> Mapping[str, Any]:
    from convbench.plugins.backends.auto.dispatch import dispatched

    return dispatched()


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    yield Backend(
        name="auto",
        summary="for each call the fastest of the other backends, found by timing them",
        load=load,
        devices=("cpu", "cuda"),
        dtypes=DTYPES,
        second_order=OPS,
    )


@hookimpl
def convbench_commands(group: click.Group) -> None:
    from convbench.plugins.backends.auto.cli import auto

    group.add_command(auto)
