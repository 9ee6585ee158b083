"""docs/measuring.md says what the code does: every column, key, flag and limit, and its examples."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from convbench.registry import create_model
from convbench.results.analysis.flags import FLAGS
from convbench.results.analysis.significance import MIN_EFFECT
from convbench.results.schema import PHASES, Row, columns
from convbench.suites.config.suite import KEYS, Suite, Timing
from convbench.suites.machine import load
from convbench.suites.machine.load import Observation
from convbench.suites.measure.op_counter import count_ops

GUIDE = (Path(__file__).parents[2] / "docs" / "measuring.md").read_text(encoding="utf-8")
WORDS = " ".join(GUIDE.split())


@pytest.mark.parametrize(
    "name",
    [
        *PHASES,
        *(field.name for field in fields(Observation)),
        "order",
        "started_at",
        "setup_seconds",
        "compile_seconds",
        "flush_denormal",
        "threads",
        "flags",
        "images_per_second",
        "step_flops_per_image",
        "step_bytes_per_image",
        "arithmetic_intensity",
        "roofline_step_ms",
        "roofline_fraction",
    ],
)
def test_a_column_of_the_protocol_exists_and_is_explained(name: str) -> None:
    assert name in {column.name for column in columns(Row)}
    assert re.search(rf"`{name}`|{name} +=", GUIDE)


@pytest.mark.parametrize("key", KEYS["timing"])
def test_every_key_of_timing_is_named(key: str) -> None:
    assert f"`{key}`" in GUIDE or f"\n{key} = " in GUIDE


def test_the_example_is_a_suite_and_its_precision_the_usual_one() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", GUIDE, flags=re.DOTALL)
    timing = tomllib.loads(block)["timing"]
    suite = Suite(name="some").override({f"timing.{key}": value for key, value in timing.items()})
    suite.check()
    assert suite.timing.precision == Timing().precision
    assert suite.timing.max_seconds == Timing().max_seconds


def test_flags_and_their_limits_are_those_of_the_code() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| (?:`|the medians)", GUIDE, flags=re.MULTILINE)) >= set(FLAGS)
    assert f"`other_load` above {load.BUSY_SHARE:.0%} of the CPUs" in WORDS
    assert f"`steal_fraction` above {load.STOLEN_SHARE:.0%}" in WORDS
    assert f"more than {load.DRIFT:.0%} apart" in WORDS
    assert f"less than {load.LEAST_TICKS * load.TICK_SECONDS:g} s" in WORDS
    assert f"below {MIN_EFFECT:.0%}" in WORDS


def test_the_layer_that_is_counted_as_an_example() -> None:
    counts = count_ops(create_model("lenet"), torch.rand(8, 1, 28, 28))
    layer = counts.forward[0]
    assert f"{layer.flops:,} operations" in WORDS
    assert f"{layer.bytes:,} bytes: {layer.flops / layer.bytes:.1f} operations a byte" in WORDS
