"""What a run ran on, as far as the machine tells."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest

from convbench.results.storage import environment
from convbench.results.storage.environment import (
    FACTS,
    attempt,
    collect,
    device_name,
    machine_id,
    speed_variables,
)
from convbench.suites.machine.resources import free_memory_mb


def test_every_fact_is_documented_and_all_of_it_is_json() -> None:
    facts = collect()
    assert facts.keys() == FACTS.keys()
    assert all(len(fact.description) > 5 for fact in FACTS.values())
    assert json.loads(json.dumps(facts))["torch"]["version"]
    assert facts["logical_cores"] >= len(facts["affinity"]) >= 1
    assert facts["packages"]["convbench"]


def test_the_machine_is_the_same_each_time_and_another_one_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = machine_id()
    assert here == machine_id()
    assert re.fullmatch("m[0-9a-f]{12}", here)  # a letter first: 91681823e703 looks like a number
    monkeypatch.setattr(environment, "cpu_model", lambda: "Another processor")
    assert machine_id() != here


@pytest.mark.parametrize("error", [FileNotFoundError("/proc/meminfo"), KeyError("MemTotal:")])
def test_a_machine_without_meminfo_is_a_machine_all_the_same(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    def refuse() -> None:
        raise error

    here, total = machine_id(), environment.memory_gb()
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert machine_id() == here
    assert environment.memory_gb() == pytest.approx(total, rel=0.01)
    assert 0 < (free_memory_mb() or 0) < 1e9
    monkeypatch.setattr(os, "sysconf", lambda name: -1)  # nor does the C library tell
    assert environment.memory_gb() is None
    monkeypatch.setattr(environment, "read_text", lambda path: None)
    assert environment.available_memory_gb() == math.inf
    assert machine_id()


def test_hiding_the_gpus_does_not_make_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine_id()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_id() == here


def test_a_device_has_the_name_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_model", lambda: "A processor")
    assert device_name("cpu") == "A processor"
    assert device_name("mps") == "mps of A processor"


def test_a_device_that_is_not_there_keeps_its_name() -> None:
    assert device_name("cuda:99") == "cuda:99"


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("git", 20), AttributeError("cpu_freq")],
)
def test_what_a_machine_does_not_tell_is_none(error: Exception) -> None:
    def read() -> None:
        raise error

    assert attempt(read) is None


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(TypeError):
        attempt(lambda: len(3))  # type: ignore[arg-type]


def test_variables_that_change_speed_are_kept_and_secrets_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TORCH_HUB_TOKEN", "hush")
    monkeypatch.setenv("HOMEPAGE", "x")
    found = speed_variables()
    assert found["OMP_NUM_THREADS"] == "2"
    assert "TORCH_HUB_TOKEN" not in found
    assert "HOMEPAGE" not in found


def test_processor_and_flags_are_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nmodel name\t: Fast  CPU @ 3 GHz\nflags\t\t: fpu avx2 fma\n"
    monkeypatch.setattr(environment, "read_text", lambda path: text if path == "/proc/cpuinfo" else None)
    assert environment.cpu_model() == "Fast CPU @ 3 GHz"
    assert environment.cpu_flags() == ["avx2", "fma"]


def test_a_commit_is_told_from_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    source = tmp_path / "environment.py"
    source.write_text("one")
    monkeypatch.setattr(environment, "__file__", str(source))
    git("init")
    assert attempt(environment.convbench_commit) is None  # not of this repository
    git("add", ".")
    git("commit", "-m", "one")
    commit = environment.convbench_commit()
    assert commit is not None
    assert len(commit) == 40
    source.write_text("two")
    assert environment.convbench_commit() == f"{commit}-dirty"
