"""Write the rows, samples and epochs of a run, and withdraw the figures of what turns out wrong."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from convbench.registry import Plugin, Registry
from convbench.registry.discovery.plugins import normalised
from convbench.results.schema import MEASURED, Combination, Epoch, Kind, Row, Sample, Status
from convbench.results.storage.store import RunStore
from convbench.suites.config.suite import Suite
from convbench.suites.processes.protocol import EpochEnd, ImageFile, Measured, Samples, Survey
from convbench.suites.processes.versions import OtherVersion
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
    "supported_ops",
    "derived_backward",
    "max_error",
)
LONGEST = 2000  # characters of an error or of notes
NOUNS: Mapping[Kind, str] = {"verify": "verification", "time": "timing", "train": "training"}


@dataclass(frozen=True)
class Circumstances:
    """What results depend on besides the suite: versions, machine, data.

    `versions` are those of distributions that workers find in place of the installed ones, and `node` is the host.
    """

    convbench_version: str
    torch_version: str
    machine_id: str
    device_names: Mapping[str, str]
    images: ImageFile
    registry: Registry
    versions: Mapping[str, str] = field(default_factory=dict)
    node: str | None = None

    @classmethod
    def of_run(cls, registry: Registry, survey: Survey, other: OtherVersion | None) -> Circumstances:
        """Those of a run whose workers find `other` in place of what is installed."""
        versions = other.versions if other is not None else {}
        return cls(
            convbench_version=versions.get("convbench", registry.version),
            torch_version=survey.torch_version,
            machine_id=survey.environment["machine_id"],
            device_names=survey.devices,
            images=survey.images,
            registry=registry,
            versions=versions,
            node=platform.node() or None,
        )

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
            "dataset": str(self.images),
            "backend": f"{backend.distribution} {self.version(backend)}",
            "architecture": f"{architecture.distribution} {self.version(architecture)}",
        }


def utc_now() -> str:
    """The time in UTC, as rows have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Recorder:
    """Writes the rows of one run."""

    def __init__(
        self, suite: Suite, store: RunStore, facts: Circumstances, run_id: str | None = None
    ) -> None:
        self.suite, self.store, self.facts = suite, store, facts
        self.run_id = run_id or store.path.name
        self._verified: dict[Combination, Row] = {}
        self._measured: set[Combination] = set()  # those with figures that can turn out wrong
        self._wrong: dict[Combination, Row] = {}  # those that were right at first
        self._timed: dict[Combination, list[Row]] = defaultdict(list)
        for row in store.rows():
            self._remember(row)

    def keep_epoch(self, task: Task, event: EpochEnd) -> Epoch:
        """Store an epoch before its task has ended, so that a killed training still shows its curve."""
        epoch = Epoch(run_id=self.run_id, **vars(task.combination), **vars(event))
        self.store.append_epochs([epoch])
        return epoch

    def keep_samples(self, task: Task, samples: Samples) -> None:
        """Store the step times of a process."""
        identity = {"run_id": self.run_id, "round": task.round, **vars(task.combination)}
        times: dict[str, Any] = {"step_ms": samples.step_ms, **samples.phases}
        self.store.append_samples(
            Sample(**identity, step=step, **{name: values[step] for name, values in times.items()})
            for step in range(len(samples.step_ms))
        )

    def found_wrong(self, combination: Combination) -> tuple[Status, str] | None:
        """The status and reason that keep a combination from being measured: fail closed."""
        row = self._verified.get(combination)
        if row is None or row.status in MEASURED:
            row = self._wrong.get(combination)
        if row is None:
            return None
        return row.status, f"not measured, for its {NOUNS[row.kind]} ended {row.status}: {row.error}"

    def verified(self, combination: Combination) -> Row | None:
        """The verification of a combination."""
        return self._verified.get(combination)

    def timed(self, combination: Combination) -> list[Row]:
        """The timing rounds of a combination so far."""
        return self._timed[combination]

    def write(self, task: Task, result: Measured, started_at: str | None = None) -> Row:
        """Append the row of a task; it started just now where `started_at` is None."""
        status, error = result.status, cut(result.error)
        combination, recipe, problem = task.combination, task.planned.recipe, task.planned.problem
        plugin = self.facts.registry.backends.plugin(combination.backend)
        verified = self._verified.get(combination)
        shared = {name: getattr(verified, name) for name in OF_THE_COMBINATION} if verified else {}
        resize = "x".join(map(str, recipe.resize)) if recipe.resize else "none"
        values: dict[str, Any] = {
            "threads": self.suite.timing.threads,
            "concurrent_devices": 0,
            "fused": int(self.suite.fuse),
            "dataset": problem.name if problem else self.facts.images.name,
            "train_images": None if problem else self.facts.images.shapes["train_images"][0],
            "convbench_version": self.facts.convbench_version,
            "plugin": plugin.distribution,
            "plugin_version": self.facts.version(plugin),
            "torch_version": self.facts.torch_version,
            "device_name": self.facts.device_names.get(combination.device),
            "machine_id": self.facts.machine_id,
            "node": self.facts.node,
            "recipe": f"lr={recipe.lr:g} epochs={recipe.epochs} resize={resize} init={recipe.init}",
            **shared,
            **result.measures,
            "notes": cut("; ".join(result.notes) or None),
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
            started_at=started_at or utc_now(),
            order=task.order,
            combination_key=task.cut_key if status == "budget" and task.share is not None else task.key,
            **asdict(combination),
            **values,
        )
        if status == "incorrect":
            row = without_figures(row)
        self.store.append(row)
        self._remember(row)
        if status == "incorrect" and task.kind != "verify":
            # without anything to take back, a run of many wrong ones does not rewrite its files for each
            if self.found_wrong(combination) is None and (
                task.kind == "train" or combination in self._measured
            ):
                reason = f"not measured, for its later {NOUNS[row.kind]} ended incorrect: {error}"
                retract(self.store, reason, row)
            self._wrong.setdefault(combination, row)
        return row

    def _remember(self, row: Row) -> None:
        if row.kind == "time":
            self._timed[row.combination].append(row)
        if row.kind == "verify":
            known = self._verified.get(row.combination)
            if known is None or row.round == known.round or known.status in MEASURED:
                self._verified[row.combination] = row  # right on one kind of machine is not right on another
        elif row.is_measured:
            self._measured.add(row.combination)


def cut(text: str | None) -> str | None:
    """A plugin's text as a row keeps it: the beginning and the end of a long one."""
    if text is None or len(text) <= LONGEST:
        return text
    kept = LONGEST // 2
    return f"{text[:kept]} ... [{len(text) - 2 * kept:,} characters were cut here] ... {text[-kept:]}"


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
    "allreduce_ms",
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
    store.restore()  # what is rewritten is taken for right from then on
    rows = [
        without_figures(row, status="incorrect", error=reason)
        if row.combination == wrong.combination and row.kind != "verify" and row.status in MEASURED
        else row
        for row in store.rows()
    ]
    store.withdraw(rows, wrong)
