"""The job that asks backends whether they can run here. It imports no torch: `convbench list` waits for it."""

from __future__ import annotations

from convbench.registry import discover
from convbench.registry.discovery.plugins import describe
from convbench.suites.processes.protocol import Availability, AvailabilityJob, Done, Send


def availability(job: AvailabilityJob, send: Send, data: int) -> Done:
    """Ask each backend; an event for each one, so that a crash shows which one it was."""
    registry = discover(distributions=job.distributions)
    for name in job.backends:
        try:
            reason = registry.backend(name).unavailable()
        except Exception as error:  # noqa: BLE001 - a plugin's code: anything can come out of it
            reason = f"its check for availability failed: {describe(error)}"
        send(Availability(name, None if reason is None else str(reason)))
    return Done()
