"""What verification found: an outcome for each check, and a report of all of them.

Importing this module imports nothing heavy, so that the command line can show its defaults.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Literal, get_args

from convbench.registry.notebook import Displayed
from convbench.registry.records import Accuracy

if TYPE_CHECKING:
    import pandas as pd

GENERATED = 25  # cases of each op and dtype, beside the curated ones

# What a step of a verification is about, which its key begins with: a case; a smaller one in place of it; the case
# without the library that has a known fault; the case on torch's own op; the case again, with the known fault that
# explains its outcome.
CASE, SMALLER, SPARED, TORCHS, EXPLAINED = "case", "smaller", "spared", "torch's", "explained"

State = Literal["passed", "failed", "crashed", "unsupported"]
Kind = Literal["case", "refusal", "compile", "opcheck"]


@dataclass(frozen=True)
class Outcome:
    """The result of one check.

    Attributes:
        op: that was called.
        case: the call, or what else was tried.
        state: `unsupported` where the backend declares that it does not implement the call.
        message: what was wrong, or why it is unsupported.
        cause: of a failure, the mistake in the backend and what to do, where it is known; the same for every case
            that fails for this reason.
        error: the largest absolute error of outputs and gradients, in units of the reference's largest value.
        memory: it crashed because memory ran out.
        ended_process: the process that ran it died, or hung until it was killed.
        known_fault: of a failure, the fault of somebody else's code that explains it (`known_faults`); of a pass
            of torch's own op, the fault that should have made it fail.
        kind: an answer to a `case`; a `refusal` of what torch refuses; `compile`, the op under `torch.compile`;
            `opcheck`, what it registered with torch.
        reproduction: Python that shows a failure again.
        shrunk_from: the case that failed first, where this one is the smallest that fails as it does.
    """

    op: str
    case: str
    dtype: str
    device: str
    state: State
    message: str = ""
    error: float = 0.0
    memory: bool = False
    kind: Kind = "case"
    reproduction: str = ""
    shrunk_from: str = ""
    ended_process: bool = False
    known_fault: str = ""
    cause: str = ""

    @property
    def text(self) -> str:
        """Its cause, where it is known, and its message."""
        if self.message in self.cause:
            return self.cause
        return f"{self.cause}: {self.message}" if self.cause else self.message

    @property
    def is_failure(self) -> bool:
        """Whether it failed or crashed."""
        return self.state in ("failed", "crashed")

    def fails_as(self, other: Outcome) -> bool:
        """Whether both fail in the same way, for the same reason as far as that is known."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("state", "ended_process", "known_fault", "cause")
        )


def grouped(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Outcomes of one op that have the same cause, or the same message but for its numbers, together.

    The first of a group is the smallest case where one was looked for.
    """
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        reason = re.sub(r"[-+]?(\d[\d.]*(e[-+]?\d+)?|\binf\b|\bnan\b)", "#", outcome.cause or outcome.message)
        reason = re.sub(r"\[[#, ]*\]", "[#]", reason)
        kind = "" if outcome.cause else outcome.kind
        reason = (
            "" if outcome.kind == "refusal" and outcome.state == "failed" else reason
        )  # torch's words differ
        groups.setdefault((outcome.op, kind, outcome.state, outcome.known_fault, reason), []).append(outcome)
    return [sorted(group, key=lambda outcome: not outcome.shrunk_from) for group in groups.values()]


def step_kind(key: str) -> str:
    """The kind of a step, from its key."""
    return key.partition(" ")[0]


@dataclass(frozen=True, repr=False)
class Report(Displayed):
    """Every outcome of one backend.

    `accuracy` is what it declares of ops that are not direct sums; `derived` are the ops whose backward was made
    by `derived_backward`.
    """

    backend: str
    outcomes: tuple[Outcome, ...]
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict, hash=False)
    derived: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Some case was answered rightly, and known faults of other people's code explain all that was not.

        What is declared unsupported counts as neither, and to refuse what torch refuses is no answer.
        """
        answered = any(outcome.kind == "case" and outcome.state == "passed" for outcome in self.outcomes)
        return answered and not self.unexplained

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What failed or crashed, for whatever reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_failure)

    @property
    def unexplained(self) -> tuple[Outcome, ...]:
        """The failures that no known fault explains."""
        return tuple(outcome for outcome in self.failures if not outcome.known_fault)

    @property
    def known_faults(self) -> Mapping[str, int]:
        """How many failures each known fault explains."""
        return Counter(outcome.known_fault for outcome in self.failures if outcome.known_fault)

    @property
    def faults_not_shown(self) -> Mapping[str, int]:
        """Known faults that no case of torch's own op ran into, and how many should have."""
        expected = Counter(outcome.known_fault for outcome in self.outcomes if outcome.known_fault)
        return {fault: number for fault, number in expected.items() if fault not in self.known_faults}

    @property
    def compiles(self) -> State | None:
        """What came of `torch.compile`, the worst over the ops; None where it was not tried."""
        states = {outcome.state for outcome in self.outcomes if outcome.kind == "compile"}
        order: tuple[State, ...] = ("crashed", "failed", "passed", "unsupported")
        return next((state for state in order if state in states), None)

    @property
    def max_error(self) -> float:
        """The largest error of the cases that passed."""
        return max(
            (outcome.error for outcome in self.outcomes if outcome.state == "passed"), default=math.nan
        )

    def count(self, state: State) -> int:
        """How many outcomes have this state."""
        return sum(outcome.state == state for outcome in self.outcomes)

    def __repr__(self) -> str:
        counts = [f"{self.count(state)} {state}" for state in get_args(State) if self.count(state)]
        verdict = "passed" if self.passed else "did not pass" if self.unexplained else "answered no case"
        return f"{self.backend} {verdict}: {', '.join(counts) or 'no case'}"

    def table(self) -> pd.DataFrame:
        """A row for each outcome, failures first."""
        import pandas as pd

        ordered = sorted(self.outcomes, key=lambda outcome: not outcome.is_failure)
        return pd.DataFrame(map(asdict, ordered), columns=[field.name for field in fields(Outcome)])
