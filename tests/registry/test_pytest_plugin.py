"""The pytest plugin: one test for each case in an author's own repository."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest
import torch

from conftest import Install
from convbench.registry import OPS, Backend, UnknownName, verify
from convbench.registry.conformance.cases import Case, conformance_cases, conv2d, refused_calls
from convbench.registry.conformance.minimize import python_of
from convbench.registry.conformance.verify import whole_contract
from convbench.registry.pytest_plugin import convbench_cases

pytest_plugins = ["pytester"]

PLUGIN = """
    import torch
    import torch.nn.functional as F
    from convbench.registry import Architecture, Backend, Unsupported, hookimpl

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        {body}
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def build(num_classes=10, in_channels=1):
        return torch.nn.Sequential(torch.nn.Conv2d(in_channels, 4, 5, stride=4), torch.nn.Flatten(),
                                   torch.nn.Linear(4 * 6 * 6, num_classes){lost})

    @hookimpl
    def convbench_backends():
        yield Backend("mine", "", lambda: {{"{op}": conv2d}}, devices=("cpu", "xpu"), dtypes=("float32",){more})

    @hookimpl
    def convbench_architectures():
        yield Architecture("net", "", build)
"""
TESTS = """
    from convbench.registry.pytest_plugin import ArchitectureConformance, BackendConformance

    class TestMine(BackendConformance):
        backend = "mine"
        generated = 3
"""
CASES = whole_contract(Backend("mine", "", dict), "conv2d", generated=3)
PLANTED = len(CASES) + len(refused_calls("conv2d")) + 1  # and what torch's own tools say


def install_mine(
    install: Install, body: str = "pass", op: str = "conv2d", more: str = "", lost: str = ""
) -> None:
    install("mine", textwrap.dedent(PLUGIN).format(body=body, op=op, more=more, lost=lost))


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """Import all that verification does: a run in this process unloads what it imported, torch's own included."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report = verify("fft", dtypes=["float32"], generated=0)
    assert report.passed, report.failures
    yield
    torch.set_num_threads(threads)


def run(pytester: pytest.Pytester, tests: str = TESTS, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(textwrap.dedent(tests))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_it_is_registered_and_light() -> None:
    assert "convbench.registry.pytest_plugin" in {point.value for point in entry_points(group="pytest11")}
    script = (
        "import sys, convbench.registry.pytest_plugin;"
        "print([name for name in ('torch', 'numpy', 'click') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


def test_the_cases_of_an_op() -> None:
    for op in OPS:
        assert convbench_cases(op) == conformance_cases(op)
    with pytest.raises(UnknownName, match="unknown op 'conv2'; did you mean 'conv2d'"):
        convbench_cases("conv2")


def test_every_case_is_a_test(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install)
    result = run(pytester, TESTS, "-rs")
    here = torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != "xpu":
        result.assert_outcomes(passed=PLANTED + 1, skipped=3)
        result.stdout.fnmatch_lines(["*there is no xpu device here"])


def test_a_device_a_seed_and_a_dtype_can_be_chosen(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install)
    options = (
        "--convbench-device",
        "cpu",
        "--convbench-seed",
        "3",
        "-k",
        "test_it_is_right",
        "--collect-only",
    )
    result = run(pytester, TESTS + "        dtypes = ('float64',)\n", *options)
    result.stdout.fnmatch_lines(["*cpu-float64-conv2d(input=(2, 3, 8, 8), *"])
    result.stdout.no_fnmatch_line("*float32*")
    result.stdout.no_fnmatch_line("*xpu*")


def test_what_is_unsupported_is_skipped_with_its_reason(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install, "if groups > 1: raise Unsupported('one group only')")
    result = run(pytester, TESTS, "--convbench-device", "cpu", "-rs")
    grouped = sum(dict(case.options).get("groups", 1) != 1 for case in CASES)
    result.assert_outcomes(passed=PLANTED + 1 - grouped, skipped=grouped)
    result.stdout.fnmatch_lines(["*one group only"])


def test_what_is_wrong_fails_and_says_how_to_see_it(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install, "if weight.shape[2:] == (1, 5): weight = weight * 2")
    result = run(pytester, TESTS, "--convbench-device", "cpu")
    wrong = sum(dict(case.shapes)["weight"][2:] == (1, 5) for case in CASES)
    result.assert_outcomes(passed=PLANTED + 1 - wrong, failed=wrong)
    result.stdout.fnmatch_lines(
        ["failed, and so does the smaller *: the output is *", "report = verify('mine', *"]
    )
    result.stdout.fnmatch_lines(
        ["case = Case('conv2d', (('input', (1, 1, 1, 5)), ('weight', (1, 1, 1, 5))))"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_what_is_tampered_with_fails_in_a_sentence(
    install: Install, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("math.erf", math.erf)  # so that it is put back
    install_mine(install, "import math; math.erf = max")
    result = run(pytester, TESTS, "--convbench-device", "cpu", "-x", "-k", "test_it_is_right")
    result.assert_outcomes(failed=1, deselected=PLANTED + 1 - len(CASES))
    result.stdout.fnmatch_lines(["failed: math.erf was replaced by max of builtins"])


@pytest.mark.parametrize("refused", [False, True])
def test_the_python_of_a_failure_runs(
    install: Install, refused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    install_mine(install, "return input.sum()")
    case = conv2d((2, 3, 8, 8), (4, 3, 3, 3), stride=0 if refused else 1)
    exec(python_of("mine", case, "float32", "cpu", seed=2, refused=refused), {})
    printed = capsys.readouterr().out
    assert printed.startswith("Outcome(op='conv2d'")
    assert ("an answer was given" if refused else "the output has shape ()") in printed


def test_an_answer_to_what_torch_refuses_fails(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install, "if padding == -1: padding = 0")
    result = run(pytester, TESTS, "--convbench-device", "cpu", "-k", "test_it_refuses")
    result.assert_outcomes(passed=len(refused_calls("conv2d")) - 1, failed=1, deselected=len(CASES) + 2)
    result.stdout.fnmatch_lines(
        ["failed: an answer was given where torch raises RuntimeError: *", "print(check_refusal(*"]
    )


def test_an_op_that_is_none_fails(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install, op="conv2D")
    result = run(pytester)
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(["*'conv2D' is no op; did you mean 'conv2d'?*"])


def test_an_unavailable_backend_is_skipped(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install, more=", unavailable=lambda: 'no compiler'")
    result = run(pytester, TESTS, "-rs")
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(["*no compiler"])


def test_a_plugin_that_is_not_used_says_why(install: Install, pytester: pytest.Pytester) -> None:
    install("mine", "raise RuntimeError('half-written')")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*unknown backend 'mine'*", "plugin 'mine' is not used: RuntimeError: half-written"]
    )


NETWORK = (
    TESTS.partition("class")[0] + "class TestNet(ArchitectureConformance):\n        architecture = 'net'"
)


def test_an_architecture_is_tested(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install)
    run(pytester, NETWORK).assert_outcomes(passed=6)


def test_an_architecture_that_does_not_learn_fails(install: Install, pytester: pytest.Pytester) -> None:
    install_mine(install, lost=", torch.nn.Threshold(1e9, 0)")
    result = run(pytester, NETWORK)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*no gradient reaches 0.weight, 0.bias, 2.weight, 2.bias"])


def test_the_text_of_a_case_is_python() -> None:
    for op in OPS:
        for case in conformance_cases(op):
            assert eval(repr(case), {"Case": Case}) == case
