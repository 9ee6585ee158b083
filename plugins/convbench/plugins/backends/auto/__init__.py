"""`auto`: for each call the registered backend that is fastest at it, found by timing them.

Before a call is computed for the first time, the candidates that can do it (`candidates.py`) are timed on random
data of its shapes (`tuner.py`, `timing.py`), forward, input gradient and weight gradient apart where they have
parts (`split_backward.py`). The fastest one that is right there wins, and is remembered on disk (`cache.py`) under
everything that could change the decision (`cache_key.py`, `code_digest.py`). From then on a call costs a look
into a dictionary (`dispatch.py`). `docs/auto.md` has what it reaches, what it costs and what it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbench.registry import Backend, hookimpl

if TYPE_CHECKING:
    import click


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
        dtypes=("float32", "float64", "bfloat16", "float16"),
        second_order=("conv2d", "max_pool2d", "avg_pool2d"),
    )


@hookimpl
def convbench_commands(group: click.Group) -> None:
    from convbench.plugins.backends.auto.cli import auto

    group.add_command(auto)
