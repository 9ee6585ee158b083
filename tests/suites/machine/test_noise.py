"""What `convbench doctor` makes of a machine: what is called unsteady, why, and what to do about it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from convbench.suites.machine import noise
from convbench.suites.machine.load import Observation
from convbench.suites.machine.noise import (
    Program,
    block_deviation,
    busiest,
    cpu_times,
    examine,
    gpu_findings,
    judge_cores,
    judge_governor,
    judge_gpu,
    judge_load,
    judge_openmp,
    judge_power,
    judge_probe,
    judge_steal,
    judge_throttling,
    rounds_needed,
)

QUIET = Observation(other_load=0.0, steal_fraction=0.0, context_switches=0, throttle_events=0, cpu_mhz=3000.0)
STEADY = [0.01 * (1 + 0.01 * ((number * 7) % 5)) for number in range(200)]


def test_the_same_work_in_the_same_time_is_steady() -> None:
    found = judge_probe(STEADY)
    assert found.state == "ok"
    assert found.advice == "steady: a difference of 5% shows with 3 rounds at best"
    assert "spread 3.9% (p10 to p90), drift +0.0%" in found.found


def test_scatter_and_drift_are_unsteady_and_ask_for_rounds() -> None:
    scattered = [time * (1 + 0.5 * (number % 3 == 0)) for number, time in enumerate(STEADY)]
    assert judge_probe(scattered).state == "warning"
    drifting = [time * (1 + 0.2 * number / 200) for number, time in enumerate(STEADY)]
    found = judge_probe(drifting)
    assert found.state == "warning"
    assert "drift +9" in found.found
    rounds = rounds_needed(block_deviation(drifting))
    assert rounds is not None
    assert f"a difference of 5% shows with at least {rounds} rounds" in found.advice


def test_rounds_follow_from_the_deviation() -> None:
    """With four rounds a side: t of 6 degrees of freedom at 1%, 3.707, times the deviation times sqrt(2 / 4)."""
    just_enough = math.log(1.05) / (3.707 * math.sqrt(2 / 4))
    assert rounds_needed(0.99 * just_enough) == 4
    assert rounds_needed(1.01 * just_enough) == 5
    assert rounds_needed(0.0) == 3  # never fewer than three
    assert rounds_needed(1.0) is None


def test_who_is_at_work_is_named_and_what_is_to_do() -> None:
    programs = [Program("python", 123, 0.45), Program("make", 7, 0.2), Program("sshd", 1, 0.01)]
    found = judge_load(replace(QUIET, other_load=0.65), programs, cpus=2)
    assert found.state == "warning"
    assert found.found == "other programs take 0.65 of 2 CPUs"
    assert found.advice == (
        "python (pid 123) takes 45% of a CPU, make (pid 7) takes 20% of a CPU: close what can be closed, or "
        "wait; rounds timed meanwhile are flagged `busy`"
    )


def test_a_load_nobody_here_makes_comes_from_outside() -> None:
    found = judge_load(replace(QUIET, other_load=1.0), [], cpus=2)
    assert (found.state, "outside this container" in found.advice) == ("warning", True)


def test_little_load_is_in_nobodys_way() -> None:
    assert judge_load(replace(QUIET, other_load=0.05), [], cpus=2).state == "ok"
    assert judge_load(replace(QUIET, other_load=None), [], cpus=2).state == "unknown"


def test_a_hypervisor_and_a_brake_are_told() -> None:
    assert judge_steal(QUIET).state == "ok"
    assert judge_steal(replace(QUIET, steal_fraction=0.1)).state == "warning"
    assert judge_steal(replace(QUIET, steal_fraction=None)).state == "unknown"
    assert judge_throttling(QUIET).state == "ok"
    assert judge_throttling(replace(QUIET, throttle_events=2)).state == "warning"
    assert judge_throttling(replace(QUIET, throttle_events=None)).state == "unknown"


@pytest.mark.parametrize(
    ("governors", "turbo", "state", "words"),
    [
        (["performance"], False, "ok", "does not follow the load"),
        (["performance"], True, "ok", "turn turbo off"),
        (["powersave"], None, "warning", "cpupower frequency-set --governor performance"),
        (["performance", "schedutil"], False, "warning", "cpupower"),
        (None, None, "unknown", "virtual machine"),
    ],
)
def test_a_clock_that_follows_the_load(
    governors: list[str] | None, turbo: bool | None, state: str, words: str
) -> None:
    found = judge_governor(governors, turbo)
    assert found.state == state
    assert words in found.advice


def test_threads_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convbench.suites.machine.resources.usable_cores", lambda: 2)
    assert judge_cores("0", None, 2).found == "2 CPUs, no quota"
    assert judge_cores("1", None, 4).found == "4 CPUs that share cores in pairs, no quota"
    limited = judge_cores(None, 2.5, 8)
    assert (limited.state, limited.found) == ("warning", "8 CPUs, a quota of 2.5")
    assert "workers take 2 threads" in limited.advice


@pytest.mark.parametrize(
    ("supplies", "state", "found"),
    [
        ({}, "ok", "no battery"),
        ({"AC": {"online": "1"}, "BAT0": {"status": "Charging"}}, "ok", "on mains"),
        ({"AC": {"online": "0"}, "BAT0": {"status": "Discharging"}}, "warning", "on battery"),
    ],
)
def test_a_battery_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    supplies: dict[str, dict[str, str]],
    state: str,
    found: str,
) -> None:
    monkeypatch.setattr(noise, "POWER", tmp_path)
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(f"{text}\n")
    judged = judge_power()
    assert (judged.state, judged.found) == (state, found)


def test_a_gpu_that_others_use_or_that_falls_asleep() -> None:
    gpu = {"name": "H100", "clocks.sm": "1980 MHz", "clocks.max.sm": "1980 MHz", "temperature.gpu": "40"}
    assert judge_gpu(0, {**gpu, "persistence_mode": "Enabled"}, []).state == "ok"
    asleep = judge_gpu(0, {**gpu, "persistence_mode": "Disabled"}, [])
    assert (asleep.check, asleep.state, "nvidia-smi -pm 1" in asleep.advice) == ("gpu 0", "warning", True)
    assert "pid 12 is python" in judge_gpu(1, gpu, ["12, python"]).advice


def test_the_busiest_program_is_found() -> None:
    before = cpu_times()
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)
        found = {each.pid: each.cpus for each in busiest(before, cpu_times())}
    finally:
        program.kill()
        program.wait()
    assert found[program.pid] > 0.1  # however many share its CPU
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_real_machine_is_examined() -> None:
    found = examine()
    assert [finding.check for finding in found][:9] == [
        "probe",
        "load",
        "hypervisor",
        "throttling",
        "frequency",
        "cores",
        "openmp",
        "power",
        "clock",
    ]


def test_programs_are_laid_to_the_gpu_they_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = {"--id=0": "", "--id=1": "12, python\n"}
    monkeypatch.setattr(
        "convbench.results.storage.environment.gpus", lambda: [{"name": "H100"}, {"name": "H100"}]
    )
    monkeypatch.setattr("convbench.results.storage.environment.output", lambda _, which, *query: busy[which])
    assert [finding.state for finding in gpu_findings()] == ["ok", "warning"]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"OMP_DYNAMIC": "false", "OMP_NUM_THREADS": "1"}, None),
        ({"OMP_THREAD_LIMIT": "1"}, "OMP_THREAD_LIMIT=1"),
        ({"OMP_DYNAMIC": "TRUE"}, "OMP_DYNAMIC=TRUE"),
        ({"OMP_THREAD_LIMIT": "4", "OMP_DYNAMIC": "1"}, "OMP_THREAD_LIMIT=4 and OMP_DYNAMIC=1"),
    ],
)
def test_limits_under_which_torch_hangs_are_told(variables: dict[str, str], found: str | None) -> None:
    finding = judge_openmp(variables)
    assert (finding.state, finding.found) == (
        ("warning", found) if found else ("ok", "no limit on OpenMP's threads")
    )
