"""What a run records: the columns of results.csv, curves.csv and samples.csv, and what each of them means.

A dataclass is a file, a field is a column, and the order of the fields is the order of the columns. Readers,
writers and the documentation are made from these classes, so that a column is described in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from convbench.registry.errors import shown

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
MEASURED: tuple[Status, ...] = ("ok", "budget")  # the rest carry no speed and no accuracy to compare


class Column(NamedTuple):
    """A column: its type (`str`, `int` or `float`), whether it may be empty, and its documentation."""

    name: str
    type: type
    required: bool
    later: bool  # joined after the documented columns; a reader does without it
    unit: str
    description: str


def about(description: str, unit: str = "", *, later: bool = False) -> Mapping[str, Any]:
    """Document a field."""
    return {"description": description, "unit": unit, "later": later}


@dataclass(frozen=True)
class Combination:
    """What is measured: one architecture on one backend, under one set of conditions."""

    architecture: str = field(metadata=about("network, as registered"))
    backend: str = field(metadata=about("implementation of the ops, as registered"))
    device: str = field(metadata=about("torch device the ops ran on"))
    dtype: str = field(metadata=about("torch dtype of weights and images"))
    batch_size: int = field(metadata=about("images per step", "images"))
    memory_format: str = field(metadata=about("`contiguous` or `channels_last`"))
    mode: str = field(metadata=about("`eager`, `compile` or `graph` (launch cost is hidden by a graph)"))
    seed: int = field(metadata=about("seed of the weights and of the order of the images"))

    @property
    def label(self) -> str:
        """All of it in one word, such as `lenet/im2col/cpu/float32/b128/contiguous/eager/s0`."""
        where = f"{self.architecture}/{self.backend}/{self.device}/{self.dtype}/b{self.batch_size}"
        return f"{where}/{self.memory_format}/{self.mode}/s{self.seed}"


COMBINATION = {f.name: f.metadata for f in fields(Combination)}


class Combined:
    """A record that carries a combination's fields among its own."""

    @cached_property
    def combination(self) -> Combination:
        """The combination this record belongs to."""
        return Combination(**{name: getattr(self, name) for name in COMBINATION})


@dataclass(frozen=True, kw_only=True)
class Row(Combined):
    """A row of results.csv: what one worker process did, measured or not.

    Raises:
        ValueError: `kind` or `status` is not one of KINDS and STATUSES.
    """

    run_id: str = field(metadata=about("name of the run, shared by its rows"))
    suite: str = field(metadata=about("name of the suite"))
    kind: Kind = field(metadata=about("what the process did: `verify`, `time` or `train`"))
    round: int = field(metadata=about("which of the repeated processes, from 0"))
    status: Status = field(
        metadata=about(f"how it ended: {', '.join(f'`{status}`' for status in STATUSES)}"),
    )
    error: str | None = field(default=None, metadata=about("what went wrong, in one line"))

    architecture: str = field(metadata=COMBINATION["architecture"])
    backend: str = field(metadata=COMBINATION["backend"])
    device: str = field(metadata=COMBINATION["device"])
    dtype: str = field(metadata=COMBINATION["dtype"])
    batch_size: int = field(metadata=COMBINATION["batch_size"])
    memory_format: str = field(metadata=COMBINATION["memory_format"])
    mode: str = field(metadata=COMBINATION["mode"])
    seed: int = field(metadata=COMBINATION["seed"])
    threads: int | None = field(default=None, metadata=about("torch's intra-op threads in the process"))

    dataset: str | None = field(default=None, metadata=about("data set that was really used"))
    train_images: int | None = field(default=None, metadata=about("size of the training set", "images"))
    epochs: float | None = field(
        default=None,
        metadata=about("passes over the training set; a fraction where the budget ended one", "epochs"),
    )
    steps: int | None = field(default=None, metadata=about("training steps measured or trained", "steps"))
    train_seconds: float | None = field(
        default=None, metadata=about("time spent training, evaluation apart", "s")
    )
    images_per_second: float | None = field(default=None, metadata=about("training throughput", "images/s"))

    step_ms_median: float | None = field(
        default=None, metadata=about("median time of a whole training step", "ms")
    )
    step_ms_p10: float | None = field(default=None, metadata=about("10th percentile of the step time", "ms"))
    step_ms_p90: float | None = field(default=None, metadata=about("90th percentile of the step time", "ms"))
    forward_ms: float | None = field(default=None, metadata=about("median time of the forward pass", "ms"))
    backward_ms: float | None = field(default=None, metadata=about("median time of the backward pass", "ms"))
    optimizer_ms: float | None = field(default=None, metadata=about("median time of the update", "ms"))
    data_ms: float | None = field(
        default=None, metadata=about("median time to gather and normalise a batch", "ms")
    )
    setup_seconds: float | None = field(
        default=None,
        metadata=about("imports, building, compiling and first steps, outside every other figure", "s"),
    )

    train_loss: float | None = field(default=None, metadata=about("training loss of the last epoch", "nats"))
    val_loss: float | None = field(default=None, metadata=about("validation loss at the end", "nats"))
    val_accuracy: float | None = field(default=None, metadata=about("validation accuracy at the end"))
    best_val_accuracy: float | None = field(
        default=None, metadata=about("highest validation accuracy of any epoch")
    )
    peak_memory_mb: float | None = field(
        default=None,
        metadata=about(
            "peak of the device's allocated memory, or of the process on a CPU", "MB (10^6 bytes)"
        ),
    )

    parameters: int | None = field(default=None, metadata=about("trainable parameters of the network"))
    flops_per_image: float | None = field(
        default=None,
        metadata=about("floating-point operations of one image's forward pass, counted", "FLOPs"),
    )
    gflops_per_second: float | None = field(
        default=None, metadata=about("counted operations over measured time", "GFLOP/s")
    )
    roofline_fraction: float | None = field(
        default=None,
        metadata=about("share of the speed that the machine's measured peaks allow: see docs/measuring.md"),
    )

    served_calls: int | None = field(
        default=None, metadata=about("op calls of one forward pass that the backend served itself")
    )
    served_flops_fraction: float | None = field(
        default=None,
        metadata=about(
            "share of the FLOPs of all op calls that the backend served itself; torch did the rest"
        ),
    )
    max_error: float | None = field(
        default=None,
        metadata=about("largest error against the float64 reference, relative to its magnitude"),
    )

    convbench_version: str | None = field(default=None, metadata=about("version of convbench"))
    plugin: str | None = field(default=None, metadata=about("distribution that brought the backend"))
    plugin_version: str | None = field(default=None, metadata=about("its version"))
    torch_version: str | None = field(default=None, metadata=about("version of torch, with its build"))
    device_name: str | None = field(default=None, metadata=about("model of the processor or accelerator"))
    machine_id: str | None = field(
        default=None, metadata=about("short hash of the machine's hardware and identity")
    )
    started_at: str | None = field(default=None, metadata=about("when the process started", "UTC, ISO 8601"))

    order: int | None = field(
        default=None, metadata=about("position in the run's randomised schedule", later=True)
    )
    notes: str | None = field(
        default=None, metadata=about("what a reader should know, such as a cut by the budget", later=True)
    )
    served: str | None = field(
        default=None, metadata=about("calls served of calls made, op by op: `conv2d 2/2`", later=True)
    )
    flush_denormal: int | None = field(
        default=None, metadata=about("1 where denormal numbers were flushed to zero, 0 where not", later=True)
    )
    recipe: str | None = field(
        default=None, metadata=about("how it was trained: learning rate, epochs, resize, init", later=True)
    )
    shifted_val_accuracy: float | None = field(
        default=None, metadata=about("validation accuracy on images moved by a few pixels", later=True)
    )
    step_flops_per_image: float | None = field(
        default=None,
        metadata=about("floating-point operations of one image's whole step, counted", "FLOPs", later=True),
    )
    combination_key: str | None = field(
        default=None,
        metadata=about(
            "hash of combination, plugin version and environment; a resumed run skips by it", later=True
        ),
    )
    served_flops: str | None = field(
        default=None,
        metadata=about("share of the FLOPs served, op by op: `conv2d 0.853, avg_pool2d 0`", later=True),
    )
    claimed: str | None = field(
        default=None, metadata=about("ops that the backend implements: `conv2d, avg_pool2d`", later=True)
    )
    derived_backward: str | None = field(
        default=None,
        metadata=about(
            "ops whose gradients were derived from the forward, at its cost: `conv2d`", later=True
        ),
    )

    step_bytes_per_image: float | None = field(
        default=None,
        metadata=about(
            "least that the layers of one image's step read and write, forward and backward, counted",
            "bytes",
            later=True,
        ),
    )
    arithmetic_intensity: float | None = field(
        default=None,
        metadata=about("`step_flops_per_image` over `step_bytes_per_image`", "FLOPs/byte", later=True),
    )
    roofline_step_ms: float | None = field(
        default=None,
        metadata=about(
            "shortest time the machine's measured peaks allow for a step's layers, one after the other",
            "ms",
            later=True,
        ),
    )
    compile_seconds: float | None = field(
        default=None,
        metadata=about(
            "part of `setup_seconds`: what the first step took beyond a usual one, such as compiling",
            "s",
            later=True,
        ),
    )
    other_load: float | None = field(
        default=None,
        metadata=about("CPUs that other programs kept busy meanwhile, on average", "CPUs", later=True),
    )
    steal_fraction: float | None = field(
        default=None,
        metadata=about("share of CPU time that a hypervisor gave to others meanwhile", later=True),
    )
    context_switches: int | None = field(
        default=None,
        metadata=about("times a thread of the process lost its CPU against its will", later=True),
    )
    throttle_events: int | None = field(
        default=None,
        metadata=about(
            "times the device was slowed for heat or power, or the process stopped for its CPU quota",
            later=True,
        ),
    )
    cpu_mhz: float | None = field(
        default=None,
        metadata=about("mean clock of the CPUs right afterwards, where it can be read", "MHz", later=True),
    )
    flags: str | None = field(
        default=None,
        metadata=about(
            "what makes the times doubtful, words of `busy`, `throttled` and `drifting`", later=True
        ),
    )
    fused: int | None = field(
        default=None,
        metadata=about(
            "1 where layers next to each other were computed by one op of the backend that has such, 0 where not",
            later=True,
        ),
    )
    chosen: str | None = field(
        default=None,
        metadata=about(
            "of a backend that chooses: who computed each call, one name for all of it or one each for its "
            "forward, input gradient and weight gradient: `conv2d 32x64x24x24 * 64x64x3x3: native/torch/native`",
            later=True,
        ),
    )
    autocast: int | None = field(
        default=None,
        metadata=about(
            "1 where weights are float32 and the dtype is autocast's, 0 where tensors are of the dtype",
            later=True,
        ),
    )
    cudnn: str | None = field(
        default=None,
        metadata=about(
            "how cuDNN chose its algorithms: by `heuristic`, or by `trial` at first use", later=True
        ),
    )
    host_ms: float | None = field(
        default=None,
        metadata=about(
            "time the host was busy with a step, on average, before it could hand over the next",
            "ms",
            later=True,
        ),
    )
    cold_step_ms: float | None = field(
        default=None,
        metadata=about(
            "median time of a step before which the device's caches were flushed; all other times are with "
            "what the step before left there",
            "ms",
            later=True,
        ),
    )
    gpu_mhz: float | None = field(
        default=None, metadata=about("clock of the GPU's processors right afterwards", "MHz", later=True)
    )
    gpu_memory_mhz: float | None = field(
        default=None, metadata=about("clock of the GPU's memory right afterwards", "MHz", later=True)
    )
    throttle_reasons: str | None = field(
        default=None,
        metadata=about(
            "why the GPU's clock was held down meanwhile, in nvidia-smi's words: `sw_power_cap`", later=True
        ),
    )
    beside: int | None = field(
        default=None,
        metadata=about(
            "other devices on which processes of the same run could work at the same time; 0 where one process "
            "ran at a time",
            "devices",
            later=True,
        ),
    )
    process_seconds: float | None = field(
        default=None,
        metadata=about(
            "how long the worker process took from its start to its end, checks and evaluation included",
            "s",
            later=True,
        ),
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
class Trace(Combined):
    """What the rows of curves.csv and samples.csv begin with."""

    run_id: str = field(metadata=about("name of the run, shared by its rows"))
    architecture: str = field(metadata=COMBINATION["architecture"])
    backend: str = field(metadata=COMBINATION["backend"])
    device: str = field(metadata=COMBINATION["device"])
    dtype: str = field(metadata=COMBINATION["dtype"])
    batch_size: int = field(metadata=COMBINATION["batch_size"])
    memory_format: str = field(metadata=COMBINATION["memory_format"])
    mode: str = field(metadata=COMBINATION["mode"])
    seed: int = field(metadata=COMBINATION["seed"])


@dataclass(frozen=True, kw_only=True)
class Epoch(Trace):
    """A row of curves.csv: where one training stood at the end of an epoch, or of its budget."""

    epoch: float = field(metadata=about("epochs done, a fraction where the budget ended one", "epochs"))
    steps: int = field(metadata=about("training steps done", "steps"))
    train_images_seen: int = field(metadata=about("training images seen, repeats included", "images"))
    train_seconds: float = field(metadata=about("time spent training so far, evaluation apart", "s"))
    train_loss: float | None = field(default=None, metadata=about("mean training loss of the epoch", "nats"))
    val_loss: float | None = field(default=None, metadata=about("validation loss", "nats"))
    val_accuracy: float | None = field(default=None, metadata=about("validation accuracy"))


@dataclass(frozen=True, kw_only=True)
class Sample(Trace):
    """A row of samples.csv: the raw times of one step, of which nothing is dropped."""

    round: int = field(metadata=about("which of the repeated processes, from 0"))
    step: int = field(metadata=about("which step of the process, from 0, warm-up apart"))
    data_ms: float | None = field(default=None, metadata=about("time to gather and normalise a batch", "ms"))
    forward_ms: float | None = field(default=None, metadata=about("time of the forward pass", "ms"))
    backward_ms: float | None = field(default=None, metadata=about("time of the backward pass", "ms"))
    optimizer_ms: float | None = field(default=None, metadata=about("time of the update", "ms"))
    step_ms: float | None = field(default=None, metadata=about("time of the whole step", "ms"))


FILES: Mapping[str, type[Combined]] = {"results.csv": Row, "curves.csv": Epoch, "samples.csv": Sample}


def read_columns(record: type[Combined]) -> tuple[Column, ...]:
    """Make the columns of a file from the fields of its records."""
    hints = get_type_hints(record)
    return tuple(
        Column(
            name=f.name,
            type=next(
                (kind for kind in (float, int) if kind in (hints[f.name], *get_args(hints[f.name]))), str
            ),
            required=f.default is MISSING,
            later=f.metadata["later"],
            unit=f.metadata["unit"],
            description=f.metadata["description"],
        )
        for f in fields(record)  # type: ignore[arg-type]  # Combined itself has no fields, its subclasses do
    )


_COLUMNS = {record: read_columns(record) for record in (*FILES.values(), Trace)}


def columns(record: type[Combined]) -> tuple[Column, ...]:
    """The columns of the file that holds such records, in order."""
    return _COLUMNS[record]
