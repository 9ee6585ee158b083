"""What share of a network's ops the backend computed itself, and whose gradients it has, as columns of a row."""

from __future__ import annotations

from typing import Any

from torch import nn

from convbench.registry import Backend
from convbench.registry.authoring.derived_backward import backward_is_derived
from convbench.registry.ops.contract import OPS
from convbench.registry.routing.dispatch import Routed


def claims(backend: Backend) -> dict[str, Any]:
    """Which ops the backend implements, and which of their gradients were derived from the forward."""
    derived = [name for name, op in backend.ops.items() if backward_is_derived(op)]
    return {
        "claimed": ", ".join(name for name in OPS if name in backend.ops),
        "derived_backward": ", ".join(derived) or None,
    }


def shares(model: nn.Module) -> dict[str, Any]:
    """What the backend served in every pass since counting began; nothing for a model that is not counted.

    Calls are those of one pass. Where passes were not alike, because a backend refused what it had taken
    before, `served` has the calls of all of them, and `served_calls` the mean, rounded down.
    """
    if not isinstance(model, Routed) or not model.passes:
        return {}
    passes = model.passes
    tallies = {
        name: (tally.served_calls, tally.calls) for name, tally in model.tallies.items() if tally.calls
    }
    if all(count % passes == 0 for counts in tallies.values() for count in counts):
        tallies = {name: (served // passes, calls // passes) for name, (served, calls) in tallies.items()}
    return {
        "served_calls": model.served_calls // passes,
        "served_flops_fraction": model.served_flops_fraction,
        "served": ", ".join(f"{name} {served}/{calls}" for name, (served, calls) in tallies.items()),
        "served_flops": model.served_flops,
    }
