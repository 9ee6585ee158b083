"""Known faults of other people's code: which calls they concern, what they explain, and the way around them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import faulty_upstream
from convbench.registry import OPS, Backend, UnknownName, UsageError, known_faults, use_backend, verify
from convbench.registry.conformance.cases import Case, conformance_cases, conv2d, fused, pool
from convbench.registry.conformance.random_cases import generated_cases
from convbench.registry.conformance.report import Outcome
from convbench.registry.conformance.verify import Step
from convbench.registry.known_faults import (
    fault_of_case,
    faults_here,
    in_versions,
    safe_torch_op,
    sizes_of,
    uses,
)
from convbench.registry.ops.dtypes import DTYPES, arithmetic
from convbench.registry.routing import stock
from convbench.results.storage import environment
from convbench.suites.processes.protocol import Tried
from convbench.suites.processes.verification import outcomes_of
from convbench.suites.worker.setup import Setup
from faulty_upstream import LABEL, declared
from preloaded import take_for_granted

FOUR_LINES = conv2d((1, 2, 10, 3), (1, 2, 2, 3), bias=False, stride=2)
STRIDED = conv2d((2, 3, 9, 9), (4, 3, 1, 1), stride=2)
PLAIN = conv2d((2, 3, 9, 9), (4, 3, 3, 3), stride=2)
EVERYWHERE = faulty_upstream.ENTRY.replace("float32", "bfloat16").replace("float64", "float32")


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as torch 2.14.1 finds a processor with AMX."""
    versions = {"oneDNN": (3, 12, 0), "torch": (2, 14, 1), "cuDNN": None}
    monkeypatch.setattr(known_faults, "library_version", versions.get)
    monkeypatch.setattr(known_faults, "_instruction_sets", lambda: frozenset({"amxbf16", "avx512f", "avx2"}))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    known_faults.forget_known_faults()
    yield
    known_faults.forget_known_faults()


@pytest.fixture
def known(tmp_path: Path) -> Iterator[None]:
    """The fault of these tests is known, and torch does not have it."""
    with declared(tmp_path):
        yield


@pytest.fixture
def faulty(known: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known, and torch has it."""
    monkeypatch.setattr(F, "conv2d", faulty_upstream.wrong)
    monkeypatch.setitem(stock.FUNCTIONS, "conv2d", faulty_upstream.wrong)
    take_for_granted(monkeypatch)


def by_torch(*args: Any, **kwargs: Any) -> Any:
    return F.conv2d(*args, **kwargs)


def off_by_one(*args: Any, **kwargs: Any) -> Any:
    output = faulty_upstream._right(*args, **kwargs)
    return (
        output + 1 if fault_of_case(STRIDED, "float32", "cpu") and kwargs["weight"].shape[2] == 1 else output
    )


def verified(op: Callable[..., Any], *cases: Case, **options: Any) -> Any:
    backend = Backend("planted", "for these tests", lambda: {"conv2d": op})
    return verify(backend, dtypes=["float32"], cases={"conv2d": cases}, **options)


@pytest.mark.parametrize("fault", known_faults.known_faults(), ids=lambda fault: fault.name)
def test_every_entry_says_what_it_must(fault: known_faults.KnownFault) -> None:
    assert fault.library in ("torch", "oneDNN", "cuDNN")
    assert in_versions((3, 12, 0), fault.versions) in (True, False)
    assert set(fault.ops) <= set(OPS)
    assert set(fault.dtypes) <= set(DTYPES)
    assert fault.compute_in in DTYPES
    assert fault.compute_in not in fault.dtypes
    assert set(fault.devices) <= {"cpu", "cuda"}
    assert fault.found in ("convbench", "elsewhere")
    assert fault.threads
    assert all(thread.startswith("https://") for thread in fault.threads)
    assert fault.reference.split()[-1] in " ".join(fault.threads)
    compile(fault.example, fault.name, "exec")
    hit = [
        case
        for op in fault.ops
        for case in [*conformance_cases(op), *generated_cases(op, 300)]
        for sizes in [sizes_of(op, {**_meta(case)})]
        if sizes is not None and fault.affects(op, fault.dtypes[0], fault.devices[0], sizes)
    ]
    assert 0 < len(hit) < 120  # some calls, and not just any


def _meta(case: Case) -> dict[str, Any]:
    shapes = {name: torch.empty(shape, device="meta") for name, shape in case.shapes}
    return OPS[case.op].bind((), {**shapes, **dict(case.options)})


def test_the_four_lines_are_known_where_there_is_amx(amx: None) -> None:
    found = fault_of_case(FOUR_LINES, "bfloat16", "cpu")
    assert str(found) == "known fault of oneDNN >=3.3, pytorch 169688"
    exceeding = fault_of_case(conv2d((1, 32, 67, 4), (48, 32, 1, 1), stride=(3, 1)), "bfloat16", "cpu")
    assert str(exceeding) == "known fault of oneDNN <3.13, oneDNN 5494"
    assert fault_of_case(fused("conv2d_activation", FOUR_LINES, "relu"), "bfloat16", "cpu") == found
    for case, dtype, device in (
        (FOUR_LINES, "float32", "cpu"),
        (FOUR_LINES, "bfloat16", "cuda:0"),
        (PLAIN, "bfloat16", "cpu"),
        (pool("max_pool2d", (1, 1, 9, 9), kernel_size=2, stride=3), "bfloat16", "cpu"),
        (conv2d((1, 3, 2, 2), (4, 3, 3, 3)), "bfloat16", "cpu"),  # torch refuses it
    ):
        assert fault_of_case(case, dtype, device) is None


@pytest.mark.parametrize(
    ("limit", "here"),
    [("", 3), ("ALL", 3), ("AVX512_CORE_AMX", 3), ("AVX512_CORE_BF16", 1), ("AVX10_1_512", 1), ("AVX2", 0)],
)
def test_what_onednn_is_told_to_leave_alone_has_no_fault(
    limit: str, here: int, amx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert len(faults_here()) == here


def test_other_processors_and_versions_have_none(amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_faults, "library_version", lambda library: (3, 13, 2))
    known_faults.forget_known_faults()
    assert [fault.name for fault in faults_here()] == ["one-column-and-a-stride"]
    for sets in ({"asimd", "bf16", "sve"}, {"avx2", "fma3"}):  # ARM, and without AVX-512
        monkeypatch.setattr(known_faults, "_instruction_sets", lambda sets=sets: frozenset(sets))
        known_faults.forget_known_faults()
        assert faults_here() == ()


def test_this_machine_tells_its_library_and_processor() -> None:
    version = known_faults.library_version("oneDNN")
    assert version is None or version >= (3,)
    assert known_faults.library_version("torch")[:2] >= (2, 11)  # type: ignore[index]
    assert known_faults.library_version("nobody") is None
    assert known_faults._instruction_sets()
    assert not uses("oneDNN", "no_such_thing")


@pytest.mark.parametrize(
    ("versions", "inside", "outside"),
    [
        ("<3.13", [(3, 12), (3, 12, 4), (2,)], [(3, 13), (3, 13, 0), (4,)]),
        (">=2.3, <=3.1", [(2, 3), (3, 1, 0)], [(2, 2, 9), (3, 1, 1)]),
        ("==1.2", [(1, 2), (1, 2, 0)], [(1, 2, 1)]),
        (">1", [(1, 0, 1)], [(1,)]),
    ],
)
def test_versions(versions: str, inside: list[Any], outside: list[Any]) -> None:
    assert all(in_versions(version, versions) for version in inside)
    assert not any(in_versions(version, versions) for version in outside)


def test_a_condition_on_a_version_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"'3\.13' is no condition on a version"):
        in_versions((3,), "3.13")


def test_the_page_of_faults_is_fresh() -> None:
    from readme import ROOT

    command = [sys.executable, ROOT / "scripts" / "make_found.py", "--check"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", known_faults.known_faults(), ids=lambda fault: fault.name)
def test_its_example_is_right_where_there_is_no_fault(fault: known_faults.KnownFault) -> None:
    if fault.is_here:
        pytest.skip("this machine has the fault")
    ended = subprocess.run([sys.executable, "-c", fault.example], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "right" in ended.stdout


def test_environment_names_the_faults_of_the_machine(known: None) -> None:
    (fault,) = faults_here()
    assert environment.known_faults() == {LABEL: f"{fault.summary}; to avoid it, wait"}


# --- what a known fault explains ---


def test_torchs_own_failure_is_named_and_counted_apart(faulty: None) -> None:
    report = verified(by_torch, STRIDED, PLAIN, STRIDED)
    assert [outcome.state for outcome in report.outcomes] == ["failed", "passed", "failed"]
    assert [outcome.known_fault for outcome in report.outcomes] == [LABEL, "", LABEL]
    assert report.known_faults == {LABEL: 2}
    assert report.unexplained == ()
    assert len(report.failures) == 2
    assert report.passed


def test_only_known_faults_is_no_pass(faulty: None) -> None:
    assert not verified(by_torch, STRIDED).passed


def test_an_own_mistake_is_no_known_fault(faulty: None) -> None:
    """Wrong for the very calls of the fault, without torch's kernels: it stays wrong when oneDNN is off."""
    report = verified(off_by_one, STRIDED, PLAIN)
    assert [outcome.known_fault for outcome in report.failures] == [""]
    assert not report.passed


def test_a_fault_that_torch_does_not_show_excuses_nobody(
    known: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_for_granted(monkeypatch)
    report = verified(
        faulty_upstream.wrong, STRIDED, PLAIN
    )  # right without oneDNN, and torch is right with it
    assert [outcome.known_fault for outcome in report.failures] == [""]


def test_a_call_that_the_entry_does_not_name_is_not_excused(
    faulty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wherever(input: Tensor, *_: Any) -> bool:
        return input.dtype == torch.float32 and torch._C._get_mkldnn_enabled()

    monkeypatch.setattr(faulty_upstream, "is_affected", wherever)
    report = verified(by_torch, PLAIN)
    assert [outcome.known_fault for outcome in report.failures] == [""]


def test_a_verification_that_is_cut_off_keeps_the_names_of_faults(faulty: None) -> None:
    """Its parent knows no more than the steps that were taken before."""
    steps: list[Tried] = []

    def attempt(key: str, ended: Outcome, step: Step) -> list[Outcome]:
        outcomes = step()
        steps.append(Tried(key, tuple(outcomes), 0.0))
        return outcomes

    report = verified(by_torch, STRIDED, PLAIN, attempt=attempt, shrink=True)
    cut_off = outcomes_of(steps)
    assert [outcome.state for outcome in cut_off] == ["failed", "passed"]
    assert [outcome.known_fault for outcome in cut_off] == [LABEL, ""]
    assert [outcome.known_fault for outcome in report.outcomes] == [LABEL, ""]


def test_what_is_shrunk_fails_for_the_same_reason(faulty: None) -> None:
    report = verified(by_torch, conv2d((1, 1, 2, 1), (1, 1, 1, 1), bias=False, stride=3), PLAIN, shrink=True)
    (outcome,) = report.failures
    assert outcome.known_fault == LABEL
    assert outcome.case == "conv2d(input=(1, 1, 1, 1), weight=(1, 1, 1, 1), stride=2)"


def test_a_fault_that_does_not_show_any_more_is_said(known: None) -> None:
    report = verified(F.conv2d, STRIDED, PLAIN)
    assert report.passed
    assert report.faults_not_shown == {LABEL: 1}
    assert verified(by_torch, STRIDED).faults_not_shown == {}  # not torch's own op: it may have gone around


def test_a_run_measures_nothing_that_is_wrong_and_names_the_fault(faulty: None) -> None:
    backend = Backend("planted", "for these tests", lambda: {"conv2d": by_torch})
    setup: Any = SimpleNamespace(
        _check_state=lambda: None,
        backend=backend,
        device=torch.device("cpu"),
        arithmetic=arithmetic("float32"),
    )
    found = Setup.verify(setup, {"conv2d": [PLAIN, STRIDED]}, seed=0)
    assert found.status == "incorrect"
    assert found.error is not None
    assert found.error.startswith(f"{LABEL}: conv2d(input=(2, 3, 9, 9), weight=(4, 3, 1, 1), ")


# --- another way ---


def test_where_no_fault_is_here_nothing_is_in_the_way() -> None:
    if faults_here():
        pytest.skip("this machine has a known fault")
    for op in OPS.values():
        assert safe_torch_op(op) is op.reference


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Tanh(), nn.Conv2d(4, 2, 3))


def answers(run: Callable[[Tensor], Tensor], images: Tensor, parameters: Any) -> list[Tensor]:
    output = run(images)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(parameters))]


def test_the_fallback_to_torch_is_right_and_told(faulty: None) -> None:
    network, images = model(), torch.randn(2, 3, 9, 9)
    wide = model().double()
    exact = answers(wide, images.double(), wide.parameters())
    assert not torch.allclose(network(images).double(), exact[0])  # torch is wrong
    routed = use_backend(network, Backend("nobody", "leaves everything to torch", dict))
    for answer, right in zip(answers(routed, images, network.parameters()), exact, strict=True):
        assert answer.dtype == torch.float32
        assert torch.allclose(answer.double(), right, atol=1e-5)
    assert routed.workarounds == [f"conv2d in float64 for the {LABEL}"]
    assert (routed.calls, routed.served_calls) == (2, 0)
    routed.reset_counts()
    assert routed.workarounds == []


def test_options_that_torch_refuses_are_for_torch_to_refuse(known: None) -> None:
    call = safe_torch_op(OPS["conv2d"])
    with pytest.raises(TypeError, match=r"^conv2d\(\) received an invalid combination of arguments"):
        call(torch.randn(1, 3, 9, 9), torch.randn(4, 3, 1, 1), None, (1.5, 2))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_fallback_goes_the_same_way(known: None, dynamic: bool) -> None:
    graphs: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    routed = use_backend(model(), Backend("nobody", "leaves everything to torch", dict))
    torch.compiler.reset()
    compiled = torch.compile(routed, backend=compiler, fullgraph=True, dynamic=dynamic)
    assert compiled(torch.randn(2, 3, 9, 9)).dtype == torch.float32
    if dynamic:  # one graph for every batch
        assert compiled(torch.randn(5, 3, 9, 9)).dtype == torch.float32
    (code,) = graphs
    assert code.count("conv2d(") == 2
    assert code.count(".to(torch.float64)") == 3  # input, weight and bias of the first alone
    torch.compiler.reset()


def test_a_fallback_under_autocast_is_seen_in_the_dtype_of_autocast(tmp_path: Path) -> None:
    with declared(tmp_path, EVERYWHERE):
        routed = use_backend(model(), Backend("nobody", "leaves everything to torch", dict))
        routed(torch.randn(2, 3, 9, 9))
        assert routed.workarounds == []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = routed(torch.randn(2, 3, 9, 9))
        assert output.dtype == torch.bfloat16
        assert routed.workarounds == [f"conv2d in float32 for the {LABEL}"]


def test_auto_is_right_and_says_how(faulty: None, tmp_path: Path) -> None:
    from convbench.plugins.backends.auto.candidates import candidates_of
    from convbench.plugins.backends.auto.dispatch import Decisions, Dispatched
    from convbench.registry import discover

    everybody = {"torch": candidates_of(discover(installed=()))["torch"]}
    op = Dispatched(OPS["conv2d"], Decisions(lambda: everybody, tmp_path))
    for size in (9, 64):  # a small call, and one that is decided by timing
        input, weight = torch.randn(8, 16, size, size, requires_grad=True), torch.randn(16, 16, 1, 1)
        exact = F.conv2d(input.double(), weight.double(), stride=2)
        assert torch.allclose(op(input, weight, None, 2).double(), exact, atol=1e-4)
    assert all(who == f"torch in float64 for the {LABEL}" for who in op.choices().values())
    op(torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3), None, 2)
    assert list(op.choices().values())[-1] == "torch"


# --- arguments of verify ---


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"cases": 1}, UsageError, "cases is 1; it takes calls by op, such as {'conv2d': [case]}"),
        ({"cases": [PLAIN]}, UsageError, "it takes calls by op"),
        ({"cases": {"conv3d": [PLAIN]}}, UnknownName, "unknown op 'conv3d'; did you mean 'conv2d'?"),
        (
            {"dtypes": "float32"},
            UsageError,
            "dtypes is 'float32'; it takes a list of names, such as ['float32']",
        ),
        ({"dtypes": ["float23"]}, UnknownName, "unknown dtype 'float23'; did you mean 'float32'?"),
        ({"generated": -1}, UsageError, "generated is -1; it takes a number of cases, 0 or more"),
        ({"generated": "many"}, UsageError, "generated is 'many'"),
        ({"device": "quantum"}, UnknownName, "unknown device 'quantum'; available: cpu, cuda"),
    ],
)
def test_an_argument_that_cannot_be_used_is_a_sentence(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        verify("im2col", **arguments)
    assert words in str(raised.value)
