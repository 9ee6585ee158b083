"""`convbench verify`: what it prints, and the code it ends with."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import misbehaving
from convbench.registry import Accuracy, GateFailed, NothingRan, Registry, UnknownName, discover
from convbench.registry.cli.main import main
from convbench.registry.conformance.report import Kind, Outcome, Report, State
from convbench.suites.processes import verification
from convbench.suites.processes.verification import Verification, status_of, summary, verify_backends
from convbench.suites.worker import conform
from faulty_upstream import LABEL
from preloaded import Preloaded

pytestmark = pytest.mark.usefixtures("preloaded_servers")

Verify = Callable[..., tuple[int, str, str]]

SMALL = """
from convbench.registry.conformance import cases

# the cases of a few convolutions: this is about the command, and the cases have their own tests
cases._CASES = {name: (lambda make=make: list(make())[:3]) for name, make in cases._CASES.items()}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, preloaded: Preloaded) -> Iterator[Path]:
    site = misbehaving.install(tmp_path_factory.mktemp("verify") / "site")
    with misbehaving.on_path(site), preloaded.patched(SMALL):
        yield site


@pytest.fixture(scope="module")
def verified(site: Path) -> dict[str, Verification]:
    names = ("right", "raises", "wrong-shape", "segfaults", "absent")
    results = verify_backends(discover(), names, generated=2, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "SHRINK_SECONDS", 0.0)
        results += verify_backends(discover(), ["quits", "exits"], generated=9, threads=1)
    return {result.backend: result for result in results}


@pytest.fixture
def command(
    site: Path,
    verified: dict[str, Verification],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Verify:
    """The command in this process, on verifications that were done before."""

    def known(registry: Registry, patterns: tuple[str, ...], **_: object) -> list[Verification]:
        return [verified[name] for name in registry.backends.matching(patterns)]

    monkeypatch.setattr(verification, "verify_backends", known)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["verify", *arguments])
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("backend", "status", "words"),
    [
        ("right", "ok", "right: ok, "),
        ("raises", "error", "crashed"),
        ("wrong-shape", "incorrect", "failed"),
        ("quits", "crashed", "quits: crashed, "),
        ("segfaults", "crashed", "segfaults: crashed, "),
        ("exits", "error", "exits: error, "),
        ("absent", "unavailable", "absent: unavailable, no such card"),
    ],
)
def test_every_way_to_end_has_its_status(
    verified: dict[str, Verification], backend: str, status: str, words: str
) -> None:
    assert verified[backend].status == status
    assert words in verified[backend].line


def test_a_hang_is_ended(site: Path) -> None:
    (result,) = verify_backends(discover(), ["sleeps"], timeout=2.0, threads=1)
    assert result.status == "timeout"
    assert result.line.startswith("sleeps: timeout, 2 s were up during conv2d(")


def test_a_case_that_hangs_costs_itself_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "STEP_SECONDS", 0.5)
    monkeypatch.setattr(verification, "SHRINK_SECONDS", 0.0)
    (result,) = verify_backends(discover(), ["sleeps"], generated=0, threads=1)
    assert result.status == "crashed"
    messages = {outcome.message for outcome in result.report.failures}
    assert "its process gave no answer within 0.5 s" in messages


def test_a_case_that_ends_its_process_is_one_of_many(verified: dict[str, Verification]) -> None:
    report = verified["segfaults"].report
    first, *others = [outcome for outcome in report.outcomes if outcome.kind == "case"]
    assert (first.state, first.ended_process) == ("crashed", True)
    assert first.message == "its process was killed by signal 11 (SIGSEGV)"
    assert first.case == "conv2d(input=(1, 1, 1, 1), weight=(1, 1, 1, 1))"
    assert first.shrunk_from
    assert "verify('segfaults', " in first.reproduction
    assert {outcome.state for outcome in others} == {"crashed", "unsupported"}
    refusals = [outcome for outcome in report.outcomes if outcome.kind == "refusal"]
    assert refusals  # the verification went on
    assert verified["quits"].report.failures[0].message == "its process exited with code 0"
    assert verified["exits"].report.failures[0].message.startswith("it called sys.exit(3) (")


def test_when_every_case_ends_its_process_not_all_are_tried(verified: dict[str, Verification]) -> None:
    cases = [
        outcome
        for outcome in verified["quits"].outcomes
        if outcome.kind == "case" and outcome.state != "unsupported"
    ]
    tried = [outcome for outcome in cases if outcome.ended_process]
    assert len(tried) == conform.IN_A_ROW
    assert cases[-1].message == "not tried: 10 cases of conv2d in a row ended their processes"


def test_code_0_where_all_that_can_run_is_right(command: Verify) -> None:
    code, out, err = command("right", "absent")
    assert code == 0
    assert out.splitlines()[0].startswith("absent: unavailable")
    assert "right: ok" in out
    assert err == ""


def test_code_1_where_one_is_wrong_and_its_cases_are_listed(command: Verify) -> None:
    code, out, err = command("right", "wrong-shape", "quits")
    assert code == 1
    assert "    failed: " in out
    assert "        in conv2d(" in out
    assert err.strip() == "convbench: 2 of 3 backends failed: quits, wrong-shape"


def test_a_failure_is_shrunk_and_printed_as_python(
    command: Verify, verified: dict[str, Verification]
) -> None:
    _, out, _ = command("wrong-shape")
    (failure,) = (failure for failure in verified["wrong-shape"].first_failures if failure.kind == "case")
    assert failure.shrunk_from
    assert (
        f"    failed: {failure.cause}\n        in {failure.case}, float32\n        {failure.message}\n" in out
    )
    assert f"        the smallest case; it was {failure.shrunk_from}\n" in out
    assert f"\n# failed: {failure.case}\n{failure.reproduction}\n" in out
    exec(failure.reproduction, {})


CRASHING_TORCH = """
from pathlib import Path

import torch.nn.functional as F

import faulty_upstream
from convbench.registry.conformance import cases

F.conv2d = faulty_upstream.crashing
faulty_upstream.declare(Path(DIRECTORY))
strided = cases.conv2d((2, 2, 4, 5), (2, 2, 1, 1), stride=2)
cases._CASES["conv2d"] = lambda: [cases.conv2d((2, 2, 4, 5), (2, 2, 3, 3)), strided]
for name in ("max_pool2d", "avg_pool2d"):
    cases._CASES[name] = lambda make=cases._CASES[name]: list(make())[:1]
"""


def test_torch_that_crashes_is_named_by_its_known_fault(
    preloaded: Preloaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = CRASHING_TORCH.replace("DIRECTORY", repr(str(tmp_path)))
    with preloaded.patched(patch), pytest.raises(SystemExit) as end:
        main(["verify", "torch", "--dtype", "float32", "--cases", "0"])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert out.startswith("torch: ok, ")
    assert f"1 by a {LABEL}" in out
    smallest = "conv2d(input=(1, 1, 1, 1), weight=(1, 1, 1, 1), stride=2)"
    assert f"\n# crashed ({LABEL}): {smallest}\n" in out
    message = f"its process was killed by signal 11 (SIGSEGV); it is a call of the {LABEL}"
    assert f"    crashed ({LABEL}): {message}\n        in {smallest}, float32\n" in out


def test_of_many_failures_a_few_are_listed_before_the_reproduction(
    command: Verify, verified: dict[str, Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = verified["wrong-shape"]
    extra = tuple(
        replace(one.first_failures[0], case=f"case {number}", reproduction="") for number in range(88)
    )
    many = replace(one, report=replace(one.report, outcomes=one.outcomes + extra))
    monkeypatch.setitem(verified, "wrong-shape", many)
    failures = many.report.failures

    _, out, _ = command("wrong-shape")
    listed = [line for line in out.splitlines() if line.startswith(("    failed: ", "    crashed: "))]
    assert len(listed) <= 3 * len({(failure.op, failure.kind) for failure in failures})
    alike = [
        int(number) for number in re.findall(r"^        (\d+) more cases? fails? in this way$", out, re.M)
    ]
    beyond = sum(map(int, re.findall(r"^    and (\d+) more that fail in other ways", out, re.M)))
    assert max(alike) >= 88
    assert len(listed) + sum(alike) + beyond == len(failures)
    assert out.index(listed[-1]) < out.index(many.first_failures[0].reproduction)

    _, out, _ = command("wrong-shape", "--verbose")
    assert "case 87, " in out
    assert "in this way" not in out
    assert "in other ways" not in out


def test_the_line_says_what_compiles_and_what_is_derived() -> None:
    def outcome(state: State, kind: Kind = "case", **rest: Any) -> Outcome:
        return Outcome("conv2d", "a case", "float32", "cpu", state, kind=kind, **rest)

    def report(compiles: State) -> Report:
        outcomes = (outcome("passed", error=1.25e-7), outcome("unsupported"), outcome(compiles, "compile"))
        return Report("mine", outcomes, {"conv2d": Accuracy("normwise", 5)}, ("conv2d",))

    assert summary(report("passed")) == (
        "2 passed, 1 unsupported, largest error 1.2e-07, compiles, derived backward of conv2d, "
        "conv2d declared normwise, growth 5"
    )
    assert "says that it does not compile" in summary(report("unsupported"))
    assert ", does not compile" in summary(report("crashed"))
    assert "compile" not in summary(Report("mine", (outcome("passed"),)))


def test_known_faults_are_counted_apart_and_decide_nothing() -> None:
    passed = Outcome("conv2d", "one", "float32", "cpu", "passed")
    excused = replace(passed, state="crashed", ended_process=True, known_fault="known fault of X")
    own = Outcome("conv2d", "three", "float32", "cpu", "crashed")
    report = Report("mine", (passed, excused, excused))
    assert (status_of(report), summary(report)[:39]) == ("ok", "1 passed, 2 by a known fault of X, larg")
    report = Report("mine", (passed, excused, own))
    assert status_of(report) == "error"
    assert summary(report).startswith("1 passed, 1 crashed, 1 by a known fault of X, ")
    assert status_of(Report("mine", (excused,))) == "unsupported"
    assert status_of(Report("mine", (passed, replace(excused, known_fault="")))) == "crashed"


def test_cases_and_seed_reach_the_worker(verified: dict[str, Verification]) -> None:
    two = verified["right"]
    (four,) = verify_backends(discover(), ["right"], threads=1, generated=4, seed=3)
    count = [int(result.line.split("ok, ")[1].split(" passed")[0]) for result in (two, four)]
    assert count[1] - count[0] == 2


def test_what_is_unsupported_is_listed_only_when_asked_for(command: Verify) -> None:
    assert "    unsupported: " not in command("right")[1]
    out = command("right", "--verbose")[1]
    assert re.search(r"^    unsupported: .+\n        in max_pool2d", out, re.M)


def test_code_3_where_nothing_could_run(command: Verify) -> None:
    code, _, err = command("absent")
    assert code == 3
    assert err.strip() == "convbench: no backend could be verified on cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rihgt"], "unknown backend 'rihgt'; did you mean 'right'?"),
        (["right", "--device", "quantum"], "unknown device 'quantum'; available: cpu"),
        (["right", "--dtype", "float23"], "unknown dtype 'float23'; did you mean 'float32'?"),
    ],
)
def test_code_2_where_a_name_is_unknown(site: Path, arguments: list[str], words: str) -> None:
    done = misbehaving.command("verify", *arguments, site=site)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("seconds", ["-3", "0"])
def test_a_time_that_is_none_is_code_2(seconds: str, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", "right", "--timeout", seconds])
    assert end.value.code == 2
    assert "--timeout" in capsys.readouterr().err


def test_a_dtype_that_is_not_claimed_is_unsupported(site: Path) -> None:
    (result,) = verify_backends(discover(), ["right"], dtypes=["float64"], threads=1)
    assert result.status == "unsupported"
    assert result.line == "right: unsupported, backend 'right' takes float32 on cpu"


def test_an_unknown_dtype_that_a_backend_claims_is_its_own_fault(tmp_path: Path) -> None:
    tmp_path.joinpath("odd.py").write_text(
        "from convbench.registry import Backend, hookimpl\n"
        "@hookimpl\n"
        "def convbench_backends(): return [Backend('odd', '', dict, dtypes=('float',))]\n"
    )
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[convbench]\nodd = odd\n")
    with misbehaving.on_path(tmp_path):
        (result,) = verify_backends(discover(), ["odd"], threads=1)
    sys.modules.pop("odd", None)
    assert result.status == "error"
    assert result.line.startswith("odd: error, backend 'odd' claims an unknown dtype 'float'; did you mean")


def test_errors_own_the_codes() -> None:
    assert (GateFailed.exit_code, UnknownName.exit_code, NothingRan.exit_code) == (1, 2, 3)
