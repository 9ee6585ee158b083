"""The one table of columns: each column's name, type, unit, meaning, heading and number format.

`Row`, `Epoch` and `Sample` are the lines of results.csv, curves.csv and samples.csv; `Summary` is a line of every
table of a run. A field is a column, and the order of the fields is the order of the columns. Readers, writers,
tables and the documentation take `columns(record)`, so each fact about a column is stated here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args, get_type_hints

from convbench.registry.errors import shown
from convbench.results.columns import (
    Column,
    about,
    accuracy,
    factor,
    later,
    optional,
    rounded,
    significant,
    whole,
)
from convbench.results.wording import number, percent, share

Kind = Literal["verify", "time", "train"]
Status = Literal[
    "ok",
    "budget",
    "unsupported",
    "unavailable",
    "incorrect",
    "diverged",
    "oom",
    "timeout",
    "crashed",
    "error",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATUSES: tuple[Status, ...] = get_args(Status)
PHASES = ("data_ms", "forward_ms", "backward_ms", "optimizer_ms")  # of a step, in their order
# of a step of several processes, where the backward pass ends with the process's own gradients
PHASES_TOGETHER = (*PHASES[:3], "allreduce_ms", *PHASES[3:])
CONDITIONS = (  # columns of a combination's surroundings: only what was measured alike is compared
    "machine_id",
    "device_name",
    "torch_version",
    "threads",
    "dataset",
    "train_images",
    "recipe",
    "flush_denormal",
    "fused",
    "cudnn",
    "concurrent_devices",
)
MEASURED: tuple[Status, ...] = ("ok", "budget")  # the rest carry no speed and no accuracy to compare


@dataclass(frozen=True)
class Setting:
    """What is measured, and how: one architecture on one backend, under one set of conditions."""

    architecture: str = field(metadata=about("network, as registered"))
    backend: str = field(metadata=about("implementation of the ops, as registered"))
    device: str = field(metadata=about("torch device the ops ran on"))
    dtype: str = field(metadata=about("torch dtype of weights and images"))
    batch_size: int = field(metadata=about("images per step", "images", heading="batch size"))
    memory_format: str = field(metadata=about("`contiguous` or `channels_last`"))
    mode: str = field(metadata=about("`eager`, `compile` or `graph` (launch cost is hidden by a graph)"))
    world_size: int = field(
        default=1,
        kw_only=True,
        metadata=about(
            "processes that train together, each on its share of a batch", "processes", later=True
        ),
    )


@dataclass(frozen=True)
class Combination(Setting):
    """A setting with the seed of its weights."""

    seed: int = field(metadata=about("seed of the weights and of the order of the images"))

    @property
    def label(self) -> str:
        """All of it in one word, such as `lenet/im2col/cpu/float32/b128/contiguous/eager/s0`."""
        batch = f"b{self.batch_size}" + f"w{self.world_size}" * (self.world_size > 1)
        where = f"{self.architecture}/{self.backend}/{self.device}/{self.dtype}/{batch}"
        return f"{where}/{self.memory_format}/{self.mode}/s{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """Its fields; without `world_size` where it is 1, so that keys of older runs stay the same."""
        return {name: value for name, value in vars(self).items() if (name, value) != ("world_size", 1)}


COMBINATION = {f.name: f.metadata for f in fields(Combination)}


@dataclass(frozen=True)
class Combined(Combination):
    """A record that carries a combination's fields among its own."""

    @cached_property
    def combination(self) -> Combination:
        """The combination this record belongs to."""
        return Combination(**{name: getattr(self, name) for name in COMBINATION})


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """What the columns of every file begin with."""

    run_id: str = field(metadata=about("name of the run, shared by its rows"))


@dataclass(frozen=True, kw_only=True)
class OfProcess(OfRun):
    """What the columns of results.csv begin with."""

    suite: str = field(metadata=about("name of the suite"))
    kind: Kind = field(metadata=about("what the process did: `verify`, `time` or `train`"))
    round: int = field(metadata=about("which of the repeated processes, from 0"))
    status: Status = field(metadata=about(f"how it ended: {', '.join(f'`{status}`' for status in STATUSES)}"))
    error: str | None = optional("what went wrong, in one line")


@dataclass(frozen=True, kw_only=True)
class Row(Combined, OfProcess):
    """A row of results.csv: what one worker process did, measured or not.

    Raises:
        ValueError: `kind` or `status` is not one of KINDS and STATUSES.
    """

    threads: int | None = optional("torch's intra-op threads in the process")

    dataset: str | None = optional("data set that was really used")
    train_images: int | None = optional("size of the training set", "images")
    epochs: float | None = optional(
        "passes over the training set; a fraction where the budget ended one", "epochs"
    )
    steps: int | None = optional("training steps measured or trained", "steps")
    train_seconds: float | None = optional("time spent training, evaluation apart", "s")
    images_per_second: float | None = optional("training throughput", "images/s", heading="images/s")

    step_ms_median: float | None = optional("median time of a whole training step", "ms", heading="step, ms")
    step_ms_p10: float | None = optional("10th percentile of the step time", "ms")
    step_ms_p90: float | None = optional("90th percentile of the step time", "ms")
    forward_ms: float | None = optional("median time of the forward pass", "ms")
    backward_ms: float | None = optional("median time of the backward pass", "ms")
    optimizer_ms: float | None = optional("median time of the update", "ms")
    data_ms: float | None = optional("median time to gather and normalise a batch", "ms")
    setup_seconds: float | None = optional(
        "imports, building, compiling and first steps, outside every other figure", "s"
    )

    train_loss: float | None = optional("training loss of the last epoch", "nats")
    val_loss: float | None = optional("validation loss at the end", "nats")
    val_accuracy: float | None = optional("validation accuracy at the end")
    best_val_accuracy: float | None = optional("highest validation accuracy of any epoch")
    peak_memory_mb: float | None = optional(
        "peak of the device's allocated memory, or of the process on a CPU", "MB (10^6 bytes)"
    )

    parameters: int | None = optional("trainable parameters of the network")
    flops_per_image: float | None = optional(
        "floating-point operations of one image's forward pass, counted", "FLOPs"
    )
    gflops_per_second: float | None = optional(
        "counted operations over measured time", "GFLOP/s", heading="GFLOP/s"
    )
    roofline_fraction: float | None = optional(
        "share of the speed that the machine's measured peaks allow: see docs/measuring.md",
        heading="of the roofline",
        format=percent,
    )

    served_calls: int | None = optional("op calls of one forward pass that the backend served itself")
    served_flops_fraction: float | None = optional(
        "share of the FLOPs of all op calls that the backend served itself; torch did the rest",
        heading="coverage",
        format=share,
    )
    max_error: float | None = optional(
        "largest error against the float64 reference, relative to its magnitude", format=rounded(".1e")
    )

    convbench_version: str | None = optional("version of convbench")
    plugin: str | None = optional("distribution that brought the backend")
    plugin_version: str | None = optional("its version")
    torch_version: str | None = optional("version of torch, with its build")
    device_name: str | None = optional("model of the processor or accelerator")
    machine_id: str | None = optional("short hash of the machine's hardware and identity")
    started_at: str | None = optional("when the process started", "UTC, ISO 8601")

    order: int | None = later("position in the run's randomised schedule")
    notes: str | None = later("what a reader should know, such as a cut by the budget")
    served: str | None = later("calls served of calls made, op by op: `conv2d 2/2`")
    flush_denormal: int | None = later("1 where denormal numbers were flushed to zero, 0 where not")
    recipe: str | None = later("how it was trained: learning rate, epochs, resize, init")
    shifted_val_accuracy: float | None = later("validation accuracy on images moved by a few pixels")
    step_flops_per_image: float | None = later(
        "floating-point operations of one image's whole step, counted", "FLOPs"
    )
    combination_key: str | None = later(
        "hash of combination, plugin version and environment; a resumed run skips by it"
    )
    served_flops: str | None = later("share of the FLOPs served, op by op: `conv2d 0.853, avg_pool2d 0`")
    supported_ops: str | None = later("ops that the backend implements: `conv2d, avg_pool2d`")
    derived_backward: str | None = later(
        "ops whose gradients were derived from the forward, at its cost: `conv2d`"
    )

    step_bytes_per_image: float | None = later(
        "least that the layers of one image's step read and write, forward and backward, counted", "bytes"
    )
    arithmetic_intensity: float | None = later(
        "`step_flops_per_image` over `step_bytes_per_image`", "FLOPs/byte"
    )
    roofline_step_ms: float | None = later(
        "shortest time the machine's measured peaks allow for a step's layers, one after the other", "ms"
    )
    compile_seconds: float | None = later(
        "part of `setup_seconds`: what the first step took beyond a usual one, such as compiling", "s"
    )
    other_load: float | None = later("CPUs that other programs kept busy meanwhile, on average", "CPUs")
    steal_fraction: float | None = later("share of CPU time that a hypervisor gave to others meanwhile")
    context_switches: int | None = later("times a thread of the process lost its CPU against its will")
    throttle_events: int | None = later(
        "times the device was slowed for heat or power, or the process stopped for its CPU quota"
    )
    cpu_mhz: float | None = later("mean clock of the CPUs right afterwards, where it can be read", "MHz")
    flags: str | None = later("what makes the times doubtful, words of `busy`, `throttled` and `drifting`")
    fused: int | None = later(
        "1 where layers next to each other were computed by one op of the backend that has such, 0 where not"
    )
    dispatch: str | None = later(
        "of a backend that chooses: who computed each call, one name for all of it or one each for its "
        "forward, input gradient and weight gradient: `conv2d 32x64x24x24 * 64x64x3x3: native/torch/native`"
    )
    autocast: int | None = later(
        "1 where weights are float32 and the dtype is autocast's, 0 where tensors are of the dtype"
    )
    cudnn: str | None = later("how cuDNN chose its algorithms: by `heuristic`, or by `trial` at first use")
    host_ms: float | None = later(
        "time the host was busy with a step, on average, before it could hand over the next", "ms"
    )
    cold_step_ms: float | None = later(
        "median time of a step before which the device's caches were flushed; all other times are with "
        "what the step before left there",
        "ms",
    )
    gpu_mhz: float | None = later("clock of the GPU's processors right afterwards", "MHz")
    gpu_memory_mhz: float | None = later("clock of the GPU's memory right afterwards", "MHz")
    throttle_reasons: str | None = later(
        "why the GPU's clock was held down meanwhile, in nvidia-smi's words: `sw_power_cap`"
    )
    concurrent_devices: int | None = later(
        "other devices on which processes of the same run could work at the same time; 0 where one process "
        "ran at a time",
        "devices",
    )
    process_seconds: float | None = later(
        "how long the worker process took from its start to its end, checks and evaluation included", "s"
    )

    allreduce_ms: float | None = later(
        "median time from when a process has its own gradients to when it has the mean over all that train "
        "together: what its backward pass did not hide of the all-reduce, and its wait for slower ones",
        "ms",
    )

    node: str | None = later("host that measured")
    block: str | None = later(
        "round of a comparison group, or verification or training, which one machine of a cluster did as a whole: "
        "only what is of one block is compared; empty without a cluster"
    )

    @property
    def left_out(self) -> bool:
        """Whether it stands for a process that the total budget of its run had no time for."""
        figures = (self.steps, self.step_ms_median, self.train_seconds, self.val_accuracy, self.val_loss)
        return self.status == "budget" and all(figure is None for figure in figures)

    @property
    def is_measured(self) -> bool:
        """Whether its process ended with a measurement, or with what its budget had room for."""
        return self.status in MEASURED and not self.left_out

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, KINDS), ("status", self.status, STATUSES)):
            if value not in allowed:
                raise ValueError(f"{name} is {shown(value)}, not one of {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class Trace(Combined, OfRun):
    """A row of curves.csv or samples.csv."""


@dataclass(frozen=True, kw_only=True)
class Epoch(Trace):
    """A row of curves.csv: where one training stood at the end of an epoch, or of its budget."""

    epoch: float = field(metadata=about("epochs done, a fraction where the budget ended one", "epochs"))
    steps: int = field(metadata=about("training steps done", "steps"))
    train_images_seen: int = field(metadata=about("training images seen, repeats included", "images"))
    train_seconds: float = field(metadata=about("time spent training so far, evaluation apart", "s"))
    train_loss: float | None = optional("mean training loss of the epoch", "nats")
    val_loss: float | None = optional("validation loss", "nats")
    val_accuracy: float | None = optional("validation accuracy")


@dataclass(frozen=True, kw_only=True)
class Sample(Trace):
    """A row of samples.csv: the raw times of one step, of which nothing is dropped."""

    round: int = field(metadata=about("which of the repeated processes, from 0"))
    step: int = field(metadata=about("which step of the process, from 0, warm-up apart"))
    data_ms: float | None = optional("time to gather and normalise a batch", "ms")
    forward_ms: float | None = optional("time of the forward pass", "ms")
    backward_ms: float | None = optional("time of the backward pass", "ms")
    optimizer_ms: float | None = optional("time of the update", "ms")
    step_ms: float | None = optional("time of the whole step", "ms")
    allreduce_ms: float | None = later("time from a process's own gradients to the mean of all", "ms")


FILES: Mapping[str, type[Combined]] = {"results.csv": Row, "curves.csv": Epoch, "samples.csv": Sample}


@dataclass(frozen=True, kw_only=True)
class Summary(Setting):
    """One line of a run's tables: a backend under one set of conditions, over all its processes and seeds."""

    status: str = field(
        metadata=about("ok, or what went wrong; `budget` marks a combination that its budget ended early")
    )
    flags: str | None = optional("what makes times doubtful, and in how many processes")
    parameters: int | None = optional("trainable parameters of the network")
    images_per_second: float | None = optional(
        "training throughput, higher is better", "images/s", heading="images/s"
    )
    step_ms: float | None = optional(
        "time of a training step: the geometric mean over processes of their median steps; images/s and "
        "x torch are derived from it",
        "ms",
        heading="step, ms",
    )
    step_ms_p10: float | None = optional("a tenth of the steps takes less", "ms", heading="p10, ms")
    step_ms_p90: float | None = optional("a tenth of the steps takes more", "ms", heading="p90, ms")
    processes: int | None = optional("number of fresh processes timed, in random order across combinations")
    speedup: float | None = optional(
        "speed relative to torch: above 1 is faster", heading="x torch", format=factor
    )
    speedup_low: float | None = optional("lower end of the 95 % interval of x torch", heading="x torch, low")
    speedup_high: float | None = optional(
        "upper end of the 95 % interval of x torch", heading="x torch, high"
    )
    val_accuracy: float | None = optional(
        "validation accuracy at the end of the epochs or of the budget; the mean over seeds",
        heading="accuracy",
        format=accuracy,
    )
    val_accuracy_low: float | None = optional(
        "lowest accuracy of any seed", heading="accuracy, lowest", format=accuracy
    )
    val_accuracy_high: float | None = optional(
        "highest accuracy of any seed", heading="accuracy, highest", format=accuracy
    )
    val_loss: float | None = optional(
        "validation loss at the end, where there is no accuracy",
        "nats",
        heading="final loss",
        format=accuracy,
    )
    seeds: int | None = optional("number of trainings, each with a seed of its own")
    epochs: float | None = optional(
        "passes over the training set", "epochs", heading="epochs", format=rounded(".3g")
    )
    train_seconds: float | None = optional(
        "time spent training, evaluation apart", "s", heading="training, s", format=significant
    )
    shifted_val_accuracy: float | None = optional(
        "validation accuracy on images moved by a few pixels", heading="shifted", format=accuracy
    )
    gflops_per_second: float | None = optional(
        "counted operations of a step over its time", "GFLOP/s", heading="GFLOP/s"
    )
    roofline_fraction: float | None = optional(
        "share of the speed that the machine's measured peaks allow, layer by layer",
        heading="of the roofline",
        format=percent,
    )
    coverage: float | None = optional(
        "share of the FLOPs of convolutions and poolings that the backend computed itself; torch computed the "
        "rest. `PARTLY` marks a backend that left calls of an op that it implements to torch; backends that "
        "left convolutions to torch are listed last, without a rank",
        format=share,
    )
    ranked: int | None = optional("1 where the backend computed every convolution itself, 0 where not")
    max_error: float | None = optional(
        "largest error against the float64 reference in verification, relative to its magnitude",
        format=rounded(".1e"),
    )
    derived_backward: str | None = optional(
        "ops whose gradients are computed by the forward ops, which takes longer", heading="backward"
    )
    peak_memory_mb: float | None = optional(
        "peak of a timing process, on its device", "MB", heading="memory, MB", format=whole
    )
    setup_seconds: float | None = optional(
        "imports, building and first steps, outside every other figure", "s", heading="set-up, s"
    )
    compile_seconds: float | None = optional(
        "part of the set-up: what the first step took beyond a usual one, such as compiling",
        "s",
        heading="compiling, s",
    )
    notes: str | None = optional("what else a reader should know", heading="note")
    arithmetic_intensity: float | None = optional(
        "counted operations of a step over the bytes that it has to move at least",
        "FLOPs/byte",
        heading="FLOPs per byte",
        format=rounded(".3g"),
    )
    machine_kind: str | None = optional("its model, where speeds differ between models", heading="machine")


def columns(record: type) -> tuple[Column, ...]:
    """The columns of such records, in order: of the file that holds them, or of the table that shows them."""
    return _COLUMNS[record]


def column(record: type, name: str) -> Column:
    """One of them."""
    return next(each for each in columns(record) if each.name == name)


def read_columns(record: type[Combined | Summary]) -> tuple[Column, ...]:
    """Make the columns from the fields of a record."""
    hints = get_type_hints(record)
    found = []
    for f in fields(record):
        kinds = (hints[f.name], *get_args(hints[f.name]))
        kind = next((kind for kind in (float, int) if kind in kinds), str)
        words = {**f.metadata, "heading": f.metadata["heading"] or heading(f.name, f.metadata["unit"])}
        words["format"] = words["format"] or (number if kind is float else whole)
        required = f.default is MISSING
        default = None if required else f.default
        found.append(Column(name=f.name, type=kind, required=required, default=default, **words))
    return tuple(sorted(found, key=lambda each: each.later))


def heading(name: str, unit: str) -> str:
    """A column's name as words, with its unit unless the name has it."""
    words = name.replace("_", " ")
    parts = [part for part in re.split(r"[ /(]", unit) if part]
    return f"{words}, {unit}" if parts and not any(part in name for part in (parts[0], "seconds")) else words


_COLUMNS: Mapping[type, tuple[Column, ...]] = {
    record: read_columns(record) for record in (*FILES.values(), Trace, Summary)
}
