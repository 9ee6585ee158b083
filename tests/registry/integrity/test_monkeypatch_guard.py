"""What a plugin may not touch: functions that judge it, settings of the process; and what it may."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from convbench.registry.errors import Unsupported
from convbench.registry.integrity.global_state import SETTINGS, GlobalState, global_state_kept
from convbench.registry.integrity.monkeypatch_guard import IntegrityError, Originals, check_references
from convbench.registry.ops.contract import OPS


def imposter(*args: object, **kwargs: object) -> None:
    """Takes the place of anything."""


def test_nothing_is_replaced_at_first() -> None:
    Originals().check()


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (time, "monotonic", "time.monotonic"),
        (F, "max_pool2d", "torch.nn.functional.max_pool2d"),
        (torch, "equal", "torch.equal"),
        (torch.autograd, "grad", "torch.autograd.grad"),
        (torch.testing, "assert_close", "torch.testing.assert_close"),
        (torch.Tensor, "backward", "torch.Tensor.backward"),
        (torch.Tensor, "abs", "torch.Tensor.abs"),  # inherited: the replacement hides it
        (torch.optim.SGD, "step", "torch.optim.sgd.SGD.step"),
        (torch.nn.Module, "__call__", "torch.nn.modules.module.Module.__call__"),
    ],
)
def test_a_replacement_is_named_with_its_origin(
    owner: ModuleType | type, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = Originals()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, imposter)
        sentences = originals.replaced()
    assert f"{words} was replaced by imposter of {__name__}" in sentences
    assert originals.replaced() == []


def test_a_builtin_in_place_of_another_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = Originals()
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", time.process_time)
        assert originals.replaced() == ["time.perf_counter was replaced by process_time of time"]


@pytest.mark.exhaustive
def test_what_torch_replaces_itself_is_no_violation() -> None:
    """Its compiler does so when it is loaded."""
    script = (
        "from convbench.registry.integrity.monkeypatch_guard import Originals\n"
        "originals = Originals()\n"
        "import torch, torch._dynamo, torchvision\n"
        "from torch._dynamo.mutation_guard import install_generation_tagging_init\n"
        "install_generation_tagging_init()\n"
        "assert torch.nn.Module.__init__.__qualname__.endswith('patched_init')\n"
        "originals.check()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("op", OPS)
def test_every_reference_has_a_known_answer(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_references()
    wrong = {**OPS, op: type("Wrong", (), {"reference": staticmethod(lambda *_, **__: torch.zeros(1))})}
    monkeypatch.setattr("convbench.registry.integrity.monkeypatch_guard.OPS", wrong)
    with pytest.raises(IntegrityError, match=f"the float64 reference of {op} itself is wrong"):
        check_references()


CHANGES = {
    "the number of torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "whether gradients are recorded": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "whether torch's algorithms are deterministic": lambda: torch.use_deterministic_algorithms(True),
    "the precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "whether cuDNN may choose by trial": lambda: setattr(torch.backends.cudnn, "benchmark", True),
}


def hook(*args: object) -> None:
    """What is registered, and never called for."""


PROCESS: dict[str, tuple[Callable[[], object], str]] = {
    "the global hooks of torch's modules": (
        lambda: torch.nn.modules.module.register_module_forward_pre_hook(hook),
        rf"from nothing to _global_forward_pre_hooks \d+ hook of {__name__}",
    ),
    "the global hooks of torch's modules ": (
        lambda: torch.nn.modules.module.register_module_parameter_registration_hook(hook),
        rf"from nothing to _global_parameter_registration_hooks \d+ hook of {__name__}",
    ),
    "the global hooks of torch's optimizers": (
        lambda: register_optimizer_step_post_hook(hook),
        rf"from nothing to _global_optimizer_post_hooks \d+ hook of {__name__}",
    ),
    "what torch does with saved tensors": (
        lambda: torch._C._autograd._push_saved_tensors_default_hooks(hook, hook),
        "from None to hook of ",
    ),
    "whether autograd looks for anomalies": (lambda: torch.autograd.set_detect_anomaly(True), "to True"),
    "whether cuDNN is used": (lambda: setattr(torch.backends.cudnn, "enabled", False), "from True to False"),
    "what torch casts by itself": (
        lambda: torch.set_autocast_enabled("cpu", True),
        r"from cpu False, torch.bfloat16 to cpu True, torch.bfloat16",
    ),
    "the cores that the process may use": (
        lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        "to ",
    ),
    "how often Python switches threads": (lambda: sys.setswitchinterval(0.125), "to 0.125"),
    "what traces or profiles Python": (lambda: sys.setprofile(hook), "to profiler hook of "),
    "what traces or profiles Python ": (
        lambda: threading.setprofile(hook),
        "to profiler of threads hook of ",
    ),
    "the handlers of signals": (
        lambda: signal.signal(signal.SIGUSR1, hook),
        f"from SIGUSR1 0 to SIGUSR1 hook of {__name__}",
    ),
    "what Python calls when it collects garbage": (
        lambda: gc.callbacks.append(hook),
        "to .*hook of ",
    ),
    "when Python collects garbage": (gc.disable, "from True, .* to False, "),
    "the environment of libraries": (
        lambda: os.environ.update(OMP_WAIT_POLICY="ACTIVE"),
        "from nothing to OMP_WAIT_POLICY ACTIVE",
    ),
}


@pytest.mark.parametrize("setting", PROCESS)
def test_what_reaches_beyond_a_call_is_named_and_put_back(setting: str) -> None:
    state = GlobalState()
    change, words = PROCESS[setting]
    change()
    with pytest.raises(IntegrityError, match=f"{setting.strip()} was changed .*{words}"):
        state.check()
    state.check()


def test_a_timer_is_named() -> None:
    state = GlobalState()
    signal.setitimer(signal.ITIMER_PROF, 1000)
    try:
        with pytest.raises(
            IntegrityError, match=r"timers of the process was changed from .* to ITIMER_PROF True"
        ):
            state.check()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@pytest.mark.parametrize("setting", CHANGES)
def test_a_changed_setting_is_named_and_put_back(setting: str) -> None:
    state = GlobalState()
    before = SETTINGS[setting][0]()
    CHANGES[setting]()
    with pytest.raises(IntegrityError, match=f"{setting} was changed from {before} to "):
        state.check()
    assert SETTINGS[setting][0]() == before
    state.check()


def test_random_numbers_may_be_drawn_but_not_seeded() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with global_state_kept():
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)  # the caller's sequence went on as if nothing had been drawn
    with (
        pytest.raises(IntegrityError, match="torch's random numbers were seeded with 3"),
        global_state_kept(),
    ):
        torch.manual_seed(3)


def refuse(threads: int) -> None:
    torch.set_num_threads(threads)
    raise Unsupported("not today")


def test_what_raises_has_its_changes_named_and_put_back() -> None:
    threads = torch.get_num_threads()
    with (
        pytest.raises(IntegrityError, match="the number of torch's threads was changed"),
        global_state_kept(),
    ):
        refuse(threads + 1)
    assert torch.get_num_threads() == threads
    with pytest.raises(Unsupported, match="not today"), global_state_kept():
        refuse(threads)
