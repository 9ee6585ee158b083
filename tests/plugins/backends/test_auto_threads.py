"""`auto` in threads, in forked processes and under other default devices, and what it says while it decides."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convbench.plugins.backends.auto.candidates import Candidate
from convbench.plugins.backends.auto.decisions import VARIABLE, Decision, whole
from convbench.plugins.backends.auto.dispatch import Decisions, Dispatched, _seen
from convbench.plugins.backends.auto.progress import EVERY, SILENT, Progress
from convbench.plugins.backends.auto.signature import Call, call_of
from convbench.plugins.backends.auto.tuner import choose
from convbench.registry import OPS, Backend, discover

THREADS = 8
CANDIDATES = {"torch": Candidate("torch", Backend("torch", "", lambda: {"conv2d": F.conv2d}), "1.0", "1")}


def in_threads(work: Any) -> list[Any]:
    """What it returns in threads that begin at once."""
    together = threading.Barrier(THREADS)

    def one(number: int) -> Any:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


def some_call() -> Call:
    images, kernels = torch.randn(16, 3, 12, 12), torch.randn(8, 3, 3, 3)
    return call_of(OPS["conv2d"], _seen((images, kernels, None, 1, 0, 1, 1), 3))


class Slow:
    """Decides for torch after a while, and notes who decides at the same time."""

    def __init__(self) -> None:
        self.calls = 0
        self.deciding = 0
        self.most = 0

    def __call__(self, call: Call, candidates: Mapping[str, Candidate]) -> Decision:
        self.calls += 1
        self.deciding += 1
        self.most = max(self.most, self.deciding)
        time.sleep(0.02)
        self.deciding -= 1
        return whole("torch", steady=False)


def test_threads_decide_one_at_a_time_and_each_call_once(tmp_path: Path) -> None:
    slow = Slow()
    ops = [Dispatched(OPS["conv2d"], Decisions(lambda: CANDIDATES, tmp_path, slow)) for _ in range(2)]
    images, kernels = torch.randn(16, 3, 12, 12), torch.randn(8, 3, 3, 3)
    wanted = F.conv2d(images, kernels)
    for answer in in_threads(lambda number: ops[number % 2](images, kernels)):
        assert torch.equal(answer, wanted)
    assert (slow.calls, slow.most) == (2, 1)  # of two models, each once


def test_threads_load_the_ops_of_a_backend_once() -> None:
    loads = []

    def load() -> Mapping[str, Any]:
        loads.append(threading.get_ident())
        time.sleep(0.02)
        return {"conv2d": F.conv2d}

    backend = Backend("slow", "", load)
    assert all(ops == {"conv2d": F.conv2d} for ops in in_threads(lambda _: backend.ops))
    assert len(loads) == 1


def test_every_discovery_has_the_same_ops_of_torch() -> None:
    """One that is defined anew is taken from a thread that is calling it."""
    first, second = (discover().backend("scalar").ops for _ in range(2))
    assert first["max_pool2d"].args[0] is second["max_pool2d"].args[0]


CHILD = """
import os, sys, torch
torch.set_num_threads(2)
from convbench.registry import discover
from convbench.plugins.backends.auto import dispatch
conv = discover().backend("native").ops["conv2d"]
images, kernels = torch.randn(16, 3, 24, 24), torch.randn(5, 3, 3, 3)
wanted = conv(images, kernels)
with dispatch._deciding:
    pid = os.fork()
if pid == 0:
    import threading
    entered = []
    def enter():
        with dispatch._deciding: entered.append(True)
    other = threading.Thread(target=enter)
    other.start(); other.join(10)
    os._exit(0 if entered and (conv(images, kernels).numpy() == wanted.numpy()).all() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.skipif(discover().backend("native").unavailable() is not None, reason="native is unavailable")
def test_a_forked_process_waits_for_no_thread_of_its_parent() -> None:
    ended = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60)
    assert not ended.returncode, ended.stderr


LOADING_CHILD = """
import os, sys, threading
from convbench.registry import Backend
begun, over = threading.Event(), threading.Event()
def load():
    begun.set()
    over.wait(30)
    return {}
thread = threading.Thread(target=lambda: Backend("slow", "loads for long", load=load).ops)
thread.start()
begun.wait(30)
pid = os.fork()
if pid == 0:
    os._exit(0 if Backend("quick", "loads at once", load=lambda: {"conv2d": print}).ops else 3)
ended = os.waitpid(pid, 0)[1]
over.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(ended))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_that_is_forked_while_ops_are_loaded_loads_others() -> None:
    ended = subprocess.run([sys.executable, "-c", LOADING_CHILD], capture_output=True, text=True, timeout=20)
    assert not ended.returncode, ended.stderr


STRESS = """
import faulthandler, threading, torch
faulthandler.enable()
from torch import nn
from convbench.registry import use_backend
torch.set_num_threads(1)
images = torch.randn(16, 3, 28, 28)
def model(filters):
    return use_backend(nn.Sequential(nn.Conv2d(3, filters, 3), nn.ReLU(), nn.MaxPool2d(2)), "auto")
models, failed = [model(8 + number) for number in range(8)], []
def step(each):
    try: each(images).sum().backward()
    except BaseException as error: failed.append(repr(error))
threads = [threading.Thread(target=step, args=(each,)) for each in models]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"""


@pytest.mark.exhaustive
def test_eight_models_decide_at_once_and_nothing_is_remembered(tmp_path: Path) -> None:
    environment = os.environ | {VARIABLE: str(tmp_path / "empty")}
    ended = subprocess.run(
        [sys.executable, "-c", STRESS], capture_output=True, text=True, env=environment, timeout=280
    )
    assert not ended.returncode, ended.stderr[-3000:]


# --- the default device and dtype ------------------------------------------------------------------------------


def test_a_call_is_decided_under_any_default_device_and_dtype() -> None:
    call = some_call()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert choose(call, CANDIDATES, seconds=0.01).winner == {"whole": "torch"}
            assert torch.empty(1).is_meta
    finally:
        torch.set_default_dtype(torch.float32)


# --- what it says -----------------------------------------------------------------------------------------------


def test_nothing_is_said_of_what_takes_no_time_and_not_everything_of_what_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    progress = Progress(tmp_path, lambda: now[0])

    def steps(call: str, seconds: float) -> None:
        with progress.of(call):
            for _ in range(10):
                now[0] += seconds / 10
                progress("trying im2col")

    steps("conv2d of nothing", SILENT / 2)
    assert not caplog.messages
    steps("conv2d of much", SILENT)
    (said,) = caplog.messages
    assert "conv2d of much (trying im2col)" in said
    assert "1 decided in 2 s" in said
    assert str(tmp_path) in said
    steps("conv2d of much more", EVERY / 2)
    assert len(caplog.messages) == 1
    steps("conv2d of most", EVERY)
    assert len(caplog.messages) == 2
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert all(record.name.startswith("convbench.") for record in caplog.records)  # which workers forward


def test_every_step_of_a_decision_is_reported() -> None:
    call = some_call()
    said: list[str] = []
    other = Candidate("other", CANDIDATES["torch"].backend, "1.0", "1")
    choose(call, CANDIDATES | {"other": other}, seconds=0.01, say=said.append)
    assert said[:2] == ["trying torch", "trying other"]
    assert said[2] in ("timing 1 backends, whole", "timing 2 backends, whole")
