"""What was decided about a call, by whose times, and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

WHOLE, FINAL = "whole", "final"
FORWARD, OF_INPUT, OF_WEIGHT = "forward", "input gradient", "weight gradient"
PARTS = (FORWARD, OF_INPUT, OF_WEIGHT)


@dataclass(frozen=True)
class Decision:
    """Who computes a call.

    Attributes:
        winner: the candidate by what it does: `whole`, or each of the parts that are needed.
        seconds: what this was decided by, lower quartiles over rounds, by contest and contestant.
        rounds: how many there were in the last contest.
        left_out: why candidates did not take part, by name.
        rule: why nothing was timed, where nothing was.
        steady: rounds took alike; if not, others were at work, and this process alone goes by it.
    """

    winner: Mapping[str, str]
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rounds: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    rule: str = ""
    steady: bool = True

    def __str__(self) -> str:
        return self.winner.get(WHOLE) or "/".join(self.winner.get(part, "-") for part in PARTS)

    @property
    def last(self) -> Mapping[str, float]:
        """The times of the contest that decided, the fastest first."""
        contest = self.seconds.get(FINAL) or self.seconds.get(WHOLE) or {}
        return dict(sorted(contest.items(), key=lambda each: each[1]))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def whole(name: str, **rest: Any) -> Decision:
    """All of a call is one candidate's."""
    return Decision({WHOLE: name}, **rest)


def from_json(record: Any) -> Decision:
    """What `as_json` returned.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is something else.
    """
    decision = Decision(
        {str(part): str(name) for part, name in record["winner"].items()},
        {
            str(contest): {str(name): float(seconds) for name, seconds in times.items()}
            for contest, times in record["seconds"].items()
        },
        int(record["rounds"]),
        {str(name): str(why) for name, why in record["left_out"].items()},
        str(record["rule"]),
    )
    if not decision.winner or not set(decision.winner) <= {WHOLE, *PARTS}:
        raise ValueError(f"no winner in {record['winner']!r}")
    if not all(math.isfinite(s) and s >= 0 for times in decision.seconds.values() for s in times.values()):
        raise ValueError("a time that is none")
    return decision
