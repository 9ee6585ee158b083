"""Wait while other programs keep the CPUs busy, because times that are measured meanwhile mean nothing.

Two threads that share their cores with other programs wait for each other at every step, and a small network may
be twenty times slower than it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from convbench.results.schema import Row
from convbench.suites.config.durations import span
from convbench.suites.machine.load import Observation, allowed_cpus, since, snapshot
from convbench.suites.runner.progress import Watcher

LOOK_SECONDS = 0.5


def look_now() -> Observation:
    """What the machine does while no process of the run works."""
    before = snapshot()
    time.sleep(LOOK_SECONDS)
    return since(before)


class Quiet:
    """Holds processes back while other programs are busy, until it has waited `limit` seconds in all.

    It looks before the first process, and again after each that was disturbed.
    """

    def __init__(
        self,
        limit: float,
        watcher: Watcher,
        *,
        look: Callable[[], Observation] | None = None,
        cpus: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._waited = limit, 0.0
        self._watcher, self._look, self._now = watcher, look or look_now, now
        self._cpus = cpus  # of the machine that is looked at
        self._suspicious = True

    def wait(self) -> None:
        """Return once no other program is busy, or there is no time left to wait."""
        if not self._suspicious or self._waited >= self._limit:
            return
        began, cpus, told = self._now(), self._cpus or len(allowed_cpus()), False
        while "busy" in (seen := self._look()).flags(cpus):
            left = self._limit - self._waited - (self._now() - began)
            if left <= 0:
                self._watcher.note(
                    f"waited {span(self._limit)} in all; other programs are still busy, and the run goes on: "
                    "processes that they disturb are flagged `busy`, and their times are not to be trusted"
                )
                break
            busy = f"{seen.other_load or 0.0:.1f} of {cpus} CPUs"
            if not told:
                self._watcher.note(
                    f"other programs keep {busy} busy: waiting for them, {span(self._limit)} at most"
                )
                told = True
            self._watcher.stage(f"waiting for other programs, which keep {busy} busy")
        else:
            if told:
                self._watcher.note(f"quiet after {span(self._now() - began)}")
            self._suspicious = False
        self._waited += self._now() - began
        self._watcher.stage("")

    def learn(self, row: Row) -> None:
        """A process has ended; where it was disturbed, look before the next one."""
        self._suspicious = "busy" in (row.flags or "").split()
