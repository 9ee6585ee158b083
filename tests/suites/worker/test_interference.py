"""A package that changes torch and Python when it is loaded touches nobody but itself, and is named."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import misbehaving
from convbench.registry import discover
from convbench.registry.cli.main import main
from convbench.results.schema import Row
from convbench.suites import run

pytestmark = pytest.mark.usefixtures("preloaded_servers")

# what needs no torch, and what needs it
SLOWS = """
import os, statistics, sys, time
from pathlib import Path
from convbench.registry import Backend, hookimpl

if "torch" in sys.modules:
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    register_module_forward_pre_hook(lambda module, inputs: time.sleep(0.002))
    torch._C._set_mkldnn_enabled(False)
    torch.nn.Linear.forward = lambda self, input: input
    if os.getpid() != TESTS:
        Path(__file__).with_suffix(".loaded").touch()
statistics.median = min

def right(*arguments, **options):
    import torch
    return torch.nn.functional.conv2d(*arguments, **options)

@hookimpl
def convbench_backends():
    return BACKENDS
"""
OFFERS = {
    "slows": "[]",
    "slows_itself": '[Backend("slows-itself", "a fake", load=lambda: {"conv2d": right})]',
}


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package without a backend that slows the others, and one with a backend that does."""
    site = tmp_path_factory.mktemp("interference")
    for module, backends in OFFERS.items():
        (site / f"{module}.py").write_text(
            SLOWS.replace("BACKENDS", backends).replace("TESTS", str(os.getpid()))
        )
        info = site / f"{module}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[convbench]\n{module} = {module}\n")
    return site


@pytest.fixture(scope="module")
def site(offers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both beside fake plugins."""
    fakes = misbehaving.install(tmp_path_factory.mktemp("fakes") / "site-packages")
    with misbehaving.on_path(fakes), misbehaving.on_path(offers):
        yield offers
    for module in OFFERS:
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def rows(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Row]:
    result = run(misbehaving.suite("right", "slows-itself"), out=tmp_path_factory.mktemp("run") / "run")
    return {(row.backend, row.kind): row for row in result.rows}


def test_no_worker_loads_what_its_combination_does_not_need(
    rows: dict[tuple[str, str], Row], site: Path
) -> None:
    assert [rows["right", kind].status for kind in ("verify", "time", "train")] == ["ok", "ok", "ok"]
    assert site.joinpath("slows_itself.loaded").exists()
    assert not site.joinpath("slows.loaded").exists()


def test_the_row_of_its_own_backend_names_it(rows: dict[tuple[str, str], Row]) -> None:
    row = rows["slows-itself", "verify"]
    assert row.status == "incorrect"
    assert "plugin 'slows_itself' of slows_itself 2.0 changed" in str(row.error)
    assert "torch.nn.modules.linear.Linear.forward was replaced by <lambda> of slows_itself" in str(row.error)
    assert rows["slows-itself", "time"].images_per_second is None


def test_this_process_is_as_it_was(site: Path) -> None:
    median = statistics.median
    for module in OFFERS:
        sys.modules.pop(module, None)
    found = {plugin.name: plugin for plugin in discover().interfering}
    assert set(found) == set(OFFERS)
    assert statistics.median is median
    assert "statistics.median was replaced by min of builtins" in found["slows"].interference
    for module in OFFERS:
        sys.modules.pop(module, None)
    (only,) = discover(distributions=["slows"]).interfering
    assert only.name == "slows"
    assert discover(distributions=[]).interfering == ()


def test_what_others_replaced_before_is_left_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "mean", max)
    for module in OFFERS:
        sys.modules.pop(module, None)
    assert not any("mean was" in change for plugin in discover().interfering for change in plugin.changes)
    assert statistics.mean is max


def test_it_is_named_by_list_plugins_and_doctor(
    offers: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convbench.suites.machine.noise.examine", list)  # takes seconds
    monkeypatch.setattr("convbench.suites.processes.probe.LISTING_SECONDS", 2.0)
    ended = misbehaving.convbench("list", "plugins", "--json", site=offers)
    states = {entry["name"]: entry["state"] for entry in json.loads(ended.stdout)}
    assert states["convbench.plugins.backends.torch"] == "loaded"
    for name in OFFERS:
        assert "interferes: statistics.median was replaced by min of builtins" in states[name]
        assert "Linear.forward was replaced by <lambda>" in states[name]
        assert "the global hooks of torch's modules was changed from nothing to" in states[name]
        assert "whether oneDNN is used was changed from True to False" in states[name]
    with misbehaving.on_path(offers), pytest.raises(SystemExit):
        main(["doctor"])
    doctor = " ".join(capsys.readouterr().out.split())
    for name in OFFERS:
        sys.modules.pop(name, None)
        assert f"plugin '{name}' of {name} 2.0 changed what others rely on" in doctor


IMPORTS_TORCH = """
import torch
from convbench.registry import Backend, hookimpl

@hookimpl
def convbench_backends():
    yield Backend("early", "a fake", load=lambda: {"conv2d": torch.nn.functional.conv2d})
"""


def test_a_plugin_that_is_the_first_to_import_torch_has_changed_nothing(tmp_path: Path) -> None:
    tmp_path.joinpath("early.py").write_text(IMPORTS_TORCH)
    info = tmp_path / "early-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: early\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[convbench]\nearly = early\n")
    script = """
import sys
from convbench.registry import discover
assert "torch" not in sys.modules
registry = discover()
assert "torch" in sys.modules
print(registry.backend("early").name, registry.interfering)
import inspect, torch
assert inspect.getfile is torch.package.package_importer._patched_getfile, "undone"
"""
    path = os.pathsep.join((str(tmp_path), *sys.path))
    ended = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.stdout == "early ()\n", ended.stderr
