"""`convbench new` writes packages that pip installs, and that pass their own tests as written."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import exhaustive
from convbench.registry import UsageError, discover
from convbench.registry.authoring.scaffold import TEMPLATES, Package, write_package
from convbench.registry.cli import main as cli
from convbench.registry.discovery.contract_version import CONTRACT
from convbench.registry.discovery.plugins import NAME

ROOT = Path(__file__).parents[3]
WRITTEN = {"backend": "3x3.Fast-conv", "architecture": "tiny_net"}  # names with everything that is allowed


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages, and `site`, into which pip installed them without a network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("workshop")
    for kind, name in WRITTEN.items():
        assert call("new", kind, name, "--out", folder) == 0
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder / "site"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *folder.glob("convbench-*")],
        check=True,
        capture_output=True,
    )
    return folder


def start(workshop: Path, *command: str, cwd: str = ".") -> subprocess.CompletedProcess[str]:
    """Run Python with what was installed into the workshop."""
    environment = {**os.environ, "PYTHONPATH": str(workshop / "site"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=workshop / cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("kind", "at_least"),
    [exhaustive("backend", 100), ("architecture", 7)],  # test_authors_guide.py has a backend
)
def test_a_new_package_passes_its_own_tests(workshop: Path, kind: str, at_least: int) -> None:
    ended = start(workshop, "pytest", "-q", "-p", "no:cacheprovider", cwd=f"convbench-{WRITTEN[kind]}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = ended.stdout.splitlines()[-1].split()
    assert int(summary[0]) >= at_least
    assert "skipped" not in ended.stdout.splitlines()[-1]


def test_new_packages_are_listed_with_their_version(workshop: Path) -> None:
    for kind, name in WRITTEN.items():
        listed = start(workshop, "convbench.registry", "list", f"{kind}s")
        assert listed.returncode == 0, listed.stderr
        (line,) = (line for line in listed.stdout.splitlines() if line.startswith(f"{name} "))
        assert f"convbench-{name} 0.1.0" in line


def test_nothing_heavy_is_imported_to_list_them(workshop: Path) -> None:
    script = "import sys, convbench_tiny_net, convbench_3x3_fast_conv; sys.exit('torch' in sys.modules)"
    (workshop / "light.py").write_text(script, encoding="utf-8")
    assert start(workshop, "light").returncode == 0


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_is_written(kind: str, tmp_path: Path) -> None:
    package = Package(kind, "Fast.conv")
    paths = write_package(package, tmp_path / "not" / "there yet", "1.2")
    folder = tmp_path / "not" / "there yet" / "convbench-Fast.conv"
    assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
    texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    assert {"pyproject.toml", "README.md", ".gitignore", ".github/workflows/tests.yml"} < set(texts)
    for path, text in texts.items():
        assert "$" not in text, path
        assert text.endswith("\n")
        if path.endswith(".py"):
            compile(text, path, "exec")
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["name"] == "convbench-Fast.conv"
    assert project["dependencies"] == ["convbench>=1.2"]
    assert project["entry-points"] == {"convbench": {"Fast.conv": "convbench_fast_conv"}}
    assert f"convbench_contract = {CONTRACT}\n" in texts["src/convbench_fast_conv/__init__.py"]


def test_a_tree_that_was_never_installed_asks_for_no_version(tmp_path: Path) -> None:
    write_package(Package("backend", "fast"), tmp_path, "unknown")
    text = (tmp_path / "convbench-fast" / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["dependencies"] == ["convbench"]


def test_every_template_is_used() -> None:
    templates = ROOT / "registry" / "convbench" / "registry" / "authoring" / "templates"
    there = {path.relative_to(templates).as_posix() for path in templates.rglob("*") if path.is_file()}
    assert there == {template for files in TEMPLATES.values() for template in files.values()}


@pytest.mark.parametrize("name", ["fast", "a", "3x3", "Fast.Conv_2-d", "x" * 64])
def test_names_that_can_be(name: str) -> None:
    package = Package("backend", name)
    assert NAME.fullmatch(name)  # it can be registered
    assert package.module.isidentifier()
    assert f"Test{package.class_name}".isidentifier()


@pytest.mark.parametrize(
    "name", ["", " ", "-fast", "fast-", ".", "..", "../fast", "a/b", "a b", "a\n", "föhn", "a:b", "a+b", "$name",
             "x" * 65]
)  # fmt: skip
def test_names_that_cannot_be(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("new", "backend", "--out", tmp_path, "--", name) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"convbench: {name!r} cannot name a package; up to 64 letters, digits, ")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "convbench-fast"
    folder.mkdir()
    with pytest.raises(UsageError, match="convbench-fast exists already, and nothing is overwritten"):
        write_package(Package("backend", "fast"), tmp_path, "1.0")
    assert list(folder.iterdir()) == []


def test_a_registered_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("new", "architecture", "lenet", "--out", tmp_path) == 2
    assert "architecture 'lenet' is registered already" in capsys.readouterr().err
    assert call("new", "backend", "lenet", "--out", tmp_path) == 0  # of another kind
    assert "lenet" not in discover(installed=()).backends
    shown = capsys.readouterr()
    assert str(tmp_path / "convbench-lenet" / "pyproject.toml") in shown.out
    assert "next: cd" in shown.err


@pytest.mark.parametrize("name", ["Im2col", "TORCH"])
def test_a_name_that_pip_would_take_for_a_registered_one_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("new", "backend", name, "--out", tmp_path) == 2
    said = f"backend {name!r} would be the same package as {name.lower()!r}, which is registered already"
    assert said in capsys.readouterr().err
    assert call("new", "architecture", "lenet-bn", "--out", tmp_path) == 2
    assert "the same package as 'lenet_bn'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_an_installed_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "site" / "convbench_fast_conv-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: convbench-fast-conv\nVersion: 0.3\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert call("new", "backend", "Fast.Conv", "--out", tmp_path / "out") == 2
    assert "a package convbench-fast-conv 0.3 is installed already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
