"""Interrupted, killed and full-disk runs: what was measured is kept, nothing stays behind, and they go on."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import misbehaving
from conftest import exhaustive
from convbench.registry import UsageError
from convbench.results.schema import Kind, Row
from convbench.results.storage.store import RunStore
from convbench.suites import run
from misbehaving import wait_until

pytestmark = pytest.mark.usefixtures("preloaded_servers")

# `dozes` hangs in its steps as long as there is a file `doze`, `fragile` fails while there is a file `break`
SUITE = misbehaving.suite("right", "fragile", "dozes")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    site = misbehaving.install(tmp_path / "site")
    with misbehaving.on_path(site):
        yield site


def rows_of(path: Path) -> list[list[str]]:
    with (path / "results.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert all(len(row) == len(header) for row in rows)
    return rows


def dozing(site: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    """A run that has measured something and now hangs in a worker."""
    (site / "doze").touch()
    (site / "break").touch()
    (site / "suite.toml").write_text(SUITE.to_toml())
    process = misbehaving.start("run", "--suite", site / "suite.toml", "--out", out, site=site, **options)
    wait_until(lambda: process.poll() is not None or (site / "dozing").exists())
    assert process.poll() is None, process.communicate()
    return process


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def by_slot(rows: list[Row]) -> dict[tuple[str, Kind], Row]:
    found = {(row.backend, row.kind): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_after_kill_9_a_run_can_be_completed(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = dozing(site, out)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2  # the fork server and one worker
    with pytest.raises(UsageError, match="the run is still going"):
        run(SUITE, resume=out)

    process.kill()
    process.communicate()
    assert wait_until(lambda: not alive(family), seconds=10) < 5
    before = rows_of(out)
    assert {row[2] for row in before} >= {"verify"}

    (site / "doze").unlink()
    (site / "break").unlink()
    with RunStore.open(out) as store:
        old = by_slot(store.rows())
    assert old["fragile", "verify"].status == "error"
    result = run(resume=out)
    new = by_slot(list(result.rows))
    assert len(new) == 9
    assert {row.status for row in new.values()} == {"ok"}
    assert "Interrupted" not in (out / "table.md").read_text()
    kept = {slot: row for slot, row in old.items() if row.status == "ok"}
    assert kept
    assert {slot: new[slot] for slot in kept} == kept  # not measured twice: same times, same order
    with RunStore.open(out) as store:
        curves = [(epoch.backend, epoch.epoch) for epoch in store.epochs()]
        assert sorted(curves) == sorted((name, number) for name in SUITE.backends for number in (1, 2))
        assert len(store.samples()) == 3 * SUITE.timing.steps

    # another version of the plugin: everything anew
    misbehaving.install(site, "2.0")
    stamps = {slot: row.combination_key for slot, row in new.items()}
    renewed = by_slot(list(run(resume=out, train=False).rows))
    for slot, row in renewed.items():
        assert (row.plugin_version, row.combination_key != stamps[slot]) == (
            ("1.0", False) if row.kind == "train" else ("2.0", True)
        )
    assert len(renewed) == 9  # trainings were not asked for, and are left alone
    assert "Interrupted" not in (out / "table.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, exhaustive(signal.SIGTERM)])
def test_an_interrupted_run_keeps_what_is_done_and_says_how_to_go_on(
    site: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "a run"
    process = dozing(site, out)
    family = psutil.Process(process.pid).children(recursive=True)
    done = rows_of(out)
    process.send_signal(number)
    output, errors = process.communicate(timeout=100)

    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == (
        f"interrupted; what was measured is kept in {out}; to go on: convbench run --resume '{out}'"
    )
    assert "Traceback" not in errors
    assert output == ""
    assert rows_of(out)[: len(done)] == done
    assert not alive(family)
    planned = json.loads((out / "environment.json").read_text())["planned_processes"]
    assert planned == {"verify": 3, "time": 3, "train": 3}
    missing = f"Interrupted: {9 - len(rows_of(out))} of 9 planned processes are missing."
    assert missing in (out / "table.md").read_text()
    assert missing in (out / "report.html").read_text()


def test_interrupted_before_anything_was_measured_it_leaves_nothing(site: Path, tmp_path: Path) -> None:
    (site / "suite.toml").write_text(misbehaving.suite("right", dataset="data-hangs").to_toml())
    process = misbehaving.start("run", "--suite", site / "suite.toml", "--out", tmp_path / "run", site=site)
    wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted before anything was measured"
    assert not (tmp_path / "run").exists()
    assert not alive(family)


@pytest.mark.exhaustive
def test_a_full_disk_is_one_sentence_and_loses_no_row(site: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk: the samples do not fit any more."""
    suite = misbehaving.suite("right").override({"timing.steps": 400, "timing.rounds": 2})
    (site / "suite.toml").write_text(suite.to_toml())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    arguments = ("run", "--suite", site / "suite.toml", "--out", tmp_path / "run")
    done = misbehaving.convbench(*arguments, site=site, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"convbench: cannot append to {tmp_path / 'run' / 'samples.csv'}: No space left on device"
    )
    assert "Traceback" not in done.stderr
    with RunStore.open(tmp_path / "run") as store:
        assert [(row.kind, row.round, row.status) for row in store.rows()] == [
            ("verify", 0, "ok"),
            ("time", 0, "ok"),
        ]
        assert len(store.samples()) == 400  # of the round that fitted, all of them

    result = run(resume=tmp_path / "run")
    assert [(row.kind, row.round, row.status) for row in result.rows] == [
        ("verify", 0, "ok"),
        ("time", 0, "ok"),
        ("time", 1, "ok"),
        ("train", 0, "ok"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_an_unwritable_directory_is_one_sentence(site: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="Permission denied"):
            run(SUITE, out=tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_place_where_no_directory_can_be_is_one_sentence(site: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UsageError, match="cannot write a run to"):
            run(SUITE, out=out)


@pytest.mark.parametrize("directory", ["nothing", "empty"])
def test_resuming_no_run_is_one_sentence(site: Path, tmp_path: Path, directory: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"cannot resume .*{directory}: there is no results.csv in it"):
        run(SUITE, resume=tmp_path / directory)
    with pytest.raises(UsageError, match="cannot read suite"):
        run(resume=tmp_path / directory)


def test_a_run_is_not_made_into_one_of_another_suite(site: Path, tmp_path: Path) -> None:
    (tmp_path / "results.csv").touch()
    (tmp_path / "suite.toml").write_text(SUITE.to_toml())
    with pytest.raises(UsageError, match=f"is a run of suite '{SUITE.name}', not of 'other'"):
        run(replace(SUITE, name="other"), resume=tmp_path)


def test_without_a_suite_or_a_run_to_resume_there_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="no suite is given, nor a run to resume"):
        run()
