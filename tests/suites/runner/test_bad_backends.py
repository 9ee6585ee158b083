"""A run with backends that misbehave, each in a way of its own: it goes on, and every row says what happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import misbehaving
from convbench.registry import DataError, NothingRan
from convbench.results.schema import KINDS, Kind, Row
from convbench.results.storage.store import RunStore
from convbench.suites import Suite, run
from convbench.suites.processes import probe
from convbench.suites.processes.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("preloaded_servers")

# what each comes to when it is verified, timed and trained; one status stands for all three
ENDINGS = {
    "right": "ok ok ok",
    "tells": "ok ok ok",
    "noisy": "ok ok ok",
    "breeds": "ok ok ok",
    "raises": "error",
    "exits": "error",
    "quits": "crashed",
    "closes": "crashed",
    "segfaults": "crashed",
    "regicide": "crashed",
    "grows": "oom",
    "wrong-shape": "incorrect",
    "wrong-dtype": "incorrect",
    "not-a-number": "incorrect",
    "refuses": "unsupported",
    "absent": "unavailable",
    "never-asked": "unavailable",
    "raises-in-steps": "ok error error",
    "segfaults-in-steps": "ok crashed crashed",
    "quits-in-evaluation": "ok ok crashed",
    "nan-in-steps": "ok incorrect incorrect",
    "drifts": "ok incorrect incorrect",
}
WORDS = {
    "raises": "RuntimeError: it fell over",
    "exits": "it called sys.exit(3)",
    "quits": "groups=1): its process exited with code 0 without a result",
    "segfaults": "groups=1): its process was killed by signal 11 (SIGSEGV)",
    "grows": "can't allocate memory",
    "wrong-shape": "the output has shape (16, 2, 6, 5), not (16, 2, 6, 6)",
    "wrong-dtype": "the output is torch.float64, not torch.float32",
    "not-a-number": "the output is nan where",
    "refuses": "not today",
    "absent": "no such card",
    "never-asked": "its check for availability failed: its process exited with code 5",
}


@dataclass
class Finished:
    """A run, its rows by backend and kind, what was noted, and what it left behind."""

    path: Path
    rows: dict[tuple[str, Kind], Row]
    notes: list[str]
    left_behind: list[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = misbehaving.install(tmp_path_factory.mktemp("bad") / "site")
    with misbehaving.on_path(site):
        yield site


@pytest.fixture(scope="module")
def supervisor(site: Path) -> Iterator[Supervisor]:
    with Supervisor(site.with_name("log")) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def finished(site: Path) -> Finished:
    """All of them in one run."""
    notes = misbehaving.Notes()
    result = run(misbehaving.suite(*ENDINGS), out=site.with_name("run"), watcher=notes)
    rows = {(row.backend, row.kind): row for row in result.rows}
    assert len(rows) == len(result.rows)
    return Finished(result.path, rows, notes.texts, [str(each) for each in misbehaving.left_behind()])


@pytest.mark.parametrize("backend", ENDINGS)
def test_every_row_says_how_it_ended(finished: Finished, backend: str) -> None:
    endings = ENDINGS[backend].split()
    for kind, status in zip(KINDS, endings * (3 // len(endings)), strict=True):
        row = finished.rows[backend, kind]
        assert (kind, row.status, row.error) == (kind, status, row.error)
        assert (row.error is None) == (status == "ok")


@pytest.mark.parametrize("backend", WORDS)
def test_the_reason_is_in_the_row(finished: Finished, backend: str) -> None:
    error = finished.rows[backend, "verify"].error
    assert error is not None
    assert WORDS[backend] in error
    assert "\n" not in error


def test_what_is_not_right_is_not_measured(finished: Finished) -> None:
    for (backend, kind), row in finished.rows.items():
        if "incorrect" in ENDINGS[backend] and row.status != "ok":
            assert row.images_per_second is None, (backend, kind)
            assert row.step_ms_median is None, (backend, kind)
            assert row.val_accuracy is None, (backend, kind)
    with RunStore.open(finished.path) as store:
        assert "drifts" not in {sample.backend for sample in store.samples()}


def test_a_backend_that_turns_wrong_after_verification_is_found_while_timing(finished: Finished) -> None:
    assert str(finished.rows["drifts", "time"].error).startswith("wrong while timing: conv2d(")
    assert str(finished.rows["drifts", "train"].error).startswith(
        "not measured, for its timing ended incorrect: wrong while timing"
    )


def test_a_skipped_row_says_why_once(finished: Finished) -> None:
    for kind in KINDS[1:]:
        assert str(finished.rows["wrong-shape", kind].error).startswith(
            "not measured, for its verification ended incorrect: conv2d("
        )


def test_nothing_is_left_running(finished: Finished) -> None:
    assert finished.left_behind == []
    assert misbehaving.left_behind() == []


def test_what_plugins_print_is_in_the_log(finished: Finished) -> None:
    log = (finished.path / "run.log").read_bytes()
    assert b"not an event" in log
    assert b"nor this" in log
    assert b"in segfaults" in log  # the stack of a crash


def test_garbage_among_events_is_noted_and_dropped(finished: Finished) -> None:
    noted = [note for note in finished.notes if "what is no event was dropped" in note]
    assert len(noted) == 3  # once for each of its processes
    assert all("tiny/noisy" in note for note in noted)
    right, noisy = finished.rows["right", "train"], finished.rows["noisy", "train"]
    assert (noisy.train_loss, noisy.val_loss) == (right.train_loss, right.val_loss)


def test_all_workers_have_the_same_settings_and_the_row_has_them(finished: Finished, site: Path) -> None:
    seen = misbehaving.facts(site)
    assert seen["threads"] == 1
    assert set(seen["variables"].values()) == {"1"}
    assert seen["denormals"] == 0
    assert seen["memory"] == 3000 * 10**6
    assert seen["session"]
    for row in finished.rows.values():
        assert row.threads == 1
        assert row.flush_denormal == (1 if row.status in ("ok", "diverged") else row.flush_denormal)


@pytest.mark.parametrize("backend", ["sleeps", "deaf"])
def test_a_hang_is_ended(site: Path, tmp_path: Path, backend: str) -> None:
    """`deaf` blocks every signal it can, and has children in sessions of their own."""
    result = _measured_or_not(misbehaving.suite(backend, timeout=1.5), tmp_path / "run")
    assert [(row.kind, row.status) for row in result] == [
        ("verify", "timeout"),
        ("time", "timeout"),
        ("train", "timeout"),
    ]
    call, _, reason = (result[0].error or "").rpartition(": ")
    assert call.startswith("conv2d(input=(16, 1, 8, 8), ")
    assert reason == "no end after 1.5 s; its process was killed"
    assert misbehaving.left_behind() == []


def test_a_hang_in_steps_is_ended(site: Path, tmp_path: Path) -> None:
    result = _measured_or_not(misbehaving.suite("sleeps-in-steps", timeout=8), tmp_path / "run", train=False)
    assert [(row.kind, row.status) for row in result] == [("verify", "ok"), ("time", "timeout")]


def _measured_or_not(suite: Suite, out: Path, **options: Any) -> list[Row]:
    with suppress(NothingRan):
        run(suite, out=out, **options)
    with RunStore.open(out) as store:
        return store.rows()


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            "data-crashes",
            "dataset 'data-crashes' cannot be loaded: the process that loads it exited with code 7",
        ),
        ("data-raises", "dataset 'data-raises' cannot be loaded: ZeroDivisionError: division by zero"),
        (
            "data-wrong-tensors",
            "dataset 'tiny': train_images must be a non-empty torch.uint8 tensor of 4 dimensions, not "
            "torch.float32 of shape (90, 1, 8, 8)",
        ),
        ("data-wrong-labels", "dataset 'tiny': train labels go from 0 to 10, not within 0 to 9"),
        ("data-not-images", "a dataset must be Images, not NoneType"),
    ],
)
def test_a_dataset_that_misbehaves_raises_one_sentence(
    supervisor: Supervisor, dataset: str, words: str
) -> None:
    with pytest.raises(DataError) as refusal:
        probe.survey(supervisor, dataset, None)
    assert str(refusal.value) == words


def test_a_dataset_that_hangs_is_ended(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SURVEY_SECONDS", 1.0)
    with pytest.raises(DataError) as refusal:
        probe.survey(supervisor, "data-hangs", None)
    assert str(refusal.value) == (
        "dataset 'data-hangs' cannot be loaded: the process that loads it was killed when its time was up"
    )


def test_a_run_without_data_leaves_no_directory(site: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="division by zero"):
        run(misbehaving.suite("right", dataset="data-raises"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_availability_check_that_hangs_or_crashes_affects_its_backend_only(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "AVAILABILITY_SECONDS", 3.0)
    asked = ("right", "never-answers", "never-asked", "absent", "raises")
    assert probe.find_unavailable(supervisor, asked) == {
        "never-answers": "its check for availability failed: no answer within 3 s",
        "never-asked": "its check for availability failed: its process exited with code 5",
        "absent": "no such card",
    }
