"""What the jobs on a combination share: its records, its device, its model, its data, and how it is verified."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convbench.registry import Architecture, Backend, Unsupported, discover
from convbench.registry.conformance.cases import Case, model_cases
from convbench.registry.conformance.fused_cases import fused_cases
from convbench.registry.conformance.verify import Attempt, at_once, verify
from convbench.registry.integrity.global_state import GlobalState, ParentState
from convbench.registry.integrity.model_state import ModelState
from convbench.registry.integrity.monkeypatch_guard import IntegrityError, originals
from convbench.registry.models.factory import create_model, initialise
from convbench.registry.ops.dtypes import arithmetic
from convbench.registry.records import chooses
from convbench.registry.routing.dispatch import use_backend
from convbench.results.schema import Status
from convbench.suites.measure.amp import Amp
from convbench.suites.measure.audit import Audit
from convbench.suites.measure.cuda_graphs import GraphedStep
from convbench.suites.measure.data import (
    MEMORY_FORMATS,
    Batches,
    DataState,
    image_batches,
    problem_batches,
    read_images,
    translated,
)
from convbench.suites.measure.devices import check_capability, obstacle_to_graphs, select
from convbench.suites.measure.ranks import (
    Ranks,
    ShareOfBatches,
    has_norms_of_ranks,
    together,
    with_norms_of_ranks,
)
from convbench.suites.measure.training import prime
from convbench.suites.processes.protocol import CombinationJob

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


@dataclass(frozen=True)
class Verdict:
    """What came of a verification; `passed` and `refused` are the cases that did, as text."""

    status: Status
    error: str | None = None
    max_error: float | None = None
    passed: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


class Setup:
    """One combination, ready to be measured in this process."""

    def __init__(self, job: CombinationJob, data: int, ranks: Ranks | None = None) -> None:
        combination = job.combination
        self.ranks = ranks = ranks or Ranks()
        self._flushed = set_process(job.threads)
        self.arithmetic = arithmetic(combination.dtype)
        self.arithmetic.set()
        torch.backends.cudnn.benchmark = job.timing.cudnn == "trial"
        self._parent_state = ParentState()
        self._state = GlobalState()  # before any plugin is loaded
        registry = discover(distributions=job.distributions)
        self._interfering = registry.interfering
        self.architecture: Architecture = registry.architecture(combination.architecture)
        self.backend: Backend = registry.backend(combination.backend)
        self.recipe = job.recipe
        self.batch_size = combination.batch_size // combination.world_size  # of this process
        self.mode = combination.mode
        self.fuse = job.fuse
        self.seed = combination.seed
        self.device = torch.device(combination.device)
        if ranks.rank and self.device.index is not None:
            self.device = torch.device(self.device.type, self.device.index + ranks.rank)
        select(self.device)
        self.memory_format = combination.memory_format
        check_capability(self.device, self.arithmetic)
        problem = self.architecture.problem
        dtype = self.arithmetic.tensors
        self.amp = Amp()
        trained = problem is None or problem.loss is not None
        if dtype.itemsize < 4 and trained:  # by autocast
            self.amp = Amp(self.device, dtype)
            dtype = torch.float32
        images = None if problem else read_images(job.images, data)
        channels = images.train_images.shape[1] if images else self.architecture.input_shape[0]
        torch.manual_seed(self.seed)
        model = create_model(self.architecture, num_classes=job.num_classes, in_channels=channels)
        if self.recipe.init != self.architecture.recipe.init:
            torch.manual_seed(self.seed)
            initialise(model, self.recipe.init)
        if not ranks.alone:
            model = with_norms_of_ranks(model)
            if self.mode == "compile" and has_norms_of_ranks(model):
                raise Unsupported(f"world size {ranks.world_size}: batch norms over ranks cannot be compiled")
            torch.manual_seed(self.seed + ranks.rank)  # no two drop out the same
        self.model = model.to(self.device, dtype).to(memory_format=MEMORY_FORMATS[self.memory_format])
        self._model_state = ModelState(self.model)
        self.train_data: Batches
        self.test_data: Batches
        self.translated_data: Batches | None = None
        if problem is not None:
            own = problem_batches(problem, self.model, self.batch_size, self.seed, dtype, self.memory_format)
            self.train_data = self.test_data = own
        elif images is not None:
            where = (self.device, dtype, self.memory_format, self.recipe.resize)
            self.train_data = image_batches(images.train_images, images.train_labels, *where)
            self.test_data = image_batches(images.test_images, images.test_labels, *where)
            if job.test_translation_px:
                moved = translated(images.test_images, job.test_translation_px, seed=self.seed)
                self.translated_data = image_batches(moved, images.test_labels, *where)

        splits = {"train": self.train_data, "test": self.test_data}
        self._data_state = DataState(job.images, data, splits)
        self._kept = dict(vars(self))

    @property
    def sample(self) -> Tensor:
        """One batch of real inputs; with a gradient where a step has one."""
        inputs, _ = self.train_data.batch(torch.arange(self.batch_size, device=self.device))
        return inputs.detach().requires_grad_(self.train_data.grad_output is not None)

    def check_process(self) -> None:
        """Raise IntegrityError if a plugin changed functions that measurements use, settings, or the model."""
        for name, value in self._kept.items():
            if vars(self)[name] is not value:
                raise IntegrityError(f"the {name} of the measurement was replaced")
        originals().check()
        originals().check_kernels()
        self._data_state.check()
        self._check_state()

    def _check_state(self) -> None:
        """The same but for functions, which `verify` looks at."""
        for plugin in self._interfering:
            raise IntegrityError(plugin.interference)
        self._state.check()
        self._parent_state.check()
        self._model_state.check()

    def conditions(self) -> dict[str, Any]:
        """What this process runs under, as it is now: a plugin may have changed it."""
        conditions: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "flush_denormal": int(self._flushed),
            "autocast": int(self.amp.dtype is not None),
        }
        if self.device.type == "cuda":
            conditions["cudnn"] = "trial" if torch.backends.cudnn.benchmark else "heuristic"
        return conditions

    def audit(self, secret: int) -> Audit:
        """What looks at steps in the midst of a timing or a training."""
        return Audit(
            self.model,
            self.backend,
            self.train_data,
            lr=self.recipe.lr,
            amp=self.amp,
            arithmetic=self.arithmetic,
            mode=self.mode,
            secret=secret,
            alone=self.ranks.alone,
        )

    def together(self, model: nn.Module) -> tuple[nn.Module, Batches]:
        """What is trained, and on what, by this process and the other ranks; for one alone, as it is."""
        if self.ranks.alone:
            return model, self.train_data
        return together(model, self.ranks, self.device), ShareOfBatches(self.train_data, self.ranks)

    def runnable(self, backend: Backend) -> nn.Module:
        """The model on its backend, which an audit may stand before, in its mode."""
        routed = use_backend(self.model, backend, fuse=self.fuse)
        if self.mode == "compile":
            if not self.backend.compiles:
                raise Unsupported(f"backend {self.backend.name!r} says that it cannot be compiled")
            if chooses(self.backend):
                prime(routed, self.train_data, self.batch_size)  # nothing is chosen while the compiler traces
                routed.reset_counts()
            compiled: Any = torch.compile(routed)
            return compiled  # type: ignore[no-any-return]  # a module, whatever its stub says
        return routed

    def graphed_step(self, model: nn.Module) -> GraphedStep | None:
        """The captured steps of a runnable model, in mode `graph`; nothing is captured yet."""
        if self.mode != "graph":
            return None
        obstacle = obstacle_to_graphs(self.device.type)
        if obstacle is not None:
            raise Unsupported(obstacle)
        return GraphedStep(
            model, self.train_data, lr=self.recipe.lr, batch_size=self.batch_size, amp=self.amp
        )

    def cases(self, *batches: int) -> Mapping[str, list[Case]]:
        """The distinct op calls of one forward pass, by op; of further passes with batches of these sizes."""
        distinct: dict[Case, None] = {}
        for size in dict.fromkeys((self.batch_size, *batches)):
            distinct |= dict.fromkeys(model_cases(self.model, self.sample[:size]))
            if self.fuse:  # besides: what is refused of these falls back to those
                distinct |= dict.fromkeys(fused_cases(self.model, self.backend, self.sample[:size]))
        cases: dict[str, list[Case]] = {}
        for case in distinct:
            cases.setdefault(case.op, []).append(case)
        return cases

    def verify(
        self, cases: Mapping[str, list[Case]], seed: int, attempt: Attempt = at_once, once: bool = False
    ) -> Verdict:
        """Compare the backend with the reference; an error is the first failure in a sentence.

        With `once` each call is checked on one set of data, not three: for a backend that passed before.

        A known fault of other people's code is a failure here like any other: what is wrong is not measured.
        """
        try:
            self._check_state()
            report = verify(
                self.backend,
                device=str(self.device),
                dtypes=[self.arithmetic.name],
                cases=cases,
                seed=seed,
                once=once,
                attempt=attempt,
            )
            self._check_state()
        except IntegrityError as error:
            return Verdict("incorrect", str(error))
        for outcome in sorted(report.failures, key=lambda each: bool(each.known_fault)):
            status: Status = "incorrect" if outcome.state == "failed" else "error"
            if outcome.state == "crashed" and outcome.memory:
                status = "oom"
            where = f"{outcome.case}: " if outcome.case else ""
            where = f"{outcome.known_fault}: {where}" if outcome.known_fault else where
            return Verdict(status, f"{where}{outcome.text}")
        if cases and not report.count("passed"):
            reasons = sorted({f"{outcome.op}: {outcome.message}" for outcome in report.outcomes})
            return Verdict("unsupported", "; ".join(reasons) or f"it offers none of {', '.join(cases)}")
        passed, refused = (
            frozenset(outcome.case for outcome in report.outcomes if outcome.state == state)
            for state in ("passed", "unsupported")
        )
        return Verdict("ok", None, report.max_error if cases else None, passed, refused)


def set_process(threads: int) -> bool:
    """Fix what the speed of every worker depends on, before torch starts its threads.

    glibc keeps freed memory and hands nothing back to the system: otherwise it maps and unmaps the tensors of
    every step, and page faults take a quarter of a LeNet step.

    Returns:
        whether denormal numbers are flushed to zero, which not every processor can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_num_threads(threads)
    return torch.set_flush_denormal(True)
