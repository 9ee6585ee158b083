"""What many tests share: a plugin that is installed for one test."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from convbench.suites.load import Observation

Install = Callable[..., str]


@pytest.fixture(autouse=True, scope="session")
def decisions_of_auto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `auto` decides in tests, and in processes they start, is none of the user's."""
    directory = tmp_path_factory.mktemp("auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVBENCH_AUTO", os.fspath(directory))
        yield directory


@pytest.fixture(autouse=True, scope="session")
def quiet_machine() -> Iterator[None]:
    """Runs of these tests do not wait for other programs to end: what they measure is not looked at."""
    nothing = Observation(0.0, None, None, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convbench.suites.quiet.look_now", lambda: nothing)
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution for this test, as pip would leave it: `install("acme", source_of_its_module)`.

    Its one entry point is named as the distribution, unless `entry_point` names it otherwise. Discovery then
    finds it, in this process and in every one that inherits PYTHONPATH.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    modules = []

    def write(distribution: str, source: str, *, version: str = "1.0", entry_point: str | None = None) -> str:
        module = f"{distribution.replace('-', '_')}_of_this_test"
        (site / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        entry = f"[convbench]\n{entry_point or distribution} = {module}\n"
        (info / "entry_points.txt").write_text(entry, encoding="utf-8")
        importlib.invalidate_caches()
        modules.append(module)
        return module

    yield write
    for module in modules:
        sys.modules.pop(module, None)
