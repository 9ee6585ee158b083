"""Audits in the midst of timings and trainings: honest backends pass in every mode, others do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fake_graphs
from conftest import exhaustive
from convbench.registry import Backend, create_model, discover, use_backend
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.ops.dtypes import arithmetic
from convbench.suites.config.suite import Timing
from convbench.suites.measure import cuda_graphs
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.audit import Audit
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import Batches, ImageBatches, ProblemBatches
from convbench.suites.measure.steps import Steps, time_steps
from convbench.suites.measure.training import Progress, evaluate, train

BACKENDS = {
    name: backend
    for name, backend in discover(installed=()).backends.items()
    if backend.unavailable() is None and name not in ("loops", "scalar")
}
Conv = Callable[..., Tensor]


def images(count: int = 96) -> ImageBatches:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return ImageBatches(pixels, torch.arange(count) % 10, torch.float32, torch.contiguous_format)


def layer() -> tuple[nn.Module, ProblemBatches]:
    torch.manual_seed(0)
    inputs, grad_output = torch.randn(16, 2, 9, 9), torch.randn(16, 3, 7, 7)
    return nn.Conv2d(2, 3, 3), ProblemBatches(inputs.requires_grad_(), grad_output, None, grad_output)


class Work:
    """A network on a backend, and the audit of it."""

    def __init__(
        self,
        backend: Backend,
        mode: str = "eager",
        dtype: str = "float32",
        model: nn.Module | None = None,
        data: Batches | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.plain = model or create_model("lenet_relu")
        self.data = data or images()
        numbers = arithmetic(dtype)
        self.amp = Amp(torch.device("cpu"), numbers.tensors) if numbers.tensors.itemsize < 4 else Amp()
        self.audit = Audit(
            self.plain, backend, self.data, lr=0.1, amp=self.amp, arithmetic=numbers, mode=mode, secret=7
        )
        self.model: Any = use_backend(self.plain, self.audit.backend)
        self.graphed = None
        if mode == "compile":
            self.model = torch.compile(self.model, backend="aot_eager")
        if mode == "graph":
            self.graphed = GraphedStep(self.model, self.data, lr=0.1, batch_size=16, amp=self.amp)
            self.graphed.capture(16)
        self.options: dict[str, Any] = {
            "lr": 0.1,
            "batch_size": 16,
            "seed": 0,
            "amp": self.amp,
            "graphed": self.graphed,
            "audit": self.audit,
        }

    def train(self, epochs: int = 2) -> list[Progress]:
        return list(train(self.model, self.data, images(16), epochs=epochs, **self.options))

    def time(self) -> Steps:
        timing = Timing(warmup_steps=1, steps=8, max_seconds=100.0)
        return time_steps(self.model, self.data, timing, **self.options)


def planted(conv2d: Conv) -> Backend:
    return Backend("planted", "wrong somewhere", lambda: {"conv2d": conv2d}, dtypes=("float32", "bfloat16"))


@pytest.fixture(autouse=True)
def graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "capture", fake_graphs.capture)


@pytest.mark.parametrize("backend", BACKENDS)
def test_honest_backends_train_and_are_timed(backend: str) -> None:
    work = Work(BACKENDS[backend])
    assert work.train()[-1].steps == 12
    assert len(work.time().step_ms) == 8


@pytest.mark.parametrize("mode", ["eager", "compile", "graph"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", exhaustive("float16")])
def test_honest_steps_pass_in_every_mode_and_dtype(mode: str, dtype: str) -> None:
    work = Work(BACKENDS["torch"], mode, dtype)
    assert work.train()[-1].steps == 12
    assert len(work.time().step_ms) == 8


@pytest.mark.parametrize("name", ["lenet", "lenet_bn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["im2col", "fft"])
def test_other_networks_pass(name: str, dtype: str, backend: str) -> None:
    """Sigmoids leave small gradients, and a bias before batch norm has none but rounding errors."""
    if dtype in BACKENDS[backend].dtypes:
        torch.manual_seed(0)
        Work(BACKENDS[backend], "eager", dtype, create_model(name)).train()


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10), nn.Dropout(0.1)
    )


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_random_numbers_of_a_step_are_drawn_again(mode: str) -> None:
    work = Work(BACKENDS["im2col"], mode, model=dropping())
    work.train()
    work.time()


def test_random_numbers_hide_nothing() -> None:
    with pytest.raises(IntegrityError, match=r"no gradient for 0\.weight"):
        Work(planted(frozen), model=dropping()).train()


def test_an_audit_changes_nothing_about_a_training() -> None:
    with_audit, without = Work(BACKENDS["torch"]), Work(BACKENDS["torch"])
    without.options["audit"] = None
    one, other = with_audit.train(), without.train()
    assert [(each.train_loss, each.val_loss) for each in one] == [
        (each.train_loss, each.val_loss) for each in other
    ]


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_layers_alone_pass_with_other_numbers_in_every_step(backend: str) -> None:
    model, data = layer()
    seen: list[Tensor] = []
    conv2d = BACKENDS[backend].ops["conv2d"]

    def spy(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(input.detach().clone())
        return conv2d(input, *args, **kwargs)

    Work(replace(BACKENDS[backend], load=lambda: {"conv2d": spy}), model=model, data=data).time()
    assert len({str(each.tolist()) for each in seen}) == len(seen) == 2 + 8 + 2 * 2


def frozen(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(input, weight.detach(), *args, **kwargs)


def halved(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(input, weight.detach() + 0.5 * (weight - weight.detach()), *args, **kwargs)


def freezing(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if isinstance(weight, nn.Parameter):
        weight.requires_grad_(False)
    return F.conv2d(input, weight, *args, **kwargs)


def scaled(*args: Any, **kwargs: Any) -> Tensor:
    return F.conv2d(*args, **kwargs) * 1.2


@pytest.mark.parametrize("mode", ["eager", "compile", "graph"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("conv", "words"),
    [
        (frozen, "no gradient for 0.weight"),
        (halved, r"gradient of [03].weight that is 0.5 times"),
        (scaled, "gradient of|the loss"),
    ],
)
def test_a_training_that_is_not_torchs_is_told(conv: Conv, words: str, mode: str, dtype: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        Work(planted(conv), mode, dtype).train(1)


def test_what_freezes_parameters_is_told() -> None:
    with pytest.raises(IntegrityError, match=r"no gradient for 0\.weight"):
        Work(planted(freezing)).train(1)


@pytest.mark.parametrize("conv", [frozen, halved, scaled])
def test_timed_steps_are_held_against_the_reference(conv: Conv) -> None:
    model, data = layer()
    for work in (Work(planted(conv)), Work(planted(conv), model=model, data=data)):
        with pytest.raises(IntegrityError):
            work.time()


@pytest.mark.parametrize("conv", [frozen, halved])
def test_an_optimizer_that_leaves_out_its_step_is_told(conv: Conv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    with pytest.raises(IntegrityError, match="no gradient for"):
        Work(BACKENDS["torch"]).train(1)


def test_answers_that_are_kept_by_a_checksum_fit_no_other_step() -> None:
    answers: dict[float, Tensor] = {}

    def conv2d(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        key = float(input.detach().flatten()[:2].sum())
        output = F.conv2d(input, weight, *args, **kwargs)
        return output - output.detach() + answers.setdefault(key, output.detach())

    model, data = layer()
    with pytest.raises(IntegrityError, match="the output is"):
        Work(planted(conv2d), model=model, data=data).time()


def test_an_evaluation_keeps_the_parameters_and_is_what_torch_finds() -> None:
    work = Work(BACKENDS["torch"])
    weight = next(work.plain.parameters())
    with pytest.raises(IntegrityError, match="an evaluation has changed"), work.audit.evaluating():
        weight.detach().mul_(0.5)
    found = evaluate(work.plain, images(50), 16)
    work.audit.check_evaluation(found, found)
    work.audit.check_evaluation(found, replace(found, images=16, loss=9.0, accuracy=found.accuracy + 0.3))
    for wrong in (replace(found, accuracy=found.accuracy + 0.1), replace(found, loss=found.loss * 0.9)):
        with pytest.raises(IntegrityError, match="of an evaluation is"):
            work.audit.check_evaluation(wrong, found)
    none = replace(found, accuracy=math.nan)  # a problem has no accuracy
    work.audit.check_evaluation(none, replace(none, loss=9.0))


def test_what_is_audited_is_drawn_from_the_secret() -> None:
    def drawn(secret: int) -> list[Any]:
        audit = Audit(
            nn.Conv2d(1, 1, 1), BACKENDS["torch"], images(), lr=0.1, amp=Amp(),
            arithmetic=arithmetic("float32"), mode="eager", secret=secret,
        )  # fmt: skip
        return [audit.of_timing(range(30)), audit.of_timing(range(30, 60)), audit.of_training(100, 3)]

    assert drawn(1) == drawn(1)
    assert len({str(drawn(secret)) for secret in range(20)}) == 20
    timing, further, training = drawn(3)
    assert len(timing) == 2
    assert len(further) == 1
    assert 30 <= min(further) < 60
    assert {0, 1, 2} <= training
    assert all(any(epoch * 100 <= step < epoch * 100 + 100 for step in training) for epoch in range(3))
