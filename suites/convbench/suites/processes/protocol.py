"""What travels between a run and its worker processes: jobs to a worker, events and a result back.

All of them are frozen dataclasses, sent as JSON objects, one a line, with the name of the class as `type`. The
decoder checks every field against its type hint: plugins can write to the pipe as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from random import SystemRandom
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from convbench.registry import Accuracy, Recipe
from convbench.registry.conformance.report import Outcome
from convbench.registry.errors import shown
from convbench.results.schema import PHASES_TOGETHER, Combination, Kind, Row, Status, columns
from convbench.suites.config.suite import Timing

LONGEST_LINE = 64 * 1024 * 1024  # bytes that may be sent without a line end
COLUMN_TYPES = {column.name: column.type for column in columns(Row)}


class ProtocolError(ValueError):
    """A message of an unknown type, or with a field that is missing, unknown or of the wrong type."""


# --- jobs ---


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is told to do.

    Attributes:
        memory_mb: limits its private memory, in MB (10^6 bytes).
        distributions: those whose plugins it loads, beside our own; all when None.
    """

    memory_mb: int | None = None
    distributions: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SurveyJob(Job):
    """Describe the machine, and write the dataset into the data file."""

    dataset: str
    data_dir: str | None


@dataclass(frozen=True, kw_only=True)
class AvailabilityJob(Job):
    """Ask backends whether they can run here; an `Availability` event for each."""

    backends: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FitJob(Job):
    """Give networks images of these shapes (C, H, W), by name; a `Misfit` event for each that cannot take them."""

    networks: Mapping[str, tuple[int, int, int]]
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class PluginsJob(Job):
    """Load every plugin, and say what that changes."""


@dataclass(frozen=True, kw_only=True)
class PeaksJob(Job):
    """Measure what a device can do at most with a dtype."""

    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class ImageFile:
    """The dataset in the data file: its name, and the shapes of its parts."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class CombinationJob(Job):
    """Verify, time or train a combination, with torch's threads resolved.

    What is audited, when and on which data, is drawn from `secret`, so that no backend can know it beforehand.
    Where several processes train together, each has so many `threads`, and the worker that starts them ends them
    just before it is killed itself, `timeout_seconds` after its start.
    """

    kind: Kind
    combination: Combination
    recipe: Recipe
    images: ImageFile
    num_classes: int
    threads: int
    round: int = 0
    test_translation_px: int | None = None
    fuse: bool = False
    peaks: Mapping[str, float] | None = None
    timing: Timing = field(default_factory=Timing)
    train_seconds: float = 0.0
    secret: int = field(default_factory=lambda: SystemRandom().getrandbits(48))
    timeout_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConformJob(Job):
    """Verify a whole backend; `known` are the steps that workers before this one took."""

    backend: str
    device: str
    dtypes: tuple[str, ...] | None
    generated: int
    seed: int
    step_seconds: float
    shrink_seconds: float
    threads: int
    known: tuple[Tried, ...] = ()


# --- events ---


@dataclass(frozen=True)
class Note:
    """Something a person should know."""

    text: str


@dataclass(frozen=True)
class Beat:
    """How far a worker is: its steps, epochs where it trains, and the mean loss of the epoch so far."""

    steps: int
    epoch: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Running:
    """The clock of a timing or a training was started, or stopped: the parent's own clock goes with it."""

    on: bool


@dataclass(frozen=True)
class EpochEnd:
    """An epoch of a training is over; its fields are columns of curves.csv."""

    epoch: float
    steps: int
    train_images_seen: int
    train_seconds: float
    train_loss: float
    val_loss: float
    val_accuracy: float | None


@dataclass(frozen=True)
class Samples:
    """The times of successive steps in ms, and those of their phases; a replayed step has no phases."""

    step_ms: tuple[float, ...]
    phases: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not self.step_ms:
            raise ProtocolError("Samples.step_ms is empty")
        for name, times in self.phases.items():
            if name not in PHASES_TOGETHER or len(times) != len(self.step_ms):
                raise ProtocolError(
                    f"Samples.phases has {len(times)} of {name} for {len(self.step_ms)} steps"
                )


@dataclass(frozen=True)
class Trying:
    """A step of a verification begins; `ended` is its outcome should it end the process."""

    key: str
    ended: Outcome


@dataclass(frozen=True)
class Tried:
    """A step of a verification is over."""

    key: str
    outcomes: tuple[Outcome, ...]
    seconds: float


@dataclass(frozen=True)
class Availability:
    """Why a backend cannot run here, None where it can."""

    backend: str
    reason: str | None


@dataclass(frozen=True)
class Misfit:
    """A network cannot take images of the shape it was given."""

    architecture: str
    error: str


@dataclass(frozen=True)
class Waited:
    """From a rank to the process that started it: it could not go on, for another one did not.

    `exchanges` is how many it had begun with the others by then: who is behind has begun fewer.
    """

    exchanges: int
    error: str | None = None


@dataclass(frozen=True)
class Dropped:
    """Made by the supervisor from what came through the pipe and is no event; `reason` says why."""

    reason: str


# --- results: the last thing a worker sends ---


@dataclass(frozen=True)
class Failed:
    """The job ended in an exception. `ours`: the message is convbench's own; `usage`: the user's to correct."""

    status: Status
    error: str
    ours: bool = False
    usage: bool = False


@dataclass(frozen=True)
class Done:
    """The job is done; its events have said everything."""


@dataclass(frozen=True)
class Loaded:
    """What loading plugins changed of torch, Python or convbench, by plugin, where it changed anything."""

    changes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Measured:
    """How a combination's job ended; `measures` are columns of its row."""

    status: Status
    error: str | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.measures.items():
            kind = COLUMN_TYPES.get(name)
            if kind is None:
                raise ProtocolError(f"Measured.measures has {shown(name)}, which is no column of results.csv")
            if not (value is None or isinstance(value, (int, float) if kind is float else kind)):
                raise ProtocolError(f"Measured.measures has {shown(value)} for {name}, not {kind.__name__}")


@dataclass(frozen=True)
class Survey:
    """The machine, its devices with their models' names, and the dataset."""

    environment: Mapping[str, Any]
    torch_version: str
    devices: Mapping[str, str]
    images: ImageFile

    @property
    def train_images(self) -> int:
        """The size of the training set."""
        return self.images.shapes["train_images"][0]

    @property
    def test_images(self) -> int:
        """The size of the test set."""
        return self.images.shapes["test_images"][0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shapes["train_images"][-3:]
        return channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the test images, in pixels."""
        height, width = self.images.shapes["test_images"][-2:]
        return height, width


@dataclass(frozen=True)
class Peak:
    """What a device can do at most with a dtype; `busy`: other programs were running."""

    peaks: Mapping[str, float]
    busy: bool


@dataclass(frozen=True)
class Conformance:
    """What came of a whole backend; `accuracy` and `derived` as in a `Report`."""

    outcomes: tuple[Outcome, ...]
    accuracy: Mapping[str, Accuracy]
    derived: tuple[str, ...]


Event = Note | Beat | Running | EpochEnd | Samples | Trying | Tried | Availability | Misfit | Waited | Dropped
Result = Failed | Done | Loaded | Measured | Survey | Peak | Conformance
Send = Callable[[Event | Result], None]  # what a worker sends by
SENT = {kind.__name__: kind for kind in (*get_args(Event), *get_args(Result)) if kind is not Dropped}
JOBS = {
    kind.__name__: kind
    for kind in (SurveyJob, AvailabilityJob, FitJob, PluginsJob, PeaksJob, CombinationJob, ConformJob)
}


# --- to and from JSON ---


def encode(message: Any) -> dict[str, Any]:
    """A job, an event or a result as a JSON object, nested dataclasses included by `dumps`."""
    return {"type": type(message).__name__, **vars(message)}


def dumps(message: Mapping[str, Any]) -> bytes:
    """A JSON object as a line."""
    return json.dumps(message, default=vars).encode() + b"\n"


def decode_event(message: Mapping[str, Any]) -> Event | Result:
    """An event or a result from its JSON object; raises ProtocolError."""
    event: Event | Result = _decode(message, SENT, "event")
    return event


def event_of(message: dict[str, Any], token: str) -> Event | Result:
    """What a worker has sent, if it carries the worker's token; what it is not, otherwise."""
    if message.pop("token", None) != token:
        return Dropped("it does not carry the token of its worker")
    try:
        return decode_event(message)
    except ProtocolError as error:
        return Dropped(str(error))


def decode_job(message: Mapping[str, Any]) -> Job:
    """A job from its JSON object; raises ProtocolError."""
    job: Job = _decode(message, JOBS, "job")
    return job


def _decode(message: Mapping[str, Any], kinds: Mapping[str, type], noun: str) -> Any:
    name = message.get("type")
    if not isinstance(name, str) or name not in kinds:
        raise ProtocolError(f"unknown {noun} {shown(name)}")
    return _record(kinds[name], {key: value for key, value in message.items() if key != "type"})


def _record(kind: type, values: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    for name in values:
        if name not in hints:
            raise ProtocolError(f"{kind.__name__} has no field {shown(name)}")
    for each in fields(kind):
        if each.name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise ProtocolError(f"{kind.__name__} lacks {each.name}")
    return kind(
        **{name: _checked(value, hints[name], f"{kind.__name__}.{name}") for name, value in values.items()}
    )


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """A value as its hint has it: lists become tuples, and objects dataclasses; raises ProtocolError."""
    if hint is Any or type(value) is hint or (hint is float and type(value) is int):
        return value
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):  # X | None
        if value is None and NoneType in parts:
            return None
        return _checked(value, next(part for part in parts if part is not NoneType), where)
    if origin is Literal and value in parts:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            return tuple(_checked(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    if origin is Mapping and isinstance(value, dict):
        return {key: _checked(item, parts[1], f"{where}[{key}]") for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _record(hint, value)
    raise ProtocolError(f"{where} is {shown(value)}, not {getattr(hint, '__name__', hint)}")


class Lines:
    """JSON objects, one a line, from a descriptor; a line that is none is dropped."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._whole: list[bytes] = []
        self._begun: list[bytes] = []  # pieces of a line without its end
        self._length = 0

    def read(self) -> bool:
        """Take in what is there; False at the end of the file, or where nothing is there to read."""
        try:
            chunk = os.read(self.descriptor, 1 << 20)
        except (BlockingIOError, ConnectionError):
            return False
        first, *more = chunk.split(b"\n")
        self._begun.append(first)
        self._length += len(first)
        if self._length > LONGEST_LINE:  # given up: what is left of it is no JSON
            self._begun, self._length = [], 0
        for piece in more:
            self._whole.append(b"".join(self._begun))
            self._begun, self._length = [piece], len(piece)
        return bool(chunk)

    def take(self) -> list[dict[str, Any]]:
        """The whole lines so far."""
        lines, self._whole = self._whole, []
        messages = []
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                messages.append(message)
        return messages

    def wait(self) -> bool:
        """Block until a first line is there; False if the other side closes without one."""
        while not self.take():
            if not self.read():
                return False
        return True
