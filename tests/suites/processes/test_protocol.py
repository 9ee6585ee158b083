"""Jobs, events and results come out of JSON as they went in, and whatever is malformed is refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from convbench.registry import Accuracy, Recipe
from convbench.registry.conformance.report import Outcome
from convbench.results.schema import Combination
from convbench.suites.processes.protocol import (
    AvailabilityJob,
    Beat,
    CombinationJob,
    Conformance,
    ConformJob,
    EpochEnd,
    Event,
    ImageFile,
    Job,
    Measured,
    ProtocolError,
    Result,
    Samples,
    Tried,
    decode_event,
    decode_job,
    dumps,
    encode,
)

OUTCOME = Outcome("conv2d", "a case", "float32", "cpu", "failed", "off by one", 1.0)


def sent(message: object) -> dict[str, Any]:
    """The JSON object of a message, as it comes out of a pipe."""
    received: dict[str, Any] = json.loads(dumps(encode(message)))
    return received


@pytest.mark.parametrize(
    "job",
    [
        AvailabilityJob(backends=("torch", "loops")),
        CombinationJob(
            kind="train",
            combination=Combination("lenet", "torch", "cpu", "float32", 8, "contiguous", "eager", 0),
            recipe=Recipe(resize=(56, 56)),
            images=ImageFile("tiny", {"train_images": (90, 1, 8, 8)}),
            num_classes=10,
            threads=2,
            peaks={"gflops_per_second": 100},
        ),
        ConformJob(
            backend="torch",
            device="cpu",
            dtypes=None,
            generated=1,
            seed=0,
            step_seconds=1.0,
            shrink_seconds=1.0,
            threads=1,
            known=(Tried("case float32 a", (OUTCOME,), 0.1),),
        ),
    ],
)
def test_jobs_come_out_as_they_went_in(job: Job) -> None:
    assert decode_job(sent(job)) == job


@pytest.mark.parametrize(
    "message",
    [
        Beat(3, 0.5, None),
        Samples((1.0, 2.0), {"forward_ms": (0.5, 1.0)}),
        Measured("ok", None, {"steps": 3, "step_ms_median": 2, "served": "conv2d 2/2"}, ("a note",)),
        Conformance((OUTCOME,), {"conv2d": Accuracy("normwise", 4.0)}, ("conv2d",)),
    ],
)
def test_events_and_results_come_out_as_they_went_in(message: Event | Result) -> None:
    assert decode_event(sent(message)) == message


def test_a_loss_that_is_no_number_arrives() -> None:
    received = decode_event(sent(EpochEnd(1.0, 3, 24, 0.5, math.nan, math.inf, None)))
    assert isinstance(received, EpochEnd)
    assert math.isnan(received.train_loss)
    assert received.val_loss == math.inf


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "unknown event None"),
        ({"type": "Dropped", "reason": "forged"}, "unknown event 'Dropped'"),
        ({"type": ["Beat"]}, r"unknown event \['Beat'\]"),
        ({"type": "Beat"}, "Beat lacks steps"),
        ({"type": "Beat", "steps": "3"}, "Beat.steps is '3', not int"),
        ({"type": "Beat", "steps": True}, "Beat.steps is True, not int"),
        ({"type": "Beat", "steps": 3, "epoch": "1"}, "Beat.epoch is '1', not float"),
        ({"type": "Beat", "steps": 3, "speed": 1}, "Beat has no field 'speed'"),
        ({"type": "Samples", "step_ms": [], "phases": {}}, "Samples.step_ms is empty"),
        ({"type": "Samples", "step_ms": [1.0], "phases": {"forward_ms": []}}, "0 of forward_ms for 1 steps"),
        ({"type": "Samples", "step_ms": [1.0], "phases": {"nap_ms": [1.0]}}, "nap_ms"),
        ({"type": "Measured", "status": "fine"}, "Measured.status is 'fine'"),
        ({"type": "Measured", "status": "ok", "measures": {"spped": 1.0}}, "'spped', which is no column"),
        ({"type": "Measured", "status": "ok", "measures": {"steps": 1.5}}, "1.5 for steps, not int"),
        ({"type": "Tried", "key": "a", "outcomes": [{}], "seconds": 0.1}, "Outcome lacks op"),
    ],
)
def test_what_is_malformed_is_refused_by_name(message: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode_event(message)
