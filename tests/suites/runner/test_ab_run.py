"""`convbench run --against`: two versions of a package in one run, their processes interleaved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from convbench.registry import NothingRan, UsageError
from convbench.results import Row, read_results
from convbench.suites.processes.versions import install, is_path
from convbench.suites.runner.ab_run import in_turn

OFFLINE = ("--no-index", "--no-build-isolation")
PROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "Quick_Conv"
    version = "{version}"

    [project.entry-points.convbench]
    quick = "quick_conv"
"""
MODULE = """
    import time
    from convbench.registry import Backend, hookimpl

    def conv2d(*arguments, **options):
        import torch
        time.sleep({seconds})
        return torch.nn.functional.conv2d(*arguments, **options)

    @hookimpl
    def convbench_backends():
        return [Backend("quick", "waits for {seconds} s", load=lambda: {{"conv2d": conv2d}})]
"""
Convbench = Callable[..., subprocess.CompletedProcess[str]]


def project(directory: Path, version: str, seconds: float) -> Path:
    """The sources of one version."""
    directory.mkdir()
    (directory / "pyproject.toml").write_text(dedent(PROJECT).format(version=version))
    (directory / "quick_conv.py").write_text(dedent(MODULE).format(seconds=seconds))
    return directory


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions as sources, and the newer one, which is slower, installed in `site`."""
    pytest.importorskip("hatchling")
    work = tmp_path_factory.mktemp("against")
    project(work / "old", "1.0", 0.001)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        *OFFLINE,
        "--target",
        work / "site",
    ]
    subprocess.run([*command, project(work / "new", "2.0", 0.05)], check=True, capture_output=True)
    return work


@pytest.fixture(scope="module")
def convbench(work: Path) -> Convbench:
    """The command line in a process that sees the newer version."""
    path = os.pathsep.join(filter(None, (str(work / "site"), os.environ.get("PYTHONPATH"))))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "convbench.registry", *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work)

    return call


@pytest.fixture(scope="module")
def ended(work: Path, convbench: Convbench) -> subprocess.CompletedProcess[str]:
    """Both versions measured."""
    suite = (
        "--suite",
        "ops",
        "--architecture",
        "layers/lenet-conv1",
        "--backend",
        "quick",
        "--batch-size",
        "4",
    )
    # a pair has as many rounds as there may be, and a suite's total budget leaves none out
    length = ("--rounds", "2", "--max-rounds", "3", "--warmup-steps", "1", "--steps", "3", "--threads", "1")
    length += ("--set", "budget.total_seconds=0.1", "--set", "timing.quiet_seconds=0")
    return convbench(
        "run", *suite, *length, "--out", "both", "--against", "./old", "--pip-options", " ".join(OFFLINE)
    )


@pytest.fixture
def rows(ended: subprocess.CompletedProcess[str], work: Path) -> list[tuple[str, Row]]:
    assert ended.returncode == 0, ended.stderr
    return [
        (side, Row(**{name: value if value == value else None for name, value in row.items()}))
        for side in ("base", "new")
        for row in read_results(work / "both" / side).astype(object).to_dict("records")
    ]


def test_each_side_measured_its_own_version(rows: list[tuple[str, Row]]) -> None:
    assert {(side, row.plugin_version, row.status) for side, row in rows} == {
        ("base", "1.0", "ok"),
        ("new", "2.0", "ok"),
    }
    assert {row.run_id for _, row in rows} == {"both"}
    times = {side: [row.step_ms_median or 0 for other, row in rows if other == side and row.kind == "time"]
             for side in ("base", "new")}  # fmt: skip
    assert min(times["new"]) > 50
    assert min(times["base"]) < 50


def test_both_orders_are_alike_and_every_round_has_both(rows: list[tuple[str, Row]]) -> None:
    base, new = ([row for other, row in rows if other == side] for side in ("base", "new"))
    assert [(row.kind, row.round, row.order) for row in base] == [
        (row.kind, row.round, row.order) for row in new
    ]
    assert sum(row.kind == "time" for row in base) == 3


def test_processes_are_told_in_turn_with_their_side(ended: subprocess.CompletedProcess[str]) -> None:
    told = [line for line in ended.stderr.splitlines() if line.startswith("[")]
    sides = [line.split()[1] for line in told]
    assert told[-1].startswith("[8/8] ")
    assert all({*pair} == {"base:", "new:"} for pair in zip(sides[::2], sides[1::2], strict=True))


def test_the_run_ends_with_the_comparison(ended: subprocess.CompletedProcess[str]) -> None:
    assert "slower" in ended.stdout
    assert "convbench compare both/base both/new" in ended.stderr


def test_the_gate_closes(ended: subprocess.CompletedProcess[str], convbench: Convbench) -> None:
    gate = convbench("compare", "both/base", "both/new", "--fail-if-slower", "5%")
    assert gate.returncode == 1, gate.stderr
    assert convbench("compare", "both/new", "both/base", "--fail-if-slower", "5%").returncode in (0, 3)


def test_the_base_is_named_in_its_environment(ended: subprocess.CompletedProcess[str], work: Path) -> None:
    found = [json.loads((work / "both" / side / "environment.json").read_text()) for side in ("base", "new")]
    assert found[0].pop("in_place_of_the_installed") == {
        "package": "./old",
        "versions": {"quick-conv": "1.0"},
    }
    assert "in_place_of_the_installed" not in found[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "./nowhere"], "'./nowhere' cannot be installed: that path does not exist"),
        (["--against", "./old", "--resume", "both"], "--against and --resume exclude each other"),
        (["--pip-options", "--no-index"], "--pip-options are for --against"),
        (["--against", "./old", "--pip-options", "'"], '--pip-options is "\'", which is no command line: No'),
    ],
)
def test_what_cannot_be_done_is_code_2(convbench: Convbench, arguments: list[str], message: str) -> None:
    ended = convbench("run", "--suite", "ops", "--backend", "quick", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("package", "path"),
    [
        ("./fast", True),
        ("../fast[all]", True),
        ("dist/fast-1.0-py3-none-any.whl", True),
        ("fast==1.0", False),
        ("fast[all]>=1.0", False),
        ("git+https://example.org/fast@v1", False),
        ("git+ssh://git@example.org/fast", False),
        ("https://example.org/fast.zip", False),
        ("file:///tmp/fast", False),
        ("fast @ file:///tmp/fast", False),
    ],
)
def test_paths_are_told_from_requirements_and_addresses(package: str, path: bool) -> None:
    assert is_path(package) == path


def test_a_base_of_which_nothing_is_installed_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"brings quick-conv, of which no version is installed here"):
        install(str(work / "old"), tmp_path / "base", OFFLINE)


def test_a_base_that_python_would_not_take_is_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the new version is installed in an editable form that comes before every path."""
    monkeypatch.syspath_prepend(str(work / "site"))
    hooked = tmp_path / "hook"
    hooked.mkdir()
    (hooked / "sitecustomize.py").write_text(
        dedent(f"""
        import importlib.util, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "quick_conv":
                    return importlib.util.spec_from_file_location(name, {str(work / "new" / "quick_conv.py")!r})
        sys.meta_path.insert(0, Finder())
        """)
    )
    monkeypatch.syspath_prepend(str(hooked))
    with pytest.raises(
        UsageError, match=r"Python imports 'quick_conv' from .*/new/quick_conv.py all the same"
    ):
        install(str(work / "old"), tmp_path / "base", OFFLINE)


def test_what_ends_one_side_ends_the_other() -> None:
    caught: list[str] = []

    def run(name: str, error: BaseException | None) -> Iterator[None]:
        try:
            yield
            if error:
                raise error
            yield
            yield
        except BaseException as ending:
            caught.append(f"{name} {type(ending).__name__}")
            raise

    class Ordered:
        def sample(self, values: list[int], count: int) -> list[int]:
            return values

    for error in (KeyboardInterrupt(), NothingRan("nothing")):
        with pytest.raises(type(error)):
            in_turn([run("base", None), run("new", error)], Ordered())  # type: ignore[arg-type, list-item]
    assert caught == ["new KeyboardInterrupt", "base KeyboardInterrupt", "new NothingRan", "base NothingRan"]
