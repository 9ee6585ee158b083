"""Look at steps in the midst of a timing or a training, while the clock stands.

Which ones, no backend can know: they are drawn from a secret. The update of such a step is held against the
gradients that torch alone has for the same parameters, images and random numbers. In a timing, the step is an
extra one that is not timed, and the backend's calls in it are compared with the reference as well. A pause could
announce an audit: so the step before it, which was like all others, is compared as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from convbench.registry import Backend
from convbench.registry.conformance.aliasing import same
from convbench.registry.integrity.monkeypatch_guard import IntegrityError
from convbench.registry.integrity.step_audit import StepAudit
from convbench.registry.known_faults import faults_here
from convbench.registry.ops.dtypes import Arithmetic
from convbench.registry.routing.dispatch import use_backend
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.data import Batches
from convbench.suites.measure.devices import peak_memory_mb

OF_A_TIMING = 2  # audited steps of its first ones; one of as many further ones
IMAGES = 0.02  # of those that verification compares; others in every audit, besides the first and the last
FIRST = 3  # steps of a training that are audited, besides one of each epoch
AFTER_BACKWARD = 4  # the mark of a step that comes between its backward pass and its update
SHARE = 0.1  # of its norm: how far a gradient may be off; single calls are held to much less
LOSS_SHARE = 0.01  # likewise, of the loss
INPUT, LOSS = "the input", "the loss"  # beside the names of parameters
NOISE = 3.0  # times what rounding the images and parameters changes about a gradient

FLIPS = 0.01  # of the images: whose class rounding may change; ten times as many where it is coarse
COARSE = 1e-5  # precision

Gradients = dict[str, Tensor]  # by the names of parameters, and of `INPUT` or `LOSS`


@dataclass(frozen=True)
class Evaluation:
    """The mean loss and the accuracy on so many images of a split; the accuracy is NaN for a problem."""

    loss: float
    accuracy: float
    images: int


class Audit:
    """The audits of one timing or training.

    Args:
        model: the plain model, whose parameters are trained.
        backend: that computes it; route the model to the audit's own `backend` instead.
        data: what it is trained on.
        lr: the learning rate.
        amp: of the training.
        arithmetic: of the combination.
        mode: of the combination; only in mode `eager` can calls be looked at.
        secret: from which it is drawn what is audited.
        alone: whether no other process trains with this one. Otherwise torch takes the step of all of them on the
            whole batch, and random numbers are never the same.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: Backend,
        data: Batches,
        *,
        lr: float,
        amp: Amp,
        arithmetic: Arithmetic,
        mode: str,
        secret: int,
        alone: bool = True,
    ) -> None:
        self._model, self._data, self._lr, self._amp = model, data, lr, amp
        self.eager, self._random = mode == "eager", Random(secret)
        self._learns = [parameter.requires_grad for parameter in model.parameters()]
        self._calls = StepAudit(backend, arithmetic.factor_error, IMAGES)
        self.backend = self._calls.backend if self.eager else backend
        self._precision = max(float(torch.finfo(arithmetic.tensors).eps), arithmetic.factor_error)
        self._marks, self._alone = 0, alone
        self._found: IntegrityError | None = None  # about a step that nothing announced
        self._peak_memory_mb: float | None = None

    @property
    def peak_memory_mb(self) -> float:
        """The most memory used so far, or before the first audit."""
        if self._peak_memory_mb is None:
            return peak_memory_mb(self._data.device)
        return self._peak_memory_mb

    def of_timing(self, steps: range) -> Collection[int]:
        """Before which of these timed steps one is audited."""
        wanted = 1 if steps.start else OF_A_TIMING
        return set(self._random.sample(steps, min(wanted, len(steps))))

    def of_training(self, steps: int, epochs: int) -> Collection[int]:
        """Which steps of a training are audited: the first ones, and one of each epoch of so many steps."""
        drawn = (epoch * steps + self._random.randrange(steps) for epoch in range(epochs))
        return {*range(FIRST), *drawn}

    def choice(self, batches: list[Tensor]) -> Tensor:
        """One of these batches."""
        return self._random.choice(batches)

    def draws(self, probability: float) -> bool:
        """Whether to look at something that is looked at with this probability."""
        return self._random.random() < probability

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Raise IntegrityError where the evaluation within changes the model's parameters."""
        before = {name: parameter.detach().clone() for name, parameter in self._model.named_parameters()}
        yield
        for name, parameter in self._model.named_parameters():
            if not same(parameter.detach(), before[name]):
                raise IntegrityError(f"an evaluation has changed {name}")

    def plain(self) -> nn.Module:
        """The model computed by torch."""
        return _by_torch(self._model)

    def check_evaluation(self, found: Evaluation, plain: Evaluation) -> None:
        """Raise IntegrityError where loss or accuracy are not those of the plain model, but for rounding.

        It may have been evaluated on fewer images, drawn at random.
        """
        if math.isnan(found.accuracy) or not math.isfinite(plain.loss):
            return
        images, coarse = min(found.images, plain.images), 10 if self._precision > COARSE else 1
        chance = 0.0 if found.images == plain.images else 5 / math.sqrt(4 * images)
        if not abs(found.accuracy - plain.accuracy) <= coarse * FLIPS + 2 / images + chance:
            raise IntegrityError(
                f"the accuracy of an evaluation is {found.accuracy:.3g} where torch's is {plain.accuracy:.3g}"
            )
        if not chance and not abs(found.loss - plain.loss) <= coarse * LOSS_SHARE * plain.loss:
            raise IntegrityError(
                f"the loss of an evaluation is {found.loss:.6g} where torch's is {plain.loss:.6g}"
            )

    def before(self, total_loss: float = 0.0) -> None:
        """Note what the next step begins with; `total_loss` is the sum of the losses so far."""
        self._copy_model()
        self._total_loss = total_loss

    def unannounced(self, index: Tensor) -> None:
        """Hold the step just taken on these images against torch's, by the gradients that it has left.

        Nothing was done before it, by which a backend could have known of this: parameters are those that it began
        with once the update is taken back. Steps that draw random numbers cannot be taken again. `after`
        raises what is found, for the audit in between may say more about it.
        """
        self._copy_model()
        if self._scale != 1.0:
            return  # gradients may still be multiplied by it
        tensors: dict[str, Tensor] = dict(self._model.named_parameters())
        if self._data.grad_output is None:
            for name, parameter in self._twin.named_parameters():
                parameter.data.add_(_gradient(tensors[name]).to(parameter.dtype), alpha=self._lr)
        else:
            tensors[INPUT] = self._data.batch(index)[0]
        try:
            self._compare(index, {name: _gradient(each) for name, each in tensors.items()}, {})
        except IntegrityError as error:
            self._found = error

    def _copy_model(self) -> None:
        """Note the model, whose parameters learn whatever became of them, and the state of random numbers."""
        self._peak_memory_mb = self.peak_memory_mb
        self._twin, self._random_state = deepcopy(self._model), _random_state(self._data.device)
        for parameter, learns in zip(self._twin.parameters(), self._learns, strict=True):
            parameter.requires_grad_(learns)
        self._scale = self._amp.scale

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every call of the step within, which calls `mark` at each of its marks."""
        self._marks = 0
        with self._calls.watching():
            yield

    def mark(self) -> None:
        """A phase of the step is over."""
        self._marks += 1
        if self.eager and self._marks == AFTER_BACKWARD:
            self._calls.check_gradients()

    def after(self, index: Tensor, total_loss: float | None = None) -> None:
        """Hold the step since `before`, on these images, against torch's.

        Raises:
            IntegrityError: it did something else, or the last one that nothing announced.
        """
        if self._found is not None:
            raise self._found
        if self._amp.scale < self._scale:
            return  # a gradient overflowed, and the update was left out
        given, rounding = self._step_taken(index, total_loss)
        self._compare(index, given, rounding)

    def _compare(self, index: Tensor, given: Gradients, rounding: dict[str, float]) -> None:
        """Raise IntegrityError where torch's step has other gradients, by more than rounding puts them off."""
        random_state = _random_state(self._data.device)
        right, drawn = self._torchs_step(index)
        if not all(each.isfinite().all() for each in right.values()):
            return  # it diverges
        whole = math.sqrt(sum(float(each.square().sum()) for name, each in right.items() if name != LOSS))
        slack = 1e-4 + 4 * self._precision

        def excess(name: str) -> float:
            share, unit = (LOSS_SHARE, float(right[LOSS].norm())) if name == LOSS else (SHARE, whole)
            admissible = share * float(right[name].norm()) + slack * unit + rounding.get(name, 0.0)
            return float((given[name] - right[name]).norm().nan_to_num(nan=math.inf)) - admissible

        wrong = [name for name in given if excess(name) > 0]
        random = not torch.equal(drawn, self._random_state)
        same_random = self._alone and self.eager and torch.equal(drawn, random_state)
        if not wrong or (random and not same_random):
            return  # other random numbers make another step
        noisy, _ = self._torchs_step(index, noise=max(self._precision, 1e-5))
        for name in wrong:
            if excess(name) > NOISE * float((noisy[name] - right[name]).norm()):
                raise IntegrityError(_sentence(name, given[name], right[name]))

    def _step_taken(self, index: Tensor, total_loss: float | None) -> tuple[Gradients, dict[str, float]]:
        """The gradients that a step has followed, by name, and how far rounding may put them off."""
        tensors: dict[str, Tensor] = dict(self._model.named_parameters())
        if self._data.grad_output is not None:  # a step changes none of them, only what they hold before it
            self._twin.load_state_dict(self._model.state_dict())
            tensors[INPUT] = self._data.batch(index)[0]
            return {name: _gradient(each) for name, each in tensors.items()}, {}
        given, rounding = {}, {}
        for name, parameter in self._twin.named_parameters():
            old = parameter.detach()
            given[name] = (old - tensors[name].detach()).double() / self._lr
            rounding[name] = torch.finfo(old.dtype).eps * float(old.norm()) / self._lr
        if total_loss is not None:
            given[LOSS] = torch.tensor(total_loss - self._total_loss, dtype=torch.float64)
        return given, rounding

    def _torchs_step(self, index: Tensor, noise: float = 0.0) -> tuple[Gradients, Tensor]:
        """The gradients that torch has, and the state of random numbers afterwards; all numbers off by `noise`."""
        twin, data, device = self._twin, self._data, self._data.device
        twin.train().zero_grad()
        inputs, targets = data.batch(index)
        inputs = inputs.detach()
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
            if noise:
                inputs = inputs * (1 + noise * torch.randn_like(inputs))
                for parameter in twin.parameters():
                    parameter.data.mul_(1 + noise * torch.randn_like(parameter))
            inputs.requires_grad_(data.grad_output is not None)
            _set_random_state(device, self._random_state)
            with self._amp.autocast():
                objective = data.objective(_by_torch(twin)(inputs), targets)
            if objective.requires_grad:
                (objective * self._scale).backward(data.grad_output)
            drawn = _random_state(device)
        right = {name: _gradient(each) / self._scale for name, each in twin.named_parameters()}
        if data.grad_output is not None:
            return {**right, INPUT: _gradient(inputs)}, drawn
        return {**right, LOSS: objective.detach().double().cpu()}, drawn


def _by_torch(model: nn.Module) -> nn.Module:
    """The model computed by torch; in another way where torch is known to be wrong on this machine."""
    if not faults_here():
        return model
    return use_backend(model, Backend("torch alone", "leaves everything to torch", load=dict))


def _gradient(tensor: Tensor) -> Tensor:
    """A copy of its gradient, zeros where it has none."""
    return torch.zeros_like(tensor).double() if tensor.grad is None else tensor.grad.detach().double().clone()


def _random_state(device: torch.device) -> Tensor:
    """The state of torch's random numbers, of the host and of the device."""
    if device.type == "cpu":
        return torch.get_rng_state()
    module: Any = getattr(torch, device.type)
    return torch.cat([torch.get_rng_state(), module.get_rng_state(device)])


def _set_random_state(device: torch.device, state: Tensor) -> None:
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own])
    if device.type != "cpu":
        module: Any = getattr(torch, device.type)
        module.set_rng_state(state[own:], device)


def _sentence(name: str, given: Tensor, right: Tensor) -> str:
    if name == LOSS:
        return f"the loss of a step is {float(given):.6g} where torch's is {float(right):.6g}"
    if not given.any():
        return f"a step has no gradient for {name}, and torch's has one"
    off = float((given - right).norm() / right.norm())
    return f"a step followed a gradient of {name} that is {off:.3g} times its norm away from torch's"
