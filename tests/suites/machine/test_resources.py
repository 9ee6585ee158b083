"""How many threads and how much memory a worker may take."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from convbench.results.storage import environment
from convbench.suites.machine import resources
from convbench.suites.machine.resources import free_memory_mb, usable_cores


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight cores of two threads each, 10 GB free, and no control group."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * 10**9, available=10 * 10**9)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(resources, "cpu_quota", lambda: None)
    monkeypatch.setattr(environment, "CONTROL_GROUP", tmp_path)
    return tmp_path


def test_a_thread_for_every_core_and_not_for_every_hyperthread() -> None:
    assert usable_cores() == 8


def test_cores_that_may_not_be_used_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert usable_cores() == 2


@pytest.mark.parametrize(("quota", "cores"), [(2.5, 2), (0.5, 1), (64.0, 8)])
def test_a_containers_quota_counts(monkeypatch: pytest.MonkeyPatch, quota: float, cores: int) -> None:
    monkeypatch.setattr(resources, "cpu_quota", lambda: quota)
    assert usable_cores() == cores


def test_a_machine_without_control_groups_has_no_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> float:
        raise FileNotFoundError

    monkeypatch.setattr(resources, "cpu_quota", missing)
    assert usable_cores() == 8


def test_a_share_of_what_is_free_is_taken(machine: Path) -> None:
    assert free_memory_mb() == 8000
    (machine / "memory.max").write_text("max\n")
    (machine / "memory.current").write_text("5000000000\n")
    assert free_memory_mb() == 8000


def test_a_containers_limit_counts(machine: Path) -> None:
    (machine / "memory.max").write_text("6000000000\n")
    (machine / "memory.current").write_text("5000000000\n")
    assert free_memory_mb() == 800
