"""`convbench list` and `convbench doctor`: what a person sees and what a script reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import misbehaving
from conftest import exhaustive
from convbench.registry import discover
from convbench.registry.cli.main import main
from convbench.registry.cli.terminal import console
from convbench.suites.cli.doctor import _diagnose
from convbench.suites.cli.list import LISTINGS
from convbench.suites.machine.noise import Finding
from convbench.suites.processes import probe

pytestmark = pytest.mark.usefixtures("preloaded_servers")

List = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = misbehaving.install(tmp_path_factory.mktemp("inspection") / "site")
    plugins = site / "misbehaving_plugins.py"
    patient = plugins.read_text()
    bad_suite = 'Path(__file__).with_name("bad.toml")'
    plugins.write_text(f"{patient}\n\n@hookimpl\ndef convbench_suites():\n    return [{bad_suite}]\n")
    (site / "bad.toml").write_text("name = 3\n")
    broken = site / "broken-2.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (broken / "entry_points.txt").write_text("[convbench]\nbroken = no_such_module\n")
    return site


@pytest.fixture
def command(site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> List:
    monkeypatch.setattr(probe, "LISTING_SECONDS", 2.0)

    def run(*arguments: str) -> str:
        with misbehaving.on_path(site), pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        return capsys.readouterr().out

    return run


def by_name(listed: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in listed}


def test_every_kind_is_listed_by_name(command: List, site: Path) -> None:
    text = command("list", "--verbose")
    for kind in LISTINGS:
        assert (f"{kind}:" in text) == (kind != "devices")
    with misbehaving.on_path(site):
        registry = discover()
    for name in (*registry.backends, *registry.architectures, *registry.datasets, *registry.suites):
        assert name in text


def test_all_of_it_is_json_too(command: List) -> None:
    listed = json.loads(command("list", "--json"))
    assert set(listed) == set(LISTINGS) - {"devices"}
    assert {"im2col", "loops", "torch", "right"} <= set(by_name(listed["backends"]))


def test_one_kind_is_a_list(command: List) -> None:
    backends = by_name(json.loads(command("list", "backends", "--json")))
    assert backends["torch"]["plugin"].startswith("convbench ")
    assert backends["right"]["plugin"] == "misbehaving 1.0"
    assert backends["right"]["state"] == "available"
    assert backends["absent"]["state"] == "unavailable: no such card"
    assert backends["never-asked"]["state"] == (
        "unavailable: its check for availability failed: its process exited with code 5"
    )
    assert backends["never-answers"]["state"] == (
        "unavailable: its check for availability failed: no answer within 2 s"
    )


def test_devices_are_those_of_this_machine(command: List) -> None:
    assert json.loads(command("list", "devices", "--json"))[0]["name"] == "cpu"


def test_a_broken_plugin_is_shown_and_harms_nobody(command: List) -> None:
    plugins = by_name(json.loads(command("list", "plugins", "--json")))
    assert plugins["broken"]["plugin"] == "broken 2.0"
    assert plugins["broken"]["state"].startswith("broken: ModuleNotFoundError")
    assert plugins["misbehaving"]["state"] == "loaded"


def test_a_listing_without_what_a_broken_plugin_offers_says_so(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with misbehaving.on_path(site), pytest.raises(SystemExit):
        main(["list", "datasets"])
    assert capsys.readouterr().err.startswith(
        "warning: plugin 'broken' of broken 2.0 is broken: ModuleNotFound"
    )


def test_a_suite_that_cannot_be_used_says_why(command: List) -> None:
    suites = by_name(json.loads(command("list", "suites", "--json")))
    assert "line 1: name is 3; it must be a text" in suites["bad"]["description"]
    assert "LeNet" in suites["lenet"]["description"]


def test_an_unknown_kind_is_refused(site: Path) -> None:
    done = misbehaving.command("list", "backend", site=site)
    assert done.returncode == 2
    assert "unknown kind 'backend'; did you mean 'backends'?" in done.stderr
    assert done.stdout == ""


def test_the_doctor_reports_plugins_devices_data_and_noise(command: List, site: Path) -> None:
    report = json.loads(command("doctor", "--json"))
    assert {"plugins", "devices", "data", "noise"} <= set(report)
    plugins = by_name(report["plugins"])
    assert plugins["broken"]["state"].startswith("broken: ")
    assert (plugins["broken"]["entry_point"], plugins["broken"]["file"]) == (
        "broken = no_such_module",
        "not found",
    )
    assert plugins["misbehaving"] == {
        "name": "misbehaving",
        "distribution": "misbehaving",
        "version": "1.0",
        "entry_point": "misbehaving = misbehaving_plugins",
        "file": str(site / "misbehaving_plugins.py"),
        "state": "loaded",
    }
    assert plugins["convbench.plugins.backends.im2col"]["entry_point"] == "built in"
    assert report["devices"][0]["name"] == "cpu"
    assert report["data"][0]["name"].startswith("fashion-mnist")
    assert report["data"][0]["train_images"] >= 10_000
    noise = {finding["check"]: finding for finding in report["noise"]}
    checks = {"probe", "load", "hypervisor", "throttling", "frequency", "cores", "power", "clock"}
    assert checks <= set(noise)
    assert {finding["state"] for finding in noise.values()} <= {"ok", "warning", "unknown"}
    assert all(finding["found"] and finding["advice"] for finding in noise.values())


def words_of(text: str) -> str:
    return " ".join(text.split())


def test_the_doctor_begins_with_problems(command: List, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding("load", "warning", "other programs take 1.50 of 2 CPUs", "close them"),
        Finding("clock", "ok", "a reading costs 80 ns", "nothing to do"),
        Finding("frequency", "unknown", "no governor can be read", "usual in a virtual machine"),
    ]
    monkeypatch.setattr("convbench.suites.machine.noise.examine", lambda: findings)
    monkeypatch.setenv("COLUMNS", "80")
    text = command("doctor")
    problems, _, rest = text.partition("\nfine:\n")
    assert problems.startswith("problems:\n")
    assert "plugin 'broken' of broken 2.0 is broken: ModuleNotFoundError" in words_of(problems)
    assert "  load: other programs take 1.50 of 2 CPUs\n      close them" in problems
    fine, _, unknown = words_of(rest).partition("cannot be told here: ")
    assert "backends that cannot run here: " in fine
    assert "never-answers (its check for availability failed: no answer within 2 s)" in fine
    assert "data: fashion-mnist" in fine
    assert "machine: clock" in fine
    assert "80 ns" not in fine
    assert unknown == "frequency: no governor can be read; usual in a virtual machine"
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 80


def test_the_doctor_names_known_faults(capsys: pytest.CaptureFixture[str]) -> None:
    fault = {"name": "known fault of oneDNN <3.13, oneDNN 5494", "summary": "wrong; to avoid it, wait"}
    nothing: dict[str, Any] = {"plugins": [], "backends": [], "data": [], "noise": []}
    _diagnose(console(), [], {**nothing, "known_faults": [fault]})
    assert f"  {fault['name']}: {fault['summary']}\n" in capsys.readouterr().out
    _diagnose(console(), [], {**nothing, "known_faults": []})
    assert "known fault" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, exhaustive(60)])
def test_listings_fit_the_terminal(
    command: List, site: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = command("list")
    lines = [line for line in text.splitlines() if "bad.toml" not in line]  # a long path is one word
    assert max(map(len, lines)) <= width
    words = set(text.split())
    with misbehaving.on_path(site):
        registry = discover()
    for catalog in (registry.backends, registry.architectures, registry.datasets, registry.suites):
        for name in catalog:
            library, slash, _ = name.partition("/")
            assert name in words or (slash and f"{library}/*" in words), name
    for backend in registry.backends.values():
        assert {word for word in backend.summary.split() if len(word) < 30} <= words


def test_a_library_of_models_is_one_line(command: List) -> None:
    text = command("list", "architectures")
    (line,) = [line for line in text.splitlines() if "torchvision" in line]
    assert words_of(line).startswith("torchvision/* 80 models")
    assert command("list", "architectures", "--verbose").count("torchvision/") > 70


def test_built_in_plugins_are_counted(command: List) -> None:
    lines = [words_of(line) for line in command("list", "plugins").splitlines()]
    ours = [plugin for plugin in discover(installed=()).plugins if plugin.distribution == "convbench"]
    assert any(line.startswith(f"built in {len(ours)} loaded") for line in lines)
    assert any(line.startswith("broken broken: ModuleNotFoundError") for line in lines)
    assert not any("im2col" in line for line in lines)
