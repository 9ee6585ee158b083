"""Every cheat of the museum is caught, with a sentence that says what it did; their honest twin is not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from conftest import exhaustive
from convbench.results.schema import KINDS, Row
from convbench.results.storage.store import RunStore
from convbench.suites import run
from convbench.suites.config.suite import Budget, RecipeOverrides, Suite, Timing

pytestmark = [pytest.mark.usefixtures("preloaded_servers"), pytest.mark.timeout(1200)]  # one run for all

ROOT = Path(__file__).parents[3]
MUSEUM = Path(__file__).parents[2].joinpath("museum")
CHEATS = sorted(path.stem for path in MUSEUM.glob("*.py") if path.stem not in ("__init__", "honest"))


def registered(name: str) -> str:
    return name.replace("_", "-")


def cheat(name: str) -> ModuleType:
    return import_module(f"museum.{name}")


FEW = {cheat(name).CAUGHT_BY: name for name in CHEATS}.values()  # one for each defence
RUN = pytest.mark.parametrize("name", [name if name in FEW else exhaustive(name) for name in CHEATS])


@dataclass
class Show:
    """The run of all whose tests were asked for, together."""

    path: Path
    rows: dict[str, list[Row]]

    def caught(self, name: str) -> Row:
        """The row that says what it did; those after it say that they were not measured."""
        rows = [row for row in self.rows[name] if row.status != "ok" and "not measured" not in str(row.error)]
        assert len(rows) == 1, [(row.kind, row.status, row.error) for row in self.rows[name]]
        return rows[0]


def install(site: Path, distribution: str, name: str, module: str) -> None:
    """Put the metadata of a distribution with one plugin into a directory."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[convbench]\n{name} = {module}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A distribution with an entry point for every file."""
    site = tmp_path_factory.mktemp("museum") / "site-packages"
    for name in (*CHEATS, "honest"):
        install(site, f"museum-{registered(name)}", name, f"museum.{name}")
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))


@pytest.fixture(scope="module")
def show(site: Path, request: pytest.FixtureRequest) -> Show:
    tests = [item for item in request.session.items if item.path == request.path]
    wanted = sorted(
        {item.callspec.params["name"] for item in tests if {"show", "name"} <= {*item.fixturenames}}
    )
    suite = Suite(
        name="museum",
        dataset="gallery",
        architectures=("gallery",),
        backends=("honest", "busy", *(registered(name) for name in wanted)),
        devices=("cpu",),
        batch_sizes=(16,),
        recipe=RecipeOverrides(epochs=2),
        budget=Budget(train_seconds=60.0, timeout_seconds=100.0, memory_mb=3000),
        timing=Timing(rounds=1, warmup_steps=1, steps=40, max_steps=60, precision=0.001, threads=1),
    )
    result = run(suite, out=site.with_name("run"))
    rows: dict[str, list[Row]] = {}
    for row in result.rows:
        rows.setdefault(row.backend.replace("-", "_"), []).append(row)
    return Show(result.path, rows)


@RUN
def test_a_cheat_is_caught_and_told_what_it_did(show: Show, name: str) -> None:
    row, plugin = show.caught(name), cheat(name)
    assert row.status == getattr(plugin, "STATUS", "incorrect")
    assert plugin.SAYS in str(row.error)
    assert KINDS.index(row.kind) <= KINDS.index(getattr(plugin, "AT", "verify"))


@RUN
def test_a_cheat_gets_no_number(show: Show, name: str) -> None:
    for row in show.rows[name]:
        if row.kind != "verify":
            assert row.images_per_second is None
            assert row.step_ms_median is None
            assert row.val_loss is None


@pytest.mark.parametrize("backend", ["honest", "busy"])
def test_the_honest_version_is_measured(show: Show, backend: str) -> None:
    assert [(row.kind, row.status, row.error) for row in show.rows[backend]] == [
        ("verify", "ok", None),
        ("time", "ok", None),
        ("train", "ok", None),
    ]
    with RunStore.open(show.path) as store:
        assert {sample.backend for sample in store.samples()} == {"honest", "busy"}
        assert {epoch.backend for epoch in store.epochs()} == {"honest", "busy"}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_says_what_it_does(name: str) -> None:
    plugin = cheat(name)
    assert plugin.__doc__
    assert plugin.__doc__.endswith(".")
    (backend,) = plugin.convbench_backends()
    assert backend.name == registered(name)


def test_the_page_of_cheats_is_fresh() -> None:
    command = [sys.executable, ROOT / "scripts" / "make_cheats.py", "--check"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_is_linked_is_there() -> None:
    page = ROOT / "docs" / "cheats.md"
    for link in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
