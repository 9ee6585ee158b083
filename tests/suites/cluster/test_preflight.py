"""What of two machines must be alike, and what of Ray's settings must not reach a worker."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from convbench.registry import UsageError
from convbench.suites.cluster import preflight
from convbench.suites.cluster.connection import connected
from convbench.suites.cluster.node import own_environment
from convbench.suites.cluster.preflight import Description, describe, differences

OURS = Description(
    versions={"Python": "3.11.7", "torch": "2.11.0", "convbench": "0.1.0"},
    plugins={"convbench": {"convbench/a.py": "1", "convbench/b.py": "2"}, "fast": {"fast/kernel.py": "3"}},
    cores=4,
    cpus=8,
    memory_mb=1000,
    processor="some",
)


def test_machines_may_differ_in_what_they_are() -> None:
    assert differences(OURS, replace(OURS, cores=2, cpus=2, memory_mb=None, processor="another")) == []


@pytest.mark.parametrize("name", OURS.versions)
def test_another_version_is_named(name: str) -> None:
    (found,) = differences(OURS, replace(OURS, versions={**OURS.versions, name: "0.9"}))
    assert found == f"{name} is 0.9, and {OURS.versions[name]} where the run was started"


def test_a_plugin_with_other_content_is_named_with_its_files() -> None:
    plugins = {**OURS.plugins, "fast": {"fast/kernel.py": "4", "fast/new.py": "5"}}
    assert differences(OURS, replace(OURS, plugins=plugins)) == [
        "plugin package 'fast' has other content: fast/kernel.py and fast/new.py"
    ]


def test_a_plugin_on_some_machines_only_is_named() -> None:
    without = {"convbench": OURS.plugins["convbench"]}
    assert differences(OURS, replace(OURS, plugins=without)) == ["plugin package 'fast' is missing"]
    assert differences(replace(OURS, plugins=without), OURS) == ["plugin package 'fast' is only there"]


def test_this_machine_is_like_itself() -> None:
    here = describe()
    assert differences(here, describe()) == []
    assert here.versions["torch"] != "missing"
    assert "convbench/suites/cluster/preflight.py" in here.plugins["convbench"]
    assert not any("__pycache__" in name for name in here.plugins["convbench"])


def test_a_changed_file_of_a_plugin_changes_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fast_convolution"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "kernel.cu").write_text("one")
    (tmp_path / "alone_convolution.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(preflight._digests("fast_convolution"))
    assert set(before) == {"fast_convolution/__init__.py", "fast_convolution/inner/kernel.cu"}
    (package / "inner" / "kernel.cu").write_text("two")
    after = dict(preflight._digests("fast_convolution"))
    assert {name for name in before if before[name] != after[name]} == {"fast_convolution/inner/kernel.cu"}
    assert [name for name, _ in preflight._digests("alone_convolution")] == ["alone_convolution.py"]
    assert dict(preflight._digests("no_such_package")) == {}


def test_of_a_namespace_package_in_two_places_the_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, modules in (("first", ("fast",)), ("second", ("fast", "more"))):
        for module in modules:
            package = tmp_path / place / "spread_convolution" / module
            package.mkdir(parents=True)
            (package / "__init__.py").write_text(place)
    (tmp_path / "second" / "spread_convolution" / "fast" / "unused.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    found = dict(preflight._digests("spread_convolution"))
    assert set(found) == {"spread_convolution/fast/__init__.py", "spread_convolution/more/__init__.py"}
    assert found["spread_convolution/fast/__init__.py"] != found["spread_convolution/more/__init__.py"]


RAY = "/site/ray/"


def environment(
    daemon: dict[str, str], process: dict[str, str], device: str = "cpu", asked: dict[str, str] | None = None
) -> dict[str, str]:
    path = ["/mine", f"{RAY}thirdparty_files", f"{RAY}_private/workers", "/site"]
    return own_environment(daemon, process, asked or {}, device, path, RAY)


def test_a_worker_sees_the_variables_of_its_machine_and_none_of_rays() -> None:
    daemon = {
        "HOME": "/h",
        "RAY_CLIENT_MODE": "0",
        "LD_PRELOAD": f"{RAY}core/libjemalloc.so",
        "GOMP_SPINCOUNT": "1",
    }
    process = {
        **daemon,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONBREAKPOINT": "ray.util.rpdb",
    }
    assert environment(daemon, process) == {"HOME": "/h", "GOMP_SPINCOUNT": "1", "PYTHONPATH": "/mine:/site"}


def test_what_the_user_preloads_stays() -> None:
    daemon = {"LD_PRELOAD": f"{RAY}core/libjemalloc.so:/lib/libtcmalloc.so", "CUDA_VISIBLE_DEVICES": "2,3"}
    found = environment(daemon, {"CUDA_VISIBLE_DEVICES": "3"})
    assert found["LD_PRELOAD"] == "/lib/libtcmalloc.so"
    assert found["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_workers_of_an_accelerators_slot_see_that_one() -> None:
    daemon = {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert environment(daemon, {"CUDA_VISIBLE_DEVICES": "3"}, "cuda")["CUDA_VISIBLE_DEVICES"] == "3"


def test_variables_that_the_user_told_ray_to_set_arrive() -> None:
    assert environment({"A": "1"}, {}, asked={"A": "2", "CONVBENCH_DATA": "/data"}) == {
        "A": "2", "CONVBENCH_DATA": "/data", "PYTHONPATH": "/mine:/site",
    }  # fmt: skip


def test_without_ray_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"^a cluster needs Ray, .*pip install 'convbench\[cluster\]'$"),
        connected("local"),
    ):
        pass


def test_ray_client_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="ray job submit"), connected("ray://head:10001"):
        pass
