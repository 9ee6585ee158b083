"""Four backends of known speed, for the calibration of `convbench compare`: two equals, and two made slower.

Each is torch's own convolution. After the convolution of a step, the slowed ones wait, busily, for a share of
what the step before took without its wait, so that their steps take longer by that share whatever else goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from convbench.registry import Backend, hookimpl

SLOWED = {"equal-a": 0.0, "equal-b": 0.0, "slower-5": 0.05, "slower-10": 0.10}  # backend: share of a step
FIRST_CHANNELS = (1, 6)  # of the inputs of the layers that are timed
LONGEST_SECONDS = 0.5  # a gap between two steps that is longer is no step


@dataclass
class Convolution:
    """torch's, with a wait; it knows when its last wait ended."""

    share: float
    conv2d: Callable[..., Any]
    ended: float = field(default_factory=time.perf_counter)

    def __call__(self, input: Any, *arguments: Any, **options: Any) -> Any:
        output = self.conv2d(input, *arguments, **options)
        if input.shape[1] in FIRST_CHANNELS:
            now = time.perf_counter()
            seconds = now - self.ended
            until = now + self.share * seconds * (seconds < LONGEST_SECONDS)
            while time.perf_counter() < until:
                pass
            self.ended = time.perf_counter()
        return output


def load(share: float) -> Mapping[str, Any]:
    import torch.nn.functional as F

    return {"conv2d": Convolution(share, F.conv2d)}


@hookimpl
def convbench_backends() -> Iterable[Backend]:
    for name, share in SLOWED.items():
        yield Backend(name, f"torch's, each step {share:.0%} longer", load=partial(load, share))
