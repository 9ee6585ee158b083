"""What `auto` remembers: everything that it depends on, whatever others write meanwhile, and never more."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from convbench.plugins.backends.auto import candidates, decisions
from convbench.plugins.backends.auto.cache_key import SPEED, passing
from convbench.plugins.backends.auto.candidates import Candidate
from convbench.plugins.backends.auto.cli import auto
from convbench.plugins.backends.auto.decisions import Decision, from_json, whole
from convbench.plugins.backends.auto.dispatch import Decisions, Dispatched
from convbench.plugins.backends.auto.signature import Call, Memory
from convbench.registry import OPS, Backend, discover
from convbench.registry.integrity.global_state import SETTINGS

CALL = Call(
    "conv2d",
    (
        ("input", Memory((16, 3, 12, 12), (432, 144, 12, 1), "float32")),
        ("weight", Memory((8, 3, 3, 3), (27, 9, 3, 1), "float32")),
        ("bias", None),
    ),
    (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)),
    "cpu",
    ("weight",),
)
DECISION = Decision({"whole": "quick"}, {"whole": {"torch": 0.002, "quick": 0.001}}, 7, {"loops": "too slow"})


def key(**conditions: Any) -> dict[str, Any]:
    return decisions.key_of(CALL, {"torch": "2.15", "threads": 2, **conditions})


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    assert decisions.load(tmp_path, key()) is None
    decisions.save(tmp_path, key(), CALL, DECISION)
    assert decisions.load(tmp_path, key()) == DECISION
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "change",
    [
        {"op": "max_pool2d"},
        {"needs": ()},
        {"device": "cuda:0"},
        {"options": (("stride", 2), *CALL.options[1:])},
        {"tensors": (("input", Memory((16, 3, 12, 12), (432, 1, 36, 3), "float32")), *CALL.tensors[1:])},
        {"tensors": (("input", Memory((16, 3, 12, 12), (432, 144, 12, 1), "float64")), *CALL.tensors[1:])},
    ],
)
def test_another_call_is_another_decision(tmp_path: Path, change: dict[str, Any]) -> None:
    decisions.save(tmp_path, key(), CALL, DECISION)
    other = decisions.key_of(replace(CALL, **change), {"torch": "2.15", "threads": 2})
    assert decisions.load(tmp_path, other) is None


@pytest.mark.parametrize("change", [{"torch": "2.16"}, {"threads": 1}, {"candidates": {"quick": "1.1"}}])
def test_other_conditions_are_another_decision(tmp_path: Path, change: dict[str, Any]) -> None:
    decisions.save(tmp_path, key(), CALL, DECISION)
    assert decisions.load(tmp_path, key(**change)) is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "not JSON",
        "[]",
        "null",
        '{"decision": {}}',
        json.dumps({"call": "", "needs": [], "made_at": "", "key": {}, "decision": {"winner": {"whole": 3}}}),
        json.dumps(
            {"call": "", "needs": [], "made_at": "", "key": {}, "decision": DECISION.as_json()}, default=dict
        ),
    ],
)
def test_what_is_damaged_is_decided_anew(tmp_path: Path, damage: str) -> None:
    decisions.save(tmp_path, key(), CALL, DECISION)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert decisions.load(tmp_path, key()) is None
    assert list(decisions.entries(tmp_path)) == []
    decisions.save(tmp_path, key(), CALL, DECISION)
    assert decisions.load(tmp_path, key()) == DECISION


@pytest.mark.parametrize(
    ("field", "value"),
    [("winner", {}), ("winner", {"sideways": "x"}), ("seconds", {"whole": {"x": -1}})],
)
def test_a_decision_that_is_none_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"no winner|a time is negative"):
        from_json(DECISION.as_json() | {field: value})


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    decisions.save(tmp_path / "file", key(), CALL, DECISION)
    assert decisions.load(tmp_path / "file", key()) is None


def _write_many(root: Path, name: str) -> None:
    for _ in range(150):
        decisions.save(root, key(), CALL, whole(name))


def test_two_processes_write_and_a_third_reads_either(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, name)) for name in ("one", "other")]
    decisions.save(tmp_path, key(), CALL, whole("one"))
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        found = decisions.load(tmp_path, key())
        assert found is not None  # never half a file, never none
        seen.add(str(found))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {"one", "other"}
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def decided(root: Path, code_digest: str = "1", release: str = "1.0", *, steady: bool = True) -> list[Call]:
    """What had to be decided in a new process's place, with a candidate of that release and those sources."""
    asked = []

    def chooser(call: Call, _: Any) -> Decision:
        asked.append(call)
        return whole("torch", steady=steady)

    backend = Backend("torch", "", lambda: {"conv2d": F.conv2d})
    doubles = Backend("doubles", "", lambda: {"conv2d": F.conv2d}, dtypes=("float64",))
    pools = Backend("pools", "", lambda: {"max_pool2d": F.max_pool2d})
    candidates = {
        each.name: Candidate(each.name, each, release, code_digest) for each in (backend, doubles, pools)
    }
    op = Dispatched(OPS["conv2d"], Decisions(lambda: candidates, root, chooser))
    op(torch.randn(16, 3, 12, 12), torch.randn(8, 3, 3, 3))
    return asked


@pytest.mark.parametrize(
    "winner",
    [
        {"whole": "doubles"},
        {"whole": "pools"},
        {"whole": "nobody"},
        {"forward": "torch", "input gradient": "torch", "weight gradient": "doubles"},
    ],
    ids=str,
)
def test_a_file_that_names_a_backend_without_such_calls_is_decided_anew(
    tmp_path: Path, winner: dict[str, str]
) -> None:
    assert len(decided(tmp_path)) == 1
    (file,) = tmp_path.iterdir()
    entry = json.loads(file.read_text())
    entry["decision"]["winner"] = winner
    file.write_text(json.dumps(entry))
    assert len(list(decisions.entries(tmp_path))) == 1  # it is a decision, of another call
    assert len(decided(tmp_path)) == 1
    assert not decided(tmp_path)


def test_a_decision_holds_until_a_version_or_a_source_changes(tmp_path: Path) -> None:
    assert len(decided(tmp_path)) == 1
    assert not decided(tmp_path)
    assert len(decided(tmp_path, release="1.1")) == 1
    assert len(decided(tmp_path, code_digest="2")) == 1
    assert not decided(tmp_path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert len(decided(tmp_path)) == 1
    finally:
        torch.set_num_threads(threads)


def test_what_was_decided_in_a_crowd_is_not_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        assert len(decided(tmp_path, steady=False)) == 1
    assert not list(tmp_path.iterdir())


def test_every_setting_of_a_process_that_changes_a_speed_is_there() -> None:
    assert set(SETTINGS) >= SPEED
    assert set(passing("cpu")) >= SPEED


def test_sources_are_told_apart_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "acme_of_sources"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "kernels.cu").write_text("one")
    (package / "notes.txt").write_text("one")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("acme_of_sources")
    try:
        first = candidates.digest_of("acme_of_sources")
        (package / "notes.txt").write_text("two")
        candidates._digest.cache_clear()
        assert candidates.digest_of("acme_of_sources.backends") == first
        (package / "kernels.cu").write_text("two")
        candidates._digest.cache_clear()
        assert candidates.digest_of("acme_of_sources") != first
    finally:
        sys.modules.pop("acme_of_sources")
    assert candidates.digest_of("nothing_of_the_kind") == "unknown"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(auto, arguments, catch_exceptions=False)


def test_show_and_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(decisions.VARIABLE, str(tmp_path / "decisions"))
    assert "0 decisions" in invoke("show").stderr
    decided(tmp_path / "decisions")
    decisions.save(tmp_path / "decisions", key(), CALL, DECISION)
    shown = invoke("show").stdout
    assert "conv2d 16x3x12x12 * 8x3x3x3" in shown
    assert "quick" in shown
    assert "torch" in shown
    assert "no longer" in shown
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        narrow = invoke("show").stdout
        assert max(map(len, narrow.splitlines())) <= width
        assert {"conv2d", "16x3x12x12", "8x3x3x3", "quick", "longer:"} <= set(narrow.split())
    answer = json.loads(invoke("show", "--json").stdout)
    assert {entry["chosen"] for entry in answer["entries"]} == {"quick", "torch"}
    quick = next(entry for entry in answer["entries"] if entry["chosen"] == "quick")
    assert quick["seconds"]["whole"] == {"torch": 0.002, "quick": 0.001}
    assert quick["holds"] is False
    assert quick["changed"]
    assert "forgot 2 decisions" in invoke("clear").stderr
    assert not list((tmp_path / "decisions").iterdir())


def test_show_says_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convbench.plugins.backends.auto.cache_key import lasting
    from convbench.plugins.backends.auto.candidates import candidates_of

    monkeypatch.setenv(decisions.VARIABLE, str(tmp_path))
    now = lasting(candidates_of(discover()))
    decisions.save(tmp_path, decisions.key_of(CALL, now), CALL, DECISION)
    assert json.loads(invoke("show", "--json").stdout)["entries"][0]["holds"] is True
    older = now | {"candidates": now["candidates"] | {"im2col": "convbench 0.0.1, sources 0", "gone": "1"}}
    decisions.clear(tmp_path)
    decisions.save(tmp_path, decisions.key_of(CALL, older), CALL, DECISION)
    (entry,) = json.loads(invoke("show", "--json").stdout)["entries"]
    assert entry["changed"] == ["gone is gone", "im2col"]


def test_where_decisions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(decisions.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert decisions.directory().name == "auto"
    monkeypatch.setenv(decisions.VARIABLE, str(tmp_path / "here"))
    assert decisions.directory() == tmp_path / "here"


def test_its_commands_import_no_torch() -> None:
    code = (
        "import sys; from convbench.registry.cli.main import main\n"
        "try: main(['auto', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
