"""What else the machine did meanwhile: counters as the kernel writes them, and what is flagged."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.suites.machine import load
from convbench.suites.machine.load import CpuUse, Observation, Snapshot, drifts, since, snapshot
from convbench.suites.worker.jobs import check_cpus

QUIET = Observation(other_load=0.0, steal_fraction=0.0, context_switches=0, throttle_events=0, cpu_mhz=3000.0)


class Machine:
    """Files and clocks of a machine with two CPUs, one of which this process may use besides CPU 0."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.wall, self.own = root, 100.0, 5.0
        for name, path in (("STAT", "stat"), ("OWN_GROUP", "group"), ("GROUPS", "groups"), ("CPUS", "cpus")):
            monkeypatch.setattr(load, name, root / path)
        monkeypatch.setattr(load, "allowed_cpus", lambda: [0, 1])
        monkeypatch.setattr(load, "_wall", lambda: self.wall)
        monkeypatch.setattr(load, "_own", lambda: self.own)
        self.write("stat", self.stat((100, 0), (100, 0), (0, 0)))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def stat(self, *cpus: tuple[int, int]) -> str:
        """Each with its ticks in user mode and those that were stolen."""
        lines = [
            f"cpu{number} {user} 0 0 50 7 0 0 {stolen} 0 0" for number, (user, stolen) in enumerate(cpus)
        ]
        return "\n".join(["cpu  999 9 9 9 9 9 9 999 0 0", *lines, "intr 1 2 3"])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_others_took_is_what_was_busy_less_our_own(machine: Machine) -> None:
    before = snapshot()
    machine.wall, machine.own = 110.0, 12.0
    # 10 s and 4 s of work on the CPUs that we may use, 7 s of it ours; the third CPU is none of our business
    machine.write("stat", machine.stat((1100, 0), (500, 100), (900, 0)))
    observed = since(before)
    assert observed.other_load == pytest.approx((10 + 4 - 7) / 10)
    assert observed.steal_fraction == pytest.approx(1 / 20)


def test_our_own_work_is_no_load(machine: Machine) -> None:
    before = snapshot()
    machine.wall, machine.own = 110.0, 25.0
    machine.write("stat", machine.stat((1090, 0), (1095, 0), (0, 0)))  # a tick is missing here and there
    assert since(before).other_load == 0.0


def test_ticks_do_not_measure_a_moment(machine: Machine) -> None:
    before = snapshot()
    machine.wall = 100.1
    machine.write("stat", machine.stat((110, 0), (110, 0), (0, 0)))
    assert since(before).other_load is None
    assert since(before).flags(2) == []


def test_heat_and_quota_are_counted(machine: Machine) -> None:
    machine.write("group", "0::/here\n")
    for number in (0, 1):
        machine.write(f"cpus/cpu{number}/thermal_throttle/core_throttle_count", "7\n")
        machine.write(f"cpus/cpu{number}/cpufreq/scaling_cur_freq", f"{2_000_000 + number * 500_000}\n")
    machine.write("groups/here/cpu.stat", "usage_usec 1\nnr_periods 10\nnr_throttled 3\n")
    before = snapshot()
    machine.write("cpus/cpu1/thermal_throttle/core_throttle_count", "9\n")
    machine.write("groups/here/cpu.stat", "usage_usec 1\nnr_periods 10\nnr_throttled 8\n")
    observed = since(before)
    assert observed.throttle_events == 2 + 5
    assert observed.cpu_mhz == 2250.0
    assert observed.flags(2) == ["throttled"]


@pytest.mark.parametrize(
    ("group", "directory"),
    [
        ("0::/a/b", "groups/a/b"),
        ("3:cpu,cpuacct:/c", "groups/cpu/c"),
        ("0::/gone", "groups"),
        ("1:pids:/", "groups/cpu"),
    ],
)
def test_the_control_group_is_found_in_either_version(machine: Machine, group: str, directory: str) -> None:
    machine.write("group", f"9:name=systemd:/\n{group}\n")
    machine.write(f"{directory}/cpu.stat", "nr_throttled 4\n")
    assert load.quota_events() == 4


def test_what_a_machine_does_not_tell_is_none_and_no_flag(machine: Machine) -> None:
    (machine.root / "stat").unlink()
    before = snapshot()
    machine.wall = 200.0
    observed = since(before)
    assert (observed.other_load, observed.steal_fraction) == (None, None)
    assert (observed.throttle_events, observed.cpu_mhz) == (None, None)
    assert observed.flags(2) == []


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, []),
        ({"other_load": 0.19}, []),
        ({"other_load": 0.21}, ["busy"]),
        ({"steal_fraction": 0.019}, []),
        ({"steal_fraction": 0.021}, ["busy"]),
        ({"throttle_events": 1}, ["throttled"]),
        ({"other_load": 2.0, "throttle_events": 3}, ["busy", "throttled"]),
        ({"context_switches": 10_000}, []),
    ],
)
def test_flags_have_their_limits(change: dict[str, float], flags: list[str]) -> None:
    assert replace(QUIET, **change).flags(cpus=2) == flags  # type: ignore[arg-type]


def test_a_gpu_is_asked_for_the_reasons_its_clock_was_held_down(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["5, 0, 0, 0\n", "905, 0, 17, 0\n"])
    asked: list[tuple[str, ...]] = []

    def output(*command: str) -> str:
        asked.append(command)
        return next(answers)

    monkeypatch.setattr(load, "output", output)
    before = snapshot("cuda:1")
    assert since(before, "cuda:1").throttle_events == 2
    assert asked[0][:2] == ("nvidia-smi", "--id=1")


@pytest.mark.parametrize("answer", ["[N/A], [N/A], [N/A], [N/A]", "", None])
def test_a_driver_without_such_counters_is_no_failure(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    def output(*command: str) -> str:
        if answer is None:
            raise subprocess.CalledProcessError(2, command)
        return answer

    monkeypatch.setattr(load, "output", output)
    assert since(snapshot("cuda:0"), "cuda:0").throttle_events is None


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """Another program that keeps one CPU busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(not load.STAT.exists(), reason="no /proc/stat on this system")
def test_a_real_program_is_seen(burner: subprocess.Popen[bytes]) -> None:
    time.sleep(0.2)
    before = snapshot()
    time.sleep(1.0)
    observed = since(before)
    assert observed.other_load is not None
    assert observed.other_load > 0.3  # it shares its CPU with whatever else runs
    assert "busy" in observed.flags(len(load.allowed_cpus()))


def test_a_change_halfway_is_a_drift_and_scatter_is_none() -> None:
    steady = [10.0, 10.3, 9.9, 10.1, 10.2, 9.8, 10.0, 10.1]
    assert not drifts(steady * 4)
    assert drifts([*steady * 2, *(1.2 * each for each in steady * 2)])
    assert drifts([*steady * 2, *(0.8 * each for each in steady * 2)])
    assert not drifts([*steady * 2, *(1.03 * each for each in steady * 2)])  # less than matters
    wild = [5.0, 20.0, 9.0, 14.0, 6.0, 18.0, 11.0, 7.0]
    assert not drifts([*wild, *(1.2 * each for each in wild)])  # within the scatter
    assert not drifts([10.0, 20.0])
    assert not drifts([])


def test_a_snapshot_is_a_record_of_its_own() -> None:
    assert isinstance(snapshot(), Snapshot)
    assert snapshot().wall <= snapshot().wall


def test_a_backend_may_use_no_more_cpus_than_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, own, said = iter([0.0, 1.0, 5.0, 6.0]), iter([0.0, 1.0, 99.0, 101.2]), list[bool]()
    monkeypatch.setattr(load, "_wall", lambda: next(wall))
    monkeypatch.setattr(load, "_own", lambda: next(own))
    use = CpuUse(said.append)
    assert use.cpus == 0.0
    for on in (True, False, True, False):
        use.turn(on)
    assert said == [True, False, True, False]
    assert use.cpus == pytest.approx(1.6)
    kinds: list[Any] = [SimpleNamespace(device=SimpleNamespace(type=kind)) for kind in ("cpu", "cuda")]
    cpu, gpu = kinds
    check_cpus(cpu, 2, use)
    check_cpus(gpu, 1, use)
    with pytest.raises(IntegrityError, match=r"it kept 1\.6 CPUs busy, and was given 1"):
        check_cpus(cpu, 1, use)
