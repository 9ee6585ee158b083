"""The steps of a verification in a worker that may die of any of them.

Before a step the worker tells which one it is, and afterwards what came of it. So the parent knows which step
ended the process; it starts another worker and tells it all that is known, and that one goes on from there.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from convbench.registry.conformance import Step
from convbench.registry.outcomes import Outcome

IN_A_ROW = 10  # cases of an op and dtype that end their processes; then its others are not tried
Send = Callable[[dict[str, Any]], None]


class Attempts:
    """Takes steps that are not known yet.

    Args:
        send: tells the parent.
        known: the outcomes of steps that other workers took, as `send` told them, in their order.
        seconds: after which a step is taken to hang, and its process ended; None where somebody else watches.
    """

    def __init__(self, send: Send, known: Iterable[Mapping[str, Any]], seconds: float | None) -> None:
        self._send, self._seconds = send, seconds
        self._known: dict[str, list[Outcome]] = {}
        self._ends: dict[tuple[str, str], int] = {}  # by op and dtype, in a row
        for step in known:
            self._keep(step["key"], [Outcome(**outcome) for outcome in step["outcomes"]])

    def __call__(self, key: str, ended: Outcome, step: Step) -> list[Outcome]:
        if key in self._known:
            return self._known[key]
        if key.startswith("case ") and self._ends.get((ended.op, ended.dtype), 0) >= IN_A_ROW:
            message = f"not tried: {IN_A_ROW} cases of {ended.op} in a row ended their processes"
            return [
                Outcome(ended.op, ended.case, ended.dtype, ended.device, "crashed", message, kind=ended.kind)
            ]
        self._send({"event": "trying", "key": key, "ended": vars(ended)})
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True)  # whoever holds Python's lock
        try:
            outcomes = step()
        except SystemExit as leaving:
            outcomes = [replace(ended, message=f"it called sys.exit({leaving.code!r})", ended_process=False)]
        finally:
            faulthandler.cancel_dump_traceback_later()
        self._keep(key, outcomes)
        self._send({"event": "tried", "key": key, "outcomes": [vars(outcome) for outcome in outcomes]})
        return outcomes

    def _keep(self, key: str, outcomes: list[Outcome]) -> None:
        self._known[key] = outcomes
        if key.startswith("case ") and outcomes[0].state != "unsupported":
            place = outcomes[0].op, outcomes[0].dtype
            self._ends[place] = self._ends.get(place, 0) + 1 if outcomes[0].ended_process else 0
