"""`convbench data`: fetching ahead, alone and with others at the same time, and saying where the data is."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import click
import pytest

from convbench.plugins.datasets.fashion_mnist import (
    cli,
    dataset,
    debian_package,
    fetch,
    files,
    sources,
    torchvision_download,
)
from convbench.plugins.datasets.fashion_mnist.torchvision_download import Patience
from convbench.registry import DataError
from fashion_mnist_fixtures import Contents, Mirror, cache, put

pytest_plugins = ["fashion_mnist_fixtures"]
pytestmark = pytest.mark.usefixtures("mirror")


def run(*arguments: str | Path) -> None:
    """Run `convbench data ...` in this process."""

    @click.group()
    def group() -> None: ...

    cli.convbench_commands(group)
    group.main(["data", *map(str, arguments)], standalone_mode=False)


def silent(message: str) -> None: ...


# `convbench data fetch`


def test_fetch_says_where_the_data_is(
    published: Contents, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.serve(published)
    run("fetch")
    out, err = capsys.readouterr()
    assert out == f"{cache()}\n"
    assert "fetched by torchvision's download, and verified" in err
    run("fetch")
    out, err = capsys.readouterr()
    assert (out, err) == (f"{cache()}\n", "already there, and good\n")
    assert mirror.downloads == 1


def test_fetch_is_content_with_the_system_copy(published: Contents, mirror: Mirror) -> None:
    system = put(published, sources.SYSTEM_ROOT / "fashion-mnist", ".gz")
    assert fetch.ahead(None, silent) == (system, None)
    assert mirror.downloads == 0


def test_fetch_fills_a_given_directory_from_this_machine_first(
    published: Contents, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = put(published, sources.SYSTEM_ROOT / "fashion-mnist", ".gz")
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path / "variable"))
    for root, given in ((tmp_path / "argument", True), (tmp_path / "variable", False)):
        directory, way = fetch.ahead(root if given else None, silent)
        assert (directory, way) == (root / "fashion-mnist", f"the copy in {system}")
        assert dataset.load(root).name == "fashion-mnist"
    assert mirror.downloads == 0


@pytest.mark.parametrize("layout", ["fashion-mnist", "."])
def test_fetch_repairs_a_damaged_copy_and_keeps_other_files(
    layout: str, published: Contents, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.serve(published)
    damaged = put(published, tmp_path / "data" / layout, ".gz")
    (damaged / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")
    (damaged / "notes.txt").write_text("mine")
    assert fetch.ahead(tmp_path / "data", silent)[1] == "torchvision's download"
    assert dataset.load(tmp_path / "data").name == "fashion-mnist"
    assert (damaged / "notes.txt").read_text() == "mine"


def test_fetch_repairs_a_cache_that_stands_before_a_good_system_copy(published: Contents) -> None:
    put(published, sources.SYSTEM_ROOT / "fashion-mnist")
    (put(published, cache()) / "train-labels-idx1-ubyte").unlink()
    assert fetch.ahead(None, silent)[0] == cache()
    assert dataset.load().name == "fashion-mnist"


def test_fetch_reads_a_good_copy_that_it_could_not_write(
    published: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put(published, tmp_path / "data")

    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert fetch.ahead(directory, silent) == (directory, None)
    with pytest.raises(DataError, match=f"{tmp_path / 'other'} cannot be written to: Permission denied"):
        fetch.ahead(tmp_path / "other", silent)


def test_fetch_that_fails_names_every_way_and_the_sample() -> None:
    with pytest.raises(DataError) as error:
        run("fetch")
    assert str(error.value) == (
        "FashionMNIST not fetched: torchvision's download failed: the fake mirror cannot be reached;"
        " Debian's dataset-fashion-mnist cannot be taken: this machine has no apt-get;"
        " runs use the embedded sample"
    )


# Real processes at the same time


def process(statement: str) -> subprocess.Popen[str]:
    """Start `statement` in a process of its own, with this test's dataset and places."""
    program = f"""
        import sys
        from pathlib import Path
        from convbench.plugins.datasets.fashion_mnist import dataset, fetch, files, sources
        from convbench.plugins.datasets.idx import IdxFile
        files.FULL = {files.FULL!r}
        sources.SYSTEM_ROOT = Path({str(sources.SYSTEM_ROOT)!r})
        note = lambda message: None
        {statement}
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_first_use_by_many_processes_downloads_once(published: Contents, mirror: Mirror) -> None:
    mirror.serve(published, delay_seconds=1)
    statements = [
        "print(dataset.load().name)",
        "print(dataset.load().name)",
        "print(fetch.ahead(None, note)[0].name)",
    ]
    started = [process(statement) for statement in statements]
    while any(child.poll() is None for child in started):
        if there := files.find(sources.cache_root()):
            assert files.problem(there) is None
        time.sleep(0.005)
    assert [child.communicate()[0].strip() for child in started] == ["fashion-mnist"] * 3
    assert [child.returncode for child in started] == [0] * 3
    assert mirror.downloads == 1
    assert not list(sources.cache_root().glob(".fashion-mnist-fetching-*"))


def test_many_processes_without_a_network_try_once(mirror: Mirror) -> None:
    started = [process("print(dataset.load().name)") for _ in range(2)]
    assert [child.communicate()[0].strip() for child in started] == ["fashion-mnist-sample"] * 2
    assert mirror.downloads == torchvision_download.ATTEMPTS


def test_waiting_for_another_fetch_has_an_end(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "AT_FIRST_USE", Patience(deadline_seconds=0, silence_seconds=1))
    sources.cache_root().mkdir(parents=True)
    with (sources.cache_root() / fetch.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another process has been fetching" in str(fetch.at_first_use(silent))
    assert mirror.downloads == 0


def test_a_file_system_without_locks_is_fetched_to_all_the_same(
    published: Contents, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    mirror.serve(published)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert fetch.ahead(None, silent) == (cache(), "torchvision's download")


def test_a_killed_fetch_leaves_nothing_mistaken_for_data(published: Contents, mirror: Mirror) -> None:
    put(published, mirror.files)
    mirror.behave("shutil.copy(files / 'train-images-idx3-ubyte', raw)\ntime.sleep(100)")
    child = process("fetch.ahead(None, note)")
    pattern = ".fashion-mnist-fetching-*/*/FashionMNIST/raw/train-images-idx3-ubyte"
    until = time.monotonic() + 30
    while not list(sources.cache_root().glob(pattern)):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()

    assert files.find(sources.cache_root()) is None
    mirror.serve(published)
    directory, way = fetch.ahead(None, silent)
    assert (directory, way) == (cache(), "torchvision's download")
    assert not list(sources.cache_root().glob(".fashion-mnist-fetching-*"))


# Debian's package


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an apt-get and a dpkg-deb of this test's; returns the directory of the programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setattr(debian_package, "unavailable", REAL_UNAVAILABLE)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return programs


REAL_UNAVAILABLE = debian_package.unavailable


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_fetch_falls_back_to_debians_package(published: Contents, debian: Path, tmp_path: Path) -> None:
    put(published, tmp_path / "package", ".gz")
    program(debian / "apt-get", 'echo "W: unsandboxed as root" >&2; touch dataset-fashion-mnist_0_all.deb')
    inside = debian_package.INSIDE
    program(debian / "dpkg-deb", f'mkdir -p "$3/{inside}" && cp {tmp_path}/package/* "$3/{inside}"')
    assert fetch.ahead(None, silent) == (cache(), "Debian's package")
    assert files.problem(cache()) is None
    assert dataset.load().name == "fashion-mnist"


@pytest.mark.parametrize(
    ("apt_get", "said"),
    [
        (
            "echo 'E: Unable to locate package dataset-fashion-mnist' >&2; exit 100",
            "`apt-get update` as root",
        ),
        (
            "echo 'W: a\nE: Failed to fetch it  Connection failed.' >&2; exit 100",
            "Failed to fetch it  Connec",
        ),
        ("exit 0", "apt-get could not download dataset-fashion-mnist: it gave no reason"),
        (
            "touch dataset-fashion-mnist_0_all.deb",
            "dpkg-deb could not unpack dataset-fashion-mnist_0_all.deb: bad",
        ),
    ],
)
def test_what_goes_wrong_with_the_package_is_said(
    apt_get: str, said: str, debian: Path, tmp_path: Path
) -> None:
    program(debian / "apt-get", apt_get)
    program(debian / "dpkg-deb", "echo bad archive >&2; exit 2")
    with pytest.raises(DataError, match=said):
        debian_package.obtain(tmp_path)


def test_a_machine_without_apt_is_told_so(
    debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(debian))
    with pytest.raises(DataError, match="this machine has no apt-get and no dpkg-deb"):
        debian_package.obtain(tmp_path)


@pytest.mark.exhaustive
def test_the_real_package_holds_the_real_data(tmp_path: Path) -> None:
    if reason := REAL_UNAVAILABLE():
        pytest.skip(reason)
    known = subprocess.run(
        ["apt-get", "--print-uris", "download", debian_package.PACKAGE], capture_output=True, cwd=tmp_path
    )
    if known.returncode:
        pytest.skip("apt-get has no lists with dataset-fashion-mnist")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(debian_package, "unavailable", REAL_UNAVAILABLE)
            directory = debian_package.obtain(tmp_path)
    except DataError as error:
        pytest.skip(f"Debian's archive cannot be reached: {error}")
    assert files.problem(directory) is None


# `convbench data where`


def test_where_tells_every_source_and_the_one_in_use(
    published: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    put(published, sources.SYSTEM_ROOT / "fashion-mnist", ".gz")
    run("where", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["used"] == "system"
    assert answer["path"] == str(sources.SYSTEM_ROOT / "fashion-mnist")
    states = {row["source"]: row["state"] for row in answer["sources"]}
    assert states == {
        "--data-dir": "not set",
        "CONVBENCH_DATA": "not set",
        "cache": "absent",
        "system": "good",
        "download": "untried",
        "sample": "good",
    }
    run("where")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("->"))
    assert line.split() == ["->", "system", "good", str(sources.SYSTEM_ROOT / "fashion-mnist")]


def test_where_follows_what_load_does(
    published: Contents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def used(*arguments: str | Path) -> str | None:
        run("where", "--json", *arguments)
        return str(json.loads(capsys.readouterr().out)["used"])

    assert used() == "download"
    dataset.load()
    assert used() == "sample"
    put(published, cache())
    assert used() == "cache"
    assert used("--data-dir", put(published, tmp_path / "data")) == "--data-dir"


def test_where_ends_as_a_refusal_when_a_run_would_be_refused(
    published: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(published, cache()) / "train-images-idx3-ubyte"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path} is empty"):
        run("where", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["used"] is None
    assert f"{path} is empty" in answer["sources"][2]["detail"]
