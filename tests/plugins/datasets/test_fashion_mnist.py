"""FashionMNIST: where it is looked for, how it is verified, and the sample in its place.

Most tests publish a small dataset of their own in place of the full one; those that need the full one run
where Debian's dataset-fashion-mnist is installed.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from convbench.plugins.datasets.fashion_mnist import dataset, fetch, files, sources, torchvision_download
from convbench.plugins.datasets.fashion_mnist.torchvision_download import Patience
from convbench.plugins.datasets.idx import read_idx
from convbench.registry import DataError
from fashion_mnist_fixtures import Contents, Mirror, cache, flipped, put

pytest_plugins = ["fashion_mnist_fixtures"]
pytestmark = pytest.mark.usefixtures("mirror")
SYSTEM_COPY = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).parents[3] / "scripts" / "draw_sample.py"

# Sources and their order


def place(source: str, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Put a copy where `source` looks; returns the `root` argument that `load` then takes."""
    match source:
        case "--data-dir":
            return put(contents, tmp_path / "argument")
        case "CONVBENCH_DATA":
            monkeypatch.setenv(sources.VARIABLE, str(put(contents, tmp_path / "variable")))
        case "cache":
            put(contents, cache())
        case "system":
            put(contents, sources.SYSTEM_ROOT / "fashion-mnist", ".gz")
    return None


@pytest.mark.parametrize("source", ["--data-dir", "CONVBENCH_DATA", "cache", "system"])
def test_every_source_serves(
    source: str, published: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror
) -> None:
    root = place(source, published, tmp_path, monkeypatch)
    images = dataset.load(root)
    assert images.name == "fashion-mnist"
    assert images.train_images.numpy().tobytes() == published[0][16:]
    assert images.test_labels.tolist() == list(published[3][8:])
    assert mirror.downloads == 0


def test_sources_are_taken_in_their_order(
    published: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in ("system", "cache", "CONVBENCH_DATA", "--data-dir"):
        root = place(source, published, tmp_path, monkeypatch)
        chosen = sources.chosen(root)
        assert chosen is not None
        assert chosen[0].name == source


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", files.LAYOUTS)
def test_plain_and_gzipped_files_in_every_layout(
    layout: str, suffix: str, published: Contents, tmp_path: Path
) -> None:
    put(published, tmp_path / "data" / layout, suffix)
    assert dataset.load(tmp_path / "data").name == "fashion-mnist"


def test_tensors_are_what_records_promise(published: Contents, tmp_path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of buffers that it may not write to
        images = dataset.load(put(published, tmp_path / "data"))
    assert images.train_images.shape == (300, 1, 28, 28)
    assert images.test_images.shape == (100, 1, 28, 28)
    assert images.train_images.dtype == images.test_images.dtype == torch.uint8
    assert images.train_labels.dtype == images.test_labels.dtype == torch.int64
    images.train_images.zero_()


def test_a_directory_that_was_asked_for_must_hold_the_data(
    published: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(published, cache())  # not fallen back to
    with pytest.raises(DataError) as argument:
        dataset.load(tmp_path / "nothing here")
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path / "neither"))
    with pytest.raises(DataError) as variable:
        dataset.load()
    for error, name in ((argument, "nothing here"), (variable, "CONVBENCH_DATA")):
        assert name in str(error.value)
        assert all(file.name in str(error.value) for file in files.FULL)
    assert f"convbench data fetch --data-dir '{tmp_path}/nothing here'" in str(argument.value)


# Verification


def test_a_partial_copy_is_refused(published: Contents, tmp_path: Path) -> None:
    directory = put(published, tmp_path / "data")
    (directory / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=rf"{directory} is a partial copy.* lacks train-labels-idx1-ubyte;"):
        dataset.load(directory)


@pytest.mark.parametrize(
    ("suffix", "damage", "said"),
    [
        ("", lambda data: data[:-1], "is truncated: it holds 235,215 of 235,216 bytes"),
        ("", lambda data: flipped(data, 5000), "is damaged or another dataset's: its SHA-256 is"),
        ("", lambda data: data + b"\0", "is damaged: it goes on past the 235,216 bytes"),
        ("", lambda data: b"", "is empty"),
        (
            "",
            lambda data: b"<!DOCTYPE html>",
            "is not an IDX file of 3-dimensional uint8 data: it begins with",
        ),
        ("", lambda data: data[:4] + (9).to_bytes(4, "big") + data[8:], r"holds data of shape \(9, 28, 28\)"),
        (".gz", lambda data: data[: len(data) // 2], "is truncated: its compressed stream ends early"),
        (".gz", lambda data: data[:-4], "is truncated: its compressed stream ends early"),
        (".gz", lambda data: flipped(data, len(data) - 6), "is damaged: it does not decompress"),
        (".gz", lambda data: flipped(data, 0), "is damaged: it does not decompress"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    suffix: str, damage: functools.partial[bytes], said: str, published: Contents, tmp_path: Path
) -> None:
    path = put(published, tmp_path / "data", suffix) / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} {said}.*`convbench data fetch --data-dir"):
        dataset.load(tmp_path / "data")


def test_swapped_files_are_refused(published: Contents, tmp_path: Path) -> None:
    directory = put(published, tmp_path / "data")
    train, test = directory / "train-labels-idx1-ubyte", directory / "t10k-labels-idx1-ubyte"
    train.rename(tmp_path / "aside")
    test.rename(train)
    (tmp_path / "aside").rename(test)
    with pytest.raises(DataError, match=rf"{train} holds data of shape \(100,\).* has \(300,\)"):
        dataset.load(directory)


def test_another_dataset_under_the_same_names_is_refused(published: Contents, tmp_path: Path) -> None:
    """MNIST's files have the names, shapes and sizes of FashionMNIST's."""
    directory = put(published, tmp_path / "data")
    images = directory / "train-images-idx3-ubyte"
    images.write_bytes(published[0][:16] + published[0][:15:-1])
    with pytest.raises(DataError, match="or another dataset's"):
        dataset.load(directory)


def test_a_damaged_cache_is_not_passed_over(published: Contents) -> None:
    put(published, sources.SYSTEM_ROOT / "fashion-mnist")
    (put(published, cache()) / "t10k-images-idx3-ubyte").write_bytes(published[2][:100])
    with pytest.raises(DataError, match=r"truncated: it holds 100 of .*; `convbench data fetch` puts"):
        dataset.load()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_refused(published: Contents, tmp_path: Path) -> None:
    path = put(published, tmp_path / "data") / "train-images-idx3-ubyte"
    path.chmod(0)
    with pytest.raises(DataError, match=f"{path} cannot be read: Permission denied"):
        dataset.load(tmp_path / "data")


# First use: a short download, then the sample


def test_first_use_downloads_into_the_cache(published: Contents, mirror: Mirror) -> None:
    mirror.serve(published)
    assert dataset.load().name == "fashion-mnist"
    assert files.problem(cache()) is None
    assert dataset.load().name == "fashion-mnist"
    assert mirror.downloads == 1


def test_without_any_source_the_sample_is_used_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    images = dataset.load()
    assert images.name == "fashion-mnist-sample"
    assert len(images.train_images) == 10_000
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "embedded sample of 12,000 images" in record.getMessage()
    assert "`convbench data fetch` gets the full data" in record.getMessage()
    assert "the fake mirror cannot be reached" in record.getMessage()


def test_a_failed_download_is_remembered_for_an_hour(
    published: Contents, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.load()
    failed = mirror.downloads
    assert failed == torchvision_download.ATTEMPTS
    mirror.serve(published)
    assert dataset.load().name == "fashion-mnist-sample"
    assert mirror.downloads == failed
    hour_later = time.time() + fetch.REMEMBERED_SECONDS
    monkeypatch.setattr(time, "time", lambda: hour_later)
    assert dataset.load().name == "fashion-mnist"
    assert fetch.failed_lately() is None


@pytest.mark.parametrize("content", ["", "[]", '{"failed_at": "x"}', '{"failed_at": 1e99, "why": ""}'])
def test_a_spoilt_memory_of_a_failure_is_no_memory(content: str) -> None:
    sources.cache_root().mkdir(parents=True)
    (sources.cache_root() / fetch.MEMORY).write_text(content)
    assert fetch.failed_lately() is None


def test_a_download_that_hangs_is_ended_at_its_deadline(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mirror.behave("time.sleep(100)")
    monkeypatch.setattr(fetch, "AT_FIRST_USE", Patience(deadline_seconds=1, silence_seconds=1))
    started = time.monotonic()
    assert dataset.load().name == "fashion-mnist-sample"
    assert time.monotonic() - started < 10
    assert "took longer than 1 s" in caplog.text


def test_a_cache_that_cannot_be_written_to_leaves_the_sample(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert dataset.load().name == "fashion-mnist-sample"
    assert mirror.downloads == 0


def test_what_the_mirror_sends_is_verified(published: Contents, mirror: Mirror) -> None:
    mirror.serve((*published[:3], flipped(published[3], 20)))
    assert dataset.load().name == "fashion-mnist-sample"
    assert not cache().exists()
    assert dataset.load().name == "fashion-mnist-sample"
    assert mirror.downloads == 1  # the rejection is remembered like a failure


class QuietServer(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.mark.exhaustive
def test_torchvision_itself_writes_what_is_found(
    published: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real torchvision, with a server of this test's as its mirror: pins the layout that it writes."""
    datasets = pytest.importorskip("torchvision.datasets")
    put(published, tmp_path / "served", ".gz")
    handler = functools.partial(QuietServer, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sums = [
            (path.name, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest())
            for path in (tmp_path / "served").iterdir()
        ]
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
        monkeypatch.setattr("socket.setdefaulttimeout", lambda seconds: None)  # not this process's
        assert torchvision_download.download_here(str(tmp_path / "data"), 10) is None
        server.shutdown()
    assert files.find(tmp_path / "data") == tmp_path / "data" / "FashionMNIST" / "raw"
    assert files.problem(tmp_path / "data" / "FashionMNIST" / "raw") is None


# The embedded sample, and the full data


@pytest.fixture
def full() -> tuple[bytearray, ...]:
    if not files.find(SYSTEM_COPY):
        pytest.skip(f"the full data is not in {SYSTEM_COPY}")
    return files.read(SYSTEM_COPY)


def test_the_sample_is_balanced() -> None:
    images = dataset.load_sample()
    assert images.name == "fashion-mnist-sample"
    assert images.train_images.shape == (10_000, 1, 28, 28)
    assert images.test_images.shape == (2_000, 1, 28, 28)
    assert images.train_labels.bincount().tolist() == [1_000] * 10
    assert images.test_labels.bincount().tolist() == [200] * 10


def test_the_sample_is_drawn_from_the_full_data_by_its_rule(
    full: tuple[bytearray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    drawn = dict(runpy.run_path(str(SCRIPT))["sample_files"](full))
    assert [drawn[file] for file in files.SAMPLE] == list(files.read_sample())


def test_every_sample_image_is_in_the_full_data_with_its_label(full: tuple[bytearray, ...]) -> None:
    def pairs(images: bytearray, labels: bytearray) -> Iterator[tuple[bytes, int]]:
        for index, label in enumerate(labels[8:]):
            yield bytes(images[16 + 784 * index : 16 + 784 * (index + 1)]), label

    sample = files.read_sample()
    assert set(pairs(*sample[:2])) <= set(pairs(*full[:2]))
    assert set(pairs(*sample[2:])) <= set(pairs(*full[2:]))


def test_a_damaged_sample_says_to_reinstall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        files, "SAMPLE_DIRECTORY", shutil.copytree(files.SAMPLE_DIRECTORY, tmp_path / "sample")
    )
    path = tmp_path / "sample" / "t10k-images-idx3-ubyte.xz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"{path} is truncated.*; reinstalling convbench restores"):
        dataset.load_sample()


def test_the_full_data_is_balanced_and_loads_fast(full: tuple[bytearray, ...], tmp_path: Path) -> None:
    started = time.monotonic()
    images = dataset.load(SYSTEM_COPY)
    gzipped_seconds = time.monotonic() - started
    assert images.train_images.shape == (60_000, 1, 28, 28)
    assert images.test_images.shape == (10_000, 1, 28, 28)
    assert images.train_labels.bincount().tolist() == [6_000] * 10
    assert images.test_labels.bincount().tolist() == [1_000] * 10
    assert gzipped_seconds < 10  # 0.4 s on a quiet machine; a guard against a slip by orders of magnitude

    files.write(full, tmp_path)
    for file in files.FULL:
        assert read_idx(tmp_path / file.name, file)[: len(file.header)] == file.header


def test_both_datasets_are_registered() -> None:
    records = {record.name: record for record in dataset.convbench_datasets()}
    assert list(records) == ["fashion-mnist", "fashion-mnist-sample"]
    assert all(record.num_classes == 10 for record in records.values())


def test_the_plugin_imports_nothing_heavy() -> None:
    heavy = "torch", "torchvision", "numpy", "pandas"
    program = f"""
        import sys
        import convbench.plugins.datasets.fashion_mnist.dataset, convbench.plugins.datasets.fashion_mnist.cli
        convbench.plugins.datasets.fashion_mnist.dataset.convbench_datasets()
        sys.exit(", ".join(name for name in {heavy!r} if name in sys.modules) or 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
