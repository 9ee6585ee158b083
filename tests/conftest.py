"""What many tests share: the environment they run in, and a plugin that is installed for one test."""

from __future__ import annotations

import importlib
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from convbench.suites.machine.load import Observation

if TYPE_CHECKING:
    from preloaded import Preloaded

Install = Callable[..., str]

SESSION = "CONVBENCH_TEST_SESSION"  # in the environment of every process that tests start
# cases are small, and other tests run beside: a second thread costs more than it brings, and a thread that is tied
# to a core may share it with that of another test. What is to have several threads asks for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_PROC_BIND", "false")
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(name, None)  # tables are as on no terminal, also where pytest-xdist gives a width
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
    del os.environ[name]  # a pytest that a test starts is not one of ours that test in parallel
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell's `&` ignores SIGINT, and what we start would inherit that: tests that interrupt would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


def exhaustive(*values: Any) -> Any:
    """A parameter that only repeats what others show, and is left to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n`, one process takes all tests of a file, or of a backend in test_backends.py: they share."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            backend = re.search(r"\[(\w+)", test) if file.endswith("test_backends.py") else None
            return f"{file} {backend[1]}" if backend else file

    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def no_process_outlives_the_session() -> Iterator[None]:
    """Kill what tests have started and left behind, and fail with what it was."""
    token = secrets.token_hex(16)
    os.environ[SESSION] = token
    yield
    left = processes_with(token)
    _, alive = psutil.wait_procs(left, timeout=5)  # some are just ending
    commands = [each.info["cmdline"] for each in alive]
    for each in alive:
        each.kill()
    assert not commands, f"tests left processes behind: {commands}"


def processes_with(token: str) -> list[psutil.Process]:
    """Those whose environment says that this session started them."""
    return [
        each
        for each in psutil.process_iter(["cmdline", "environ", "status"])
        if (each.info["environ"] or {}).get(SESSION) == token and each.info["status"] != psutil.STATUS_ZOMBIE
    ]


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
        patch.setattr("convbench.suites.runner.quiet.look_now", lambda: nothing)
        if guard := sys.modules.get("convbench.registry.integrity.monkeypatch_guard"):
            guard.originals.cache_clear()  # what tests replace is no plugin's doing
        yield


@pytest.fixture(scope="session")
def preloaded(no_process_outlives_the_session: None, decisions_of_auto: Path) -> Iterator[Preloaded]:
    """A process to fork the servers of runs from; runs `with preloaded.serving()` start in no time."""
    from preloaded import Preloaded

    preloaded = Preloaded()
    yield preloaded
    preloaded.close()


@pytest.fixture(scope="module")
def preloaded_servers(preloaded: Preloaded) -> Iterator[None]:
    """Runs of a module start in no time."""
    with preloaded.serving():
        yield


@pytest.fixture(scope="module")
def nothing_late() -> Iterator[None]:
    """Wrong answers of a module's tests are not watched for late writes: none of them is one."""
    from convbench.registry.conformance import aliasing
    from convbench.registry.integrity.monkeypatch_guard import originals
    from preloaded import take_for_granted

    originals()  # of other modules' tests, before anything is replaced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aliasing, "GRACE_SECONDS", 0.0)
        take_for_granted(patch)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread in this module."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
