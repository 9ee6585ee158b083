"""Choose the backend of a call: time the candidates, and take the fastest one that is correct.

Candidates run a corner of the call first, then one image, an eighth of the batch, and all of it; a candidate
that is far slower than the fastest is dropped. The others are compared, forward and backward together, and
separately for each part of a convolution. At last the best combination of parts is compared with the best whole
ones. The winner is checked against the float64 reference on this very call; if it fails, the next one is
checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convbench.plugins.backends.auto.candidates import APART, BASELINE, Candidate
from convbench.plugins.backends.auto.decisions import (
    FINAL,
    FORWARD,
    OF_INPUT,
    OF_WEIGHT,
    WHOLE,
    Decision,
)
from convbench.plugins.backends.auto.signature import Call
from convbench.plugins.backends.auto.split_backward import Options, SplitConvolution
from convbench.plugins.backends.auto.timing import Clock, clock, compare, quartile, steady
from convbench.registry import Unsupported
from convbench.registry.authoring.conv_parts import TORCHS, Parts
from convbench.registry.conformance.verify import check_with
from convbench.registry.discovery.plugins import describe
from convbench.registry.integrity.global_state import global_state_kept, memory_filled
from convbench.registry.integrity.monkeypatch_guard import IntegrityError

SECONDS = 0.25  # of each comparison
EVERY = 2**30  # more than any size
CORNERS = (4, 8), (16, 8), (64, 8), (EVERY, 8), (EVERY, 32), (EVERY, EVERY)  # channels, pixels each way
MOST_RATIO = 3.0  # times the fastest: a slower candidate is dropped
NOTICEABLE = 0.02  # seconds: a candidate that takes more for a part of the call has to be fast for its share
TRIES, LONG = 6, 0.1  # calls of a candidate before it is dropped, and seconds in all
MARGIN = 0.95  # of the baseline's time: a winner is faster than that, for less may vanish among other layers
GAIN = 0.97  # of the best single backend's time: a combination of parts is faster than that
FEW = 8  # an eighth of the batch is tried before all of it
Implementation = Callable[..., Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Field:
    """The candidates that still take part, and why the others were dropped."""

    left: dict[str, Candidate]
    left_out: dict[str, str]


class Trial:
    """A call on random data, for any backend to run any number of times."""

    def __init__(self, call: Call, seed: int) -> None:
        self.call = call
        self.arguments = call.arguments(seed)
        self.leaves = [self.arguments[name] for name in call.needs]
        self.plain = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in self.arguments.items()
        }
        with torch.no_grad():
            output = call.record.reference(**self.plain)
        self.size = output.shape
        self.grad_output = torch.randn_like(output)  # with the strides of the output

    def whole(self, op: Implementation) -> Callable[[], Any]:
        """A forward pass, and a backward pass where any gradient is needed; returns the output first."""
        if not self.leaves:
            return self.forward(op)

        def both() -> Any:
            output = op(*self.arguments.values())
            return output, torch.autograd.grad(output, self.leaves, self.grad_output)

        return both

    def forward(self, op: Implementation) -> Callable[[], Any]:
        """A forward pass without gradients."""

        def only_forward() -> Any:
            with torch.no_grad():
                return (op(*self.plain.values()),)

        return only_forward

    def backward(self, parts: Parts, options: Options, *needs: bool) -> Callable[[], Any]:
        """Gradients of a convolution, from a random one of its output."""
        wanted = (needs[0], needs[1], needs[2])
        grad_output, input, weight = self.grad_output, self.plain["input"], self.plain["weight"]

        def gradients() -> Any:
            with torch.no_grad():
                return parts.backward(grad_output, input, weight, *options, wanted)

        return gradients


def _unsaid(_: str) -> None:
    """Report nothing."""


def choose(
    call: Call,
    candidates: Mapping[str, Candidate],
    seed: int = 0,
    seconds: float = SECONDS,
    say: Say = _unsaid,
) -> Decision:
    """Decide one call among candidates that declare support for it, the baseline included.

    This takes `seconds` for each of at most five comparisons, and the time of a verification; `say` is called with
    each step.
    """
    with _as_in_training(call.device):
        trial, timed = Trial(call, seed), clock(_waiting(call))
        field = _try_out(trial, candidates, timed, seed, say)
        decision, ranked = _compare(trial, field, timed, seconds, seed, say)
        del trial
        for winner in ranked:
            say(f"verifying {Decision(winner)}")
            wrong = None if winner == {WHOLE: BASELINE} else _verdict(call, winner, candidates, seed)
            if wrong is None:
                return replace(decision, winner=winner, left_out=field.left_out)
            field.left_out[str(Decision(winner))] = wrong
    raise AssertionError("the baseline is in every field")


def implementation(
    call: Call, winner: Mapping[str, str], candidates: Mapping[str, Candidate]
) -> Implementation:
    """The implementation of a decision.

    Raises:
        KeyError: a winner is not among the candidates.
    """
    op = call.op
    if WHOLE in winner:
        return candidates[winner[WHOLE]].op(op)
    options = call.pairs
    assert options is not None  # only such calls are split
    forward = candidates[winner[FORWARD]]
    parts = forward.parts(op)
    of_weight = _parts(candidates, op, winner.get(OF_WEIGHT) or winner[OF_INPUT])
    of_input = _parts(candidates, op, winner.get(OF_INPUT) or winner[OF_WEIGHT])
    return SplitConvolution(parts.forward if parts else forward.op(op), of_input, of_weight, options)


def _parts(candidates: Mapping[str, Candidate], op: str, name: str) -> Parts:
    return candidates[name].parts(op) or TORCHS


# --- trial ------------------------------------------------------------------------------------------------------


def _try_out(trial: Trial, candidates: Mapping[str, Candidate], timed: Clock, seed: int, say: Say) -> Field:
    """Run every candidate, the baseline first, on larger and larger parts of the call.

    Layers apart run all of it at once: their own backends are chosen for it, and none for its parts.
    """
    field = Field({}, {})
    call, best = trial.call, math.inf
    stages = [*_corners(call, seed), (trial, 1.0)]
    for name, candidate in candidates.items():
        say(f"trying {name}")
        try:
            with global_state_kept():
                for part, share in stages if field.left and name != APART else stages[-1:]:
                    try:
                        seconds = _first_seconds(part, candidate.op(call.op), timed, MOST_RATIO * best)
                    except Unsupported:
                        if part is trial:
                            raise
                        continue  # it may take all of the call nevertheless
                    if seconds > MOST_RATIO * best * (1.0 if seconds < NOTICEABLE else share):
                        raise _TooSlow(f"{seconds:.3g} s for {share:.3g} of the call, too slow")
            best = min(best, seconds)
            field.left[name] = candidate
        except _TooSlow as slow:
            field.left_out[name] = str(slow)
        except Unsupported as refusal:
            field.left_out[name] = f"unsupported: {refusal}"
        except (Exception, IntegrityError) as error:  # a plugin's code may raise anything
            if name == BASELINE:
                raise  # the call itself is invalid
            field.left_out[name] = describe(error)
    return field


class _TooSlow(Exception):
    pass


def _corners(call: Call, seed: int) -> list[tuple[Trial, float]]:
    """Small parts of the call with their shares of its work, the smallest first."""
    all_of_it, _ = call.work
    corners: list[tuple[Trial, float]] = []
    parts = [call.cropped(*corner) for corner in CORNERS]
    if call.batch >= 2 * FEW:
        parts.append(call.on(call.batch // FEW))
    for part in parts:
        try:
            share = part.work[0] / all_of_it
        except Exception:  # noqa: BLE001 - the kernel is larger than the corner; torch has no type for that
            continue
        if (corners[-1][1] if corners else 0.0) < share < 1.0:
            corners.append((Trial(part, seed), share))
    return corners


def _first_seconds(trial: Trial, op: Implementation, timed: Clock, enough: float) -> float:
    """The fastest of a few calls after the first one, which compiles and allocates.

    Two calls are made if one takes less than `enough` seconds, otherwise up to `TRIES`: another program may delay
    some of them.
    """
    run = trial.whole(op)
    output = run()[0]
    if not isinstance(output, Tensor) or output.shape != trial.size:
        raise ValueError("the output has the wrong shape")
    fastest, spent = math.inf, 0.0
    for times in range(1, TRIES + 1):
        seconds = timed(run)
        fastest, spent = min(fastest, seconds), spent + seconds
        if spent > LONG or (times > 1 and fastest < enough):
            break
    return fastest


# --- comparing --------------------------------------------------------------------------------------------------

Comparison = Callable[[str, dict[str, Callable[[], Any]]], list[str]]


def _compare(
    trial: Trial, field: Field, timed: Clock, seconds: float, seed: int, say: Say
) -> tuple[Decision, list[dict[str, str]]]:
    """Make all comparisons of a call; returns the decision, and all possible winners, the best first."""
    call = trial.call
    seconds_of: dict[str, dict[str, float]] = {}
    rounds: dict[str, int] = {}
    unsteady: set[str] = set()

    def compared(comparison: str, runners: dict[str, Callable[[], Any]]) -> list[str]:
        say(f"timing {len(runners)} backends, {comparison}")
        for name, run in list(runners.items()):
            try:
                run()
            except Exception as error:  # a plugin's code; its parts are called here for the first time
                if name == BASELINE:
                    raise
                del runners[name]
                field.left_out[f"{name} ({comparison})"] = describe(error)
        times = compare(runners, timed, seconds, seed)
        rounds[comparison] = max(map(len, times.values()))
        seconds_of[comparison] = {name: quartile(each) for name, each in times.items()}
        unsteady.update(comparison for each in times.values() if not steady(each))
        return sorted(runners, key=lambda name: seconds_of[comparison][name])

    ops = {name: candidate.op(call.op) for name, candidate in field.left.items()}
    order = compared(WHOLE, {name: trial.whole(op) for name, op in ops.items()})
    ranked = [{WHOLE: name} for name in order]
    combination = _best_parts(trial, field.left, compared) if call.needs else None
    if combination is not None:
        combined = str(Decision(combination))
        finalists = {name: trial.whole(ops[name]) for name in dict.fromkeys((*order[:2], BASELINE))}
        finalists[combined] = trial.whole(implementation(call, combination, field.left))
        ranked = [combination if name == combined else {WHOLE: name} for name in compared(FINAL, finalists)]
        ranked += [{WHOLE: name} for name in order if name not in finalists]
        if (
            ranked[0] == combination
            and seconds_of[FINAL][combined] > GAIN * seconds_of[FINAL][str(Decision(ranked[1]))]
        ):
            ranked[:2] = reversed(ranked[:2])
    baseline = {WHOLE: BASELINE}
    comparison = seconds_of.get(FINAL, seconds_of[WHOLE])
    if comparison[str(Decision(ranked[0]))] > MARGIN * comparison[BASELINE]:
        ranked = [baseline, *(winner for winner in ranked if winner != baseline)]
    return Decision(ranked[0], seconds_of, rounds.get(FINAL, rounds[WHOLE]), steady=not unsteady), ranked


def _best_parts(
    trial: Trial, candidates: Mapping[str, Candidate], compared: Comparison
) -> dict[str, str] | None:
    """The fastest candidate for each part; None if one wins all of them, or none offers parts."""
    call = trial.call
    options = call.pairs
    apart = {name: parts for name, each in candidates.items() if (parts := each.parts(call.op)) is not None}
    if options is None or not apart or len(candidates) < 2:
        return None
    forwards = {
        name: trial.forward(apart[name].forward if name in apart else each.op(call.op))
        for name, each in candidates.items()
    }
    winners = {FORWARD: compared(FORWARD, forwards)[0]}
    needs = tuple(name in call.needs for name in ("input", "weight", "bias"))
    if needs[0]:
        runners = {name: trial.backward(parts, options, True, False, False) for name, parts in apart.items()}
        winners[OF_INPUT] = compared(OF_INPUT, runners)[0]
    if needs[1] or needs[2]:
        runners = {name: trial.backward(parts, options, False, *needs[1:]) for name, parts in apart.items()}
        winners[OF_WEIGHT] = compared(OF_WEIGHT, runners)[0]
    return winners if len(set(winners.values())) > 1 else None


# --- verifying --------------------------------------------------------------------------------------------------


def _verdict(
    call: Call, winner: Mapping[str, str], candidates: Mapping[str, Candidate], seed: int
) -> str | None:
    """What is wrong with the winner on this call; None if it is correct."""
    op = implementation(call, winner, candidates)
    # what `auto` declares of itself
    strict = replace(candidates[BASELINE].backend, accuracy={}, deterministic=True)
    outcome = check_with(strict, op, call.record, call.case, call.dtype, call.device, seed + 1)
    return None if outcome.state == "passed" else f"{outcome.state}: {outcome.text}"


@contextmanager
def _as_in_training(device: str) -> Iterator[None]:
    """Record gradients, and make new memory on the device and unfilled, whatever modes the caller is in.

    A default device slows every call of torch down. It is set here only if the program has set one.
    """
    with (
        memory_filled(False),
        nullcontext() if torch.get_default_device().type == "cpu" else torch.device(device),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        yield


def _waiting(call: Call) -> Callable[[], None]:
    if call.device.partition(":")[0] == "cpu":
        return lambda: None
    device = torch.device(call.device)
    return lambda: torch.accelerator.synchronize(device)
