"""Captured steps are the eager ones: the same numbers from replays alone, on a fake that runs no Python again."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fake_graphs
from convbench.registry import Unsupported, create_model, discover, use_backend
from convbench.registry.ops.dtypes import arithmetic
from convbench.suites.config.suite import Timing
from convbench.suites.measure import cuda_graphs, devices
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import ImageBatches
from convbench.suites.measure.steps import time_steps
from convbench.suites.measure.training import Progress, train
from convbench.suites.worker.recheck import recheck
from convbench.suites.worker.setup import Verdict


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "capture", fake_graphs.capture)


def split(count: int, seed: int = 0) -> ImageBatches:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return ImageBatches(images, torch.arange(count) % 10, torch.float32, torch.contiguous_format)


def network(name: str = "lenet") -> nn.Module:
    torch.manual_seed(0)
    return use_backend(create_model(name), "torch")


def trained(
    replayed: bool, amp: Amp | None = None, name: str = "lenet_bn"
) -> tuple[nn.Module, list[Progress]]:
    model, data = network(name), split(90)
    options: dict[str, Any] = {"lr": 0.1, "batch_size": 16}
    graphed = None
    if replayed:
        graphed = GraphedStep(model, data, amp=amp, **options)
        graphed.capture(16, 90 % 16)
    progress = list(train(model, data, split(20, 1), epochs=2, seed=3, amp=amp, graphed=graphed, **options))
    return model, progress


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_replays_train_as_steps_do(dtype: torch.dtype | None) -> None:
    """Two epochs, batches of another size at the end of each, statistics of batch norm and all."""

    def amp() -> Amp:
        return Amp(torch.device("cpu"), dtype)

    (eager, told), (captured, again) = trained(False, amp()), trained(True, amp())
    for one, other in zip(eager.state_dict().values(), captured.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    assert [(each.steps, each.images) for each in again] == [(6, 90), (12, 180)]
    for one, other in zip(told, again, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert other.val_accuracy == one.val_accuracy
    assert all(parameter.dtype == torch.float32 for parameter in captured.parameters())


def test_capturing_changes_neither_the_model_nor_the_random_numbers() -> None:
    model = network("lenet_bn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    graphed = GraphedStep(
        model, split(90), lr=0.1, batch_size=16, amp=Amp(torch.device("cpu"), torch.float16)
    )
    graphed.capture(16, 10)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert float(graphed.total_loss) == 0


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_learning_rate_lies_where_the_parameters_do(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured step reads it there; a number of the host would be a constant of the graph."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "tensor", lambda *_, **options: made.append(options))
    monkeypatch.setattr(torch.optim, "SGD", lambda *_, **options: options)
    Amp(None, dtype).sgd(nn.Linear(1, 1, device="meta"), 0.1, on_device=True)
    assert [options["device"].type for options in made] == ["meta"]


@pytest.mark.parametrize(("budget", "steps"), [(4.0, 4), (math.inf, 6)])
def test_an_epoch_ends_with_its_budget(budget: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), split(90)
    graphed = GraphedStep(model, data, lr=0.1, batch_size=16)
    graphed.capture(16, 10)
    replay, replayed = graphed.replay, []
    monkeypatch.setattr(graphed, "replay", lambda size: (replay(size), replayed.append(size)))
    options: dict[str, Any] = {"lr": 0.1, "batch_size": 16, "epochs": 1, "seed": 0}
    now = lambda: float(len(replayed))  # noqa: E731 - a clock of one second a step
    (progress,) = train(model, data, split(20), graphed=graphed, budget_seconds=budget, now=now, **options)
    assert (progress.steps, progress.train_seconds) == (steps, float(steps))
    assert replayed == [16, 16, 16, 16, 16, 10][:steps]


def test_a_step_that_reads_a_number_back_is_unsupported() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(784, 10)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.linear(images.flatten(1))
            return scores if float(scores.detach().sum()) else -scores

    with pytest.raises(Unsupported, match="cannot be captured in a graph: operation not permitted"):
        GraphedStep(Reader(), split(20), lr=0.1, batch_size=4).capture(4)


def test_timed_replays_have_no_phases_and_train_on_one_batch_after_the_other() -> None:
    model, eager = network(), network()
    options: dict[str, Any] = {"lr": 0.1, "batch_size": 16, "seed": 0}
    timing = Timing(warmup_steps=2, steps=4, max_seconds=60.0)
    graphed = GraphedStep(model, split(90), lr=0.1, batch_size=16)
    found = time_steps(model, split(90), replace(timing, cold_steps=3), graphed=graphed, **options)
    assert found.phases == {}
    assert (len(found.step_ms), len(found.cold_ms)) == (4, 3)
    assert found.host_ms > 0
    told = time_steps(eager, split(90), timing, **options)
    assert told.cold_ms == []
    # seven steps after the first are as many in another order of batches only where they wrap around
    assert all(parameter.grad is not None for parameter in eager.parameters())


@pytest.mark.parametrize(("factor", "status"), [(1.0, "ok"), (0.5, "incorrect")])
def test_a_replay_is_held_against_a_plain_step(factor: float, status: str) -> None:
    class Data(ImageBatches):
        factor = 1.0

        def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().objective(outputs, targets) * self.factor

    plain, data = split(48), network()
    captured = Data(plain.images, plain.labels, plain.dtype, plain.memory_format)
    object.__setattr__(captured, "factor", factor)
    graphed = GraphedStep(data, captured, lr=0.1, batch_size=16)
    graphed.capture(16)
    setup: Any = SimpleNamespace(
        model=data.model,
        backend=discover(installed=()).backend("torch"),
        arithmetic=arithmetic("float32"),
        amp=Amp(),
        fuse=False,
        device=torch.device("cpu"),
        recipe=SimpleNamespace(lr=0.1),
        train_data=plain,
        batch_size=16,
        cases=lambda *sizes: {},
        verify=lambda cases, seed, once: Verdict("ok"),
        check_process=lambda: None,
    )
    before = {name: value.clone() for name, value in data.model.state_dict().items()}
    found = recheck(setup, 1, data, trained=False, graphed=graphed)
    assert found.status == status, found
    if status == "incorrect":
        assert found.error == "a replayed step is another one than that of the plain model"
    assert all(torch.equal(value, before[name]) for name, value in data.model.state_dict().items())


def test_what_has_no_graphs_says_so() -> None:
    for kind, said in (("cpu", "cpu has none"), ("meta", "torch.meta has none")):
        with pytest.raises(Unsupported, match=f"mode 'graph' captures CUDA graphs; {said}"):
            devices.capture(torch.device(kind), lambda: None, 1)


def test_the_host_is_kept_near_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        made = 0

        def __init__(self) -> None:
            Event.made += 1
            self.number = Event.made

        def record(self) -> None:
            log.append(f"record {self.number}")

        def synchronize(self) -> None:
            log.append(f"wait {self.number}")

    monkeypatch.setattr(torch, "meta", type("Module", (), {"Event": Event}), raising=False)
    limit_lead = devices.run_ahead_limit(torch.device("meta"), 2)
    for number in range(6):
        log.append(f"step {number}")
        limit_lead()
    assert log == [
        "step 0", "step 1", "record 1", "step 2", "step 3", "wait 1", "record 2",
        "step 4", "step 5", "wait 2", "record 3",
    ]  # fmt: skip
    devices.run_ahead_limit(torch.device("cpu"), 2)()


def test_the_capture_of_a_cuda_device_follows_torchs_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up on a stream of its own, that waits and is waited for; then one call within the capture."""
    log: list[str] = []

    class Context:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            log.append(f"+{self.name}")

        def __exit__(self, *_: object) -> None:
            log.append(f"-{self.name}")

    class Stream:
        def wait_stream(self, other: object) -> None:
            log.append(f"{type(self).__name__} waits for {type(other).__name__}")

    class Current(Stream):
        pass

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    class Module:
        Stream_, CUDAGraph = Stream, Graph

        @staticmethod
        def device(_: object) -> Context:
            return Context("device")

        @staticmethod
        def stream(_: object) -> Context:
            return Context("stream")

        @staticmethod
        def graph(_: object) -> Context:
            return Context("graph")

        @staticmethod
        def current_stream() -> Current:
            return Current()

    Module.Stream = Stream  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "meta", Module, raising=False)
    monkeypatch.setattr(devices, "synchronize", lambda device: log.append("synchronize"))
    replay = devices.capture(torch.device("meta"), lambda: log.append("work"), 2)
    replay()
    assert log == [
        "+device", "Stream waits for Current", "+stream", "work", "work", "-stream", "Current waits for Stream",
        "synchronize", "+graph", "work", "-graph", "-device", "replay",
    ]  # fmt: skip
