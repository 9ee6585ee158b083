"""Turn what a worker sends, and how it ended, into rows."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from convbench.registry import Plugin, Registry
from convbench.results.schema import MEASURED, PHASES, Combination, Epoch, Kind, Row, Sample, Status
from convbench.results.storage.store import RunStore
from convbench.suites.config.suite import Suite
from convbench.suites.processes.supervisor import ExitStatus
from convbench.suites.processes.versions import normalised
from convbench.suites.runner.schedule import Task

# what verification finds out about a combination and its later rows repeat
OF_THE_COMBINATION = (
    "parameters",
    "flops_per_image",
    "step_flops_per_image",
    "step_bytes_per_image",
    "arithmetic_intensity",
    "roofline_step_ms",
    "served_calls",
    "served_flops_fraction",
    "served",
    "served_flops",
    "claimed",
    "derived_backward",
    "max_error",
)
LONGEST = 2000  # characters of an error or of notes
NOUNS: Mapping[Kind, str] = {"verify": "verification", "time": "timing", "train": "training"}


@dataclass(frozen=True)
class Circumstances:
    """What results depend on besides the suite: versions, machine, data.

    `versions` are those of distributions that workers find in place of the installed ones.
    """

    convbench_version: str
    torch_version: str
    machine_id: str
    device_names: Mapping[str, str]
    data: Mapping[str, Any]
    registry: Registry
    versions: Mapping[str, str] = field(default_factory=dict)

    def version(self, plugin: Plugin) -> str:
        """The version of a plugin's distribution in the workers."""
        return self.versions.get(normalised(plugin.distribution), plugin.version)

    def of_combination(self, combination: Combination) -> dict[str, str]:
        """Those that one combination depends on."""
        backend = self.registry.backends.plugin(combination.backend)
        architecture = self.registry.architectures.plugin(combination.architecture)
        return {
            "convbench": self.convbench_version,
            "torch": self.torch_version,
            "machine": self.machine_id,
            "device": self.device_names.get(combination.device, ""),
            "dataset": str(self.data),
            "backend": f"{backend.distribution} {self.version(backend)}",
            "architecture": f"{architecture.distribution} {self.version(architecture)}",
        }


class Recorder:
    """Writes the rows of one run."""

    def __init__(
        self, suite: Suite, store: RunStore, facts: Circumstances, run_id: str | None = None
    ) -> None:
        self.suite, self.store, self.facts = suite, store, facts
        self.run_id = run_id or store.path.name
        rows = store.rows()
        self._verified = {row.combination: row for row in rows if row.kind == "verify"}
        self._measured = {
            row.combination for row in rows if row.kind != "verify" and row.is_measured
        }  # those with figures that can turn out wrong
        self._wrong: dict[Combination, Row] = {}  # those that were right at first
        self._timed: dict[Combination, list[Row]] = defaultdict(list)
        for row in rows:
            if row.kind == "time":
                self._timed[row.combination].append(row)

    def begin(self, task: Task) -> Process:
        """A process is about to start."""
        return Process(self, task)

    def skip(self, task: Task, status: Status, reason: str) -> Row:
        """Write the row of a process that is not started, and why."""
        return self.write(task, status, reason, {}, _now())

    def leave_out(self, task: Task, reason: str) -> Row:
        """Write the row of a process that there is no time for; the reason is no error, but a note."""
        return self.write(task, "budget", None, {"notes": reason}, _now())

    def found_wrong(self, combination: Combination) -> tuple[Status, str] | None:
        """The status and reason that keep a combination from being measured: fail closed."""
        row = self._verified.get(combination)
        if row is None or row.status in MEASURED:
            row = self._wrong.get(combination)
        if row is None:
            return None
        return row.status, f"not measured, for its {NOUNS[row.kind]} ended {row.status}: {row.error}"

    def timed(self, combination: Combination) -> list[Row]:
        """The timing rounds of a combination so far."""
        return self._timed[combination]

    def num_classes(self, dataset: str) -> int:
        """How many classes the dataset has."""
        return self.facts.registry.dataset(dataset).num_classes

    def write(
        self, task: Task, status: Status, error: str | None, measures: Mapping[str, Any], started_at: str
    ) -> Row:
        """Append one row."""
        error = cut(error)
        combination, recipe, problem = task.combination, task.planned.recipe, task.planned.problem
        plugin = self.facts.registry.backends.plugin(combination.backend)
        verified = self._verified.get(combination)
        shared = {name: getattr(verified, name) for name in OF_THE_COMBINATION} if verified else {}
        resize = "x".join(map(str, recipe.resize)) if recipe.resize else "none"
        values: dict[str, Any] = {
            "threads": self.suite.timing.threads,
            "beside": 0,
            "fused": int(self.suite.fuse),
            "dataset": problem.name if problem else self.facts.data["name"],
            "train_images": None if problem else self.facts.data["shapes"]["train_images"][0],
            "convbench_version": self.facts.convbench_version,
            "plugin": plugin.distribution,
            "plugin_version": self.facts.version(plugin),
            "torch_version": self.facts.torch_version,
            "device_name": self.facts.device_names.get(combination.device),
            "machine_id": self.facts.machine_id,
            "recipe": f"lr={recipe.lr:g} epochs={recipe.epochs} resize={resize} init={recipe.init}",
            **shared,
            **measures,
            "notes": cut(measures.get("notes")),
        }
        if values.get("images_per_second") and values.get("step_flops_per_image"):
            values["gflops_per_second"] = values["images_per_second"] * values["step_flops_per_image"] / 1e9
        if values.get("images_per_second") and values.get("roofline_step_ms"):
            step_ms = 1000 * combination.batch_size / values["images_per_second"]
            values["roofline_fraction"] = values["roofline_step_ms"] / step_ms
        row = Row(
            run_id=self.run_id,
            suite=self.suite.name,
            kind=task.kind,
            round=task.round,
            status=status,
            error=error,
            started_at=started_at,
            order=task.order,
            combination_key=task.cut_key if status == "budget" and task.share is not None else task.key,
            **asdict(combination),
            **values,
        )
        if status == "incorrect":
            row = without_figures(row)
        self.store.append(row)
        if task.kind == "time":
            self._timed[combination].append(row)
        if task.kind == "verify":
            self._verified[combination] = row
        elif status == "incorrect":
            # without anything to take back, a run of many wrong ones does not rewrite its files for each
            if self.found_wrong(combination) is None and (
                task.kind == "train" or combination in self._measured
            ):
                reason = f"not measured, for its later {NOUNS[row.kind]} ended incorrect: {error}"
                retract(self.store, reason, row)
            self._wrong.setdefault(combination, row)
        elif row.is_measured:
            self._measured.add(combination)
        return row


@dataclass
class Process:
    """One worker process: collects its events, and becomes a row when it has ended."""

    recorder: Recorder
    task: Task
    started_at: str = field(default_factory=lambda: _now())
    began: float = field(default_factory=time.monotonic)
    measures: dict[str, Any] = field(default_factory=dict)
    ending: dict[str, Any] = field(default_factory=dict)
    trying: dict[str, Any] | None = None  # a case that is being verified, as an `Outcome`

    def epoch(self, event: Mapping[str, Any]) -> Epoch:
        """Keep an epoch at once, so that a killed training still shows its curve."""
        values = {name: value for name, value in event.items() if name != "event"}
        epoch = Epoch(**self._identity, **values)
        self.recorder.store.append_epochs([epoch])
        self.measures |= {
            "epochs": epoch.epoch,
            "steps": epoch.steps,
            "train_seconds": epoch.train_seconds,
            "train_loss": epoch.train_loss,
            "val_loss": epoch.val_loss,
            "val_accuracy": epoch.val_accuracy,
        }
        return epoch

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in samples, or how the work ended."""
        if event["event"] == "samples":
            self._samples(event)
        elif event["event"] in ("trying", "tried"):
            self.trying = event.get("ended")
        elif event["event"] == "end":
            self.ending = dict(event)
            self.measures |= event.get("measures") or {}

    def finish(self, ending: ExitStatus, timeout: float) -> Row:
        """The process is over: write its row."""
        status: Status | None = self.ending.get("status")
        error: str | None = self.ending.get("error")
        if status is None:
            if ending.code is None:
                status, error = "timeout", f"no end after {round(timeout, 1):g} s; its process was killed"
            else:
                status, error = "crashed", f"its process {ending.description} without a result"
            if self.trying is not None:
                hint = f"; {self.trying['message']}" if self.trying.get("message") else ""
                error = f"{self.trying.get('case')}: {error}{hint}"
        measures = {
            **self.measures,
            "notes": "; ".join(self.ending.get("notes") or ()) or None,
            "process_seconds": time.monotonic() - self.began,
        }
        return self.recorder.write(self.task, status, error, measures, self.started_at)

    @property
    def _identity(self) -> dict[str, Any]:
        return {"run_id": self.recorder.run_id, **asdict(self.task.combination)}

    def _samples(self, event: Mapping[str, Any]) -> None:
        step_ms: list[float] = event["step_ms"]
        identity = self._identity
        self.recorder.store.append_samples(
            Sample(
                **identity,
                round=self.task.round,
                step=number,
                step_ms=time,
                **{phase: event[phase][number] for phase in PHASES if phase in event},  # a replay has none
            )
            for number, time in enumerate(step_ms)
        )
        median = statistics.median(step_ms)
        deciles = (
            statistics.quantiles(step_ms, n=10, method="inclusive") if len(step_ms) > 1 else [median] * 9
        )
        self.measures |= {
            "steps": len(step_ms),
            "step_ms_median": median,
            "step_ms_p10": deciles[0],
            "step_ms_p90": deciles[8],
            "images_per_second": self.task.combination.batch_size / median * 1000,
            **{phase: statistics.median(event[phase]) for phase in PHASES if phase in event},
        }


def cut(text: str | None) -> str | None:
    """A text of a plugin's as a row keeps it: of a long one the beginning and the end."""
    if text is None or len(text) <= LONGEST:
        return text
    kept = LONGEST // 2
    return f"{text[:kept]} ... [{len(text) - 2 * kept:,} characters were cut here] ... {text[-kept:]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# of a timing or a training; what else a row has is true all the same
FIGURES = (
    "epochs",
    "steps",
    "train_seconds",
    "images_per_second",
    "step_ms_median",
    "step_ms_p10",
    "step_ms_p90",
    "forward_ms",
    "backward_ms",
    "optimizer_ms",
    "data_ms",
    "host_ms",
    "cold_step_ms",
    "setup_seconds",
    "compile_seconds",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "best_val_accuracy",
    "shifted_val_accuracy",
    "peak_memory_mb",
    "gflops_per_second",
    "roofline_fraction",
)


def without_figures(row: Row, **changes: Any) -> Row:
    """The row with no speed and no accuracy."""
    nothing: dict[str, Any] = dict.fromkeys(FIGURES)
    return replace(row, **nothing, **changes)


def retract(store: RunStore, reason: str, wrong: Row) -> None:
    """Withdraw every timing and training of a wrong row's combination, with their samples and curves."""
    rows = [
        without_figures(row, status="incorrect", error=reason)
        if row.combination == wrong.combination and row.kind != "verify" and row.status in MEASURED
        else row
        for row in store.rows()
    ]
    store.withdraw(rows, wrong)
