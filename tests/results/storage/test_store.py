"""The directory of a run: whole rows whatever happens, and one writer at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from convbench.registry import ConvbenchError, UsageError
from convbench.results import Epoch, RunStore
from convbench.results.storage import store as store_module
from result_rows import LENET, row, samples

FILES = ("results.csv", "curves.csv", "samples.csv")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run") as created:
        yield created


def epoch(number: float, **values: object) -> Epoch:
    usual = {"run_id": "run", "steps": 1, "train_images_seen": 128, "train_seconds": 1.0, **vars(LENET)}
    return Epoch(**(usual | {"epoch": number} | values))  # type: ignore[arg-type]


def resumed(store: RunStore) -> RunStore:
    store.close()
    return RunStore.open(store.path)


def test_a_new_run_has_its_files_with_their_headers(store: RunStore) -> None:
    for name in FILES:
        assert (store.path / name).read_text().startswith("run_id,")
    assert store.rows() == []


def test_rows_epochs_and_samples_come_back_in_order(store: RunStore) -> None:
    rows = [row(round=0), row(round=1, status="budget"), row(kind="train")]
    for each in rows:
        store.append(each)
    store.append_epochs([epoch(1.0), epoch(1.4)])
    store.append_samples(samples([1.5, 2.5]))
    with resumed(store) as again:
        assert again.rows() == rows
        assert again.epochs() == [epoch(1.0), epoch(1.4)]
        assert again.samples() == samples([1.5, 2.5])


def test_what_others_change_in_a_run_is_put_back(store: RunStore) -> None:
    store.append(row(round=0))
    store.append_samples(samples([1.5]))
    store.write("suite.toml", "name = 'é'")
    assert store.restore() == []
    with resumed(store) as again:
        again.append(row(round=1))
        again.keep(again.rows())
        again.write("suite.toml", "name = 'é'")
        before = {name: (again.path / name).read_bytes() for name in (*FILES, "suite.toml")}
        assert again.restore() == []
        for name in before:
            (again.path / name).write_text("nonsense")
            assert again.restore() == [name]
            (again.path / name).unlink()
            assert again.restore() == [name]
        assert {name: (again.path / name).read_bytes() for name in before} == before


def test_a_run_takes_an_empty_directory_and_never_another_one(tmp_path: Path) -> None:
    with RunStore.create(tmp_path) as first:
        assert first.path == tmp_path
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("mine")
    with RunStore.create(used) as second, RunStore.create(used) as third:
        assert [second.path.name, third.path.name] == ["used-2", "used-3"]
    assert [file.name for file in used.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="it is a file"):
        RunStore.create(tmp_path / "file")
    with pytest.raises(UsageError, match=r"cannot write a run to .*Not a directory"):
        RunStore.create(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"cannot write a run to .*Permission denied"):
        RunStore.create(tmp_path / "run")


def test_a_run_that_is_still_going_is_not_resumed(store: RunStore) -> None:
    with pytest.raises(UsageError, match="the run is still going"):
        RunStore.open(store.path)
    with resumed(store) as again:
        assert again.rows() == []


def test_a_killed_run_can_be_resumed_at_once(tmp_path: Path) -> None:
    code = f"""
from convbench.results import RunStore
store = RunStore.create({str(tmp_path / "run")!r})
print("ready", flush=True)
input()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(UsageError, match="still going"):
            RunStore.open(tmp_path / "run")
        child.send_signal(signal.SIGKILL)
    RunStore.open(tmp_path / "run").close()


def test_no_cut_of_the_last_record_loses_another(store: RunStore) -> None:
    kept, last = row(round=0, error="a, b"), row(round=1, error="c")
    store.append(kept)
    whole = (store.path / "results.csv").read_bytes()
    store.append(last)
    everything = (store.path / "results.csv").read_bytes()
    for cut in range(len(whole), len(everything)):
        (store.path / "results.csv").write_bytes(everything[:cut])
        store = resumed(store)
        assert store.rows() == [kept]
        assert (store.path / "results.csv").read_bytes() == whole
    store.close()


def test_a_cut_header_is_written_again(store: RunStore) -> None:
    header = (store.path / "curves.csv").read_bytes()
    (store.path / "curves.csv").write_bytes(header[:20])
    with resumed(store) as again:
        assert (again.path / "curves.csv").read_bytes() == header


def test_samples_and_epochs_without_their_row_are_dropped_on_resume(store: RunStore) -> None:
    store.append_samples([*samples([1.0], round=0), *samples([2.0], round=1)])
    store.append_epochs([epoch(1.0), epoch(1.0, seed=1)])
    store.append(row(round=1))
    store.append(row(kind="train", seed=1))
    with resumed(store) as again:
        assert [sample.step_ms for sample in again.samples()] == [2.0]
        assert [each.seed for each in again.epochs()] == [1]


def test_keep_drops_rows_with_their_samples_and_epochs(store: RunStore) -> None:
    rows = [row(round=0), row(round=1), row(kind="train", status="crashed")]
    for each in rows:
        store.append(each)
    store.append_samples([*samples([1.0], round=0), *samples([2.0], round=1)])
    store.append_epochs([epoch(1.0)])
    store.keep(rows[1:2])
    assert store.rows() == rows[1:2]
    assert [sample.round for sample in store.samples()] == [1]
    assert store.epochs() == []


def test_a_directory_that_holds_no_run_of_ours_is_not_resumed(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no results\.csv in it"):
        RunStore.open(tmp_path)
    text = (store.path / "results.csv").read_text()
    (store.path / "results.csv").write_text(text.replace("val_loss", "loss"))
    with pytest.raises(UsageError, match=r"missing: val_loss; unknown: loss"):
        resumed(store)
    (store.path / "results.csv").write_text(text)
    RunStore.open(store.path).close()  # the refusal gave the lock back


def test_a_full_disk_leaves_whole_rows_only(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append(row())
    before = (store.path / "results.csv").read_bytes()
    write = os.write
    monkeypatch.setattr(store_module.os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(ConvbenchError, match=r"cannot append to .*results\.csv: No space left on device"):
        store.append(row(round=1))
    monkeypatch.undo()
    assert (store.path / "results.csv").read_bytes() == before
    store.append(row(round=2))
    assert [each.round for each in store.rows()] == [0, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_write_that_fails_is_one_clear_error(store: RunStore) -> None:
    (store.path / "results.csv").unlink()
    (store.path / "results.csv").symlink_to("/dev/full")
    with pytest.raises(ConvbenchError, match="No space left on device"):
        store.append(row())


def test_text_that_is_no_unicode_is_stored_all_the_same(store: RunStore) -> None:
    store.append(row(error="bad \udcff byte"))
    assert store.rows() == [replace(row(), error="bad \\udcff byte")]


def test_an_exact_directory_is_taken_beside_other_files_and_never_twice(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with RunStore.create(tmp_path, exact=True) as store:
        assert store.path == tmp_path
    with pytest.raises(UsageError, match="holds a run already; --resume"):
        RunStore.create(tmp_path, exact=True)
