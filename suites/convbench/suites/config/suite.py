"""A suite: what to run and how, what each of its keys may hold, and the file that says the same."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from convbench.registry import UsageError
from convbench.registry.errors import choices, shown
from convbench.registry.models.factory import INITS
from convbench.registry.ops.dtypes import DTYPES
from convbench.results.schema import KINDS

MODES = ("eager", "compile", "graph")
MEMORY_FORMATS = ("contiguous", "channels_last")
CUDNN = ("heuristic", "trial")

MOST_ROUNDS, MANY = 10_000, 10**9  # what is larger is a slip of the hand
CEILINGS = {"rounds": "max_rounds", "steps": "max_steps"}  # of [timing]


@dataclass(frozen=True)
class Key:
    """What a key of a suite file may hold.

    `kind` is the type of its value, or of each item where `many`; numbers have bounds, texts may have an
    allowed set.
    """

    kind: type
    many: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    allowed: tuple[str, ...] = ()
    length: int | None = None
    pattern: str = ""

    def wrong(self, value: object) -> str | None:
        """Why a value cannot be used, or None."""
        if not self.many:
            return self._wrong_item(value)
        if not isinstance(value, list) or not value:
            return f"is {shown(value)}; it must be a list of {self._noun}s, at least one"
        if self.length is not None and len(value) != self.length:
            return f"is {shown(value)}; it must have {self.length} items"
        for item in value:
            wrong = self._wrong_item(item)
            if wrong:
                return wrong
        if self.length is None and len(set(value)) < len(value):
            return f"is {shown(value)}; every item must be different"
        return None

    @property
    def _noun(self) -> str:
        return {str: "text", int: "whole number", float: "number", bool: "true or false"}[self.kind]

    def _wrong_item(self, value: object) -> str | None:
        fits = isinstance(value, (int, float) if self.kind is float else self.kind)
        if not fits or (isinstance(value, bool) and self.kind is not bool):
            return f"is {shown(value)}; it must be {'' if self.kind is bool else 'a '}{self._noun}"
        if isinstance(value, (int, float)) and self.kind is not bool:
            # a whole number is compared as it is: many have no float
            if not -sys.float_info.max <= value <= sys.float_info.max:
                return f"is {shown(value)}; it must be finite"
            if self.least is not None and value < self.least:
                return f"is {shown(value)}; it must be at least {self.least:g}"
            if self.most is not None and value > self.most:
                return f"is {shown(value)}; it must be at most {self.most:,}"
            if self.above is not None and value <= self.above:
                return f"is {shown(value)}; it must be more than {self.above:g}"
            if self.below is not None and value >= self.below:
                return f"is {shown(value)}; it must be less than {self.below:g}"
        if self.allowed and value not in self.allowed:
            return f"is {shown(value)}; {choices(str(value), self.allowed)}"
        if self.pattern and not re.fullmatch(self.pattern, str(value)):
            return f"is {shown(value)}; letters, digits and _ . + - can be in it"
        return None


@dataclass(frozen=True)
class RecipeOverrides:
    """What replaces the architecture's own recipe; None keeps it."""

    lr: float | None = None
    epochs: int | None = None
    resize: tuple[int, int] | None = None
    init: str | None = None


@dataclass(frozen=True)
class Budget:
    """How much one combination may take, and with `total_seconds` the whole run.

    Memory in MB (10^6 bytes); None takes what the machine can give.
    """

    train_seconds: float = 60.0
    timeout_seconds: float = 600.0
    total_seconds: float | None = None
    memory_mb: int | None = None


@dataclass(frozen=True)
class Timing:
    """How steps are timed: `rounds` fresh processes of `steps` steps each after `warmup_steps`.

    With `max_rounds` further rounds follow for combinations whose 95% interval over processes is wider than
    `precision` to either side, as a share of the median; with `max_steps` likewise further steps in a process.
    A round ends early, and says so, once its steps have taken `max_seconds`. `cold_steps` more are timed with the
    device's caches flushed before each. cuDNN chooses its algorithms by `heuristic`, or by `trial` at first use.
    `threads` is torch's intra-op thread count in every worker; None takes every core this process may use.
    While other programs keep the CPUs busy no process is started, until the run has waited `quiet_seconds` in all.
    """

    rounds: int = 3
    max_rounds: int | None = None
    warmup_steps: int = 5
    steps: int = 30
    max_steps: int | None = None
    precision: float = 0.05
    max_seconds: float = 20.0
    cold_steps: int = 0
    cudnn: str = "heuristic"
    threads: int | None = None
    quiet_seconds: float = 30.0


@dataclass(frozen=True)
class PerBackend:
    """What some backends are run with in place of the suite's own; None keeps that."""

    batch_sizes: tuple[int, ...] | None = None
    modes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Suite:
    """What to run. The lists are globs over registered names, or values; every combination of them is run.

    An empty `batch_sizes` takes each architecture's own. `kinds` are what is done with a combination; it is
    verified in any case. With `test_translation_px`, a trained network is also tested on images moved by up to so
    many pixels.
    `per_backend` has what holds for the backends that match its globs alone, such as the batch that a slow one can
    carry; a glob that no backend matches is no error, and where several match the last one holds.
    With `fuse`, layers next to each other are one op where a backend has one for them.
    """

    name: str
    description: str = ""
    dataset: str = "fashion-mnist"
    architectures: tuple[str, ...] = ("*",)
    backends: tuple[str, ...] = ("*",)
    devices: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = ("float32",)
    batch_sizes: tuple[int, ...] = ()
    memory_formats: tuple[str, ...] = ("contiguous",)
    modes: tuple[str, ...] = ("eager",)
    seeds: tuple[int, ...] = (0,)
    kinds: tuple[str, ...] = KINDS
    test_translation_px: int | None = None
    fuse: bool = False
    recipe: RecipeOverrides = RecipeOverrides()
    budget: Budget = Budget()
    timing: Timing = Timing()
    per_backend: Mapping[str, PerBackend] = field(default_factory=dict, hash=False)

    def of_backend(self, name: str) -> Suite:
        """The suite as it is for one backend, by its name with or without a package."""
        changed = self
        for pattern, own in self.per_backend.items():
            if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(":")[2], pattern):
                changed = replace(changed, **{key: value for key, value in vars(own).items() if value})
        return changed

    def override(self, values: Mapping[str, Any]) -> Suite:
        """A copy with values replaced, given by dotted key such as `recipe.epochs`; None keeps what is there.

        Rounds or steps that come without a ceiling of their own are exactly so many.

        Raises:
            UsageError: a key or a value that a suite file could not hold; the message names the key.
        """
        lifted: dict[str, Any] = {
            ceiling: None for floor, ceiling in CEILINGS.items() if values.get(f"timing.{floor}") is not None
        }
        changed = replace(self, timing=replace(self.timing, **lifted))
        for dotted, value in values.items():
            if value is None:
                continue
            table, _, name = dotted.rpartition(".")
            if name not in keys_of(table):
                raise UsageError(f"unknown key {dotted!r}; {choices(dotted, _meant(table))}")
            plain = list(value) if isinstance(value, tuple) else value
            wrong = keys_of(table)[name].wrong(plain)
            if wrong:
                raise UsageError(f"{dotted} {wrong}")
            new: dict[str, Any] = {name: tuple(plain) if isinstance(plain, list) else plain}
            if pattern := backends_of(table):
                own = replace(changed.per_backend.get(pattern, PerBackend()), **new)
                changed = replace(changed, per_backend={**changed.per_backend, pattern: own})
            elif table:
                changed = replace(changed, **{table: replace(getattr(changed, table), **new)})
            else:
                changed = replace(changed, **new)
        return changed

    def check(self) -> None:
        """Refuse values that do not go together; raises UsageError."""
        for least, most in CEILINGS.items():
            floor, ceiling = getattr(self.timing, least), getattr(self.timing, most)
            if ceiling is not None and ceiling < floor:
                raise UsageError(f"timing.{most} is {ceiling}; it must be at least timing.{least}, {floor}")

    def to_toml(self) -> str:
        """The suite as a file that reads back as the same suite."""
        lines = _toml_lines(self)
        for table in ("recipe", "budget", "timing"):
            body = _toml_lines(getattr(self, table))
            if body:
                lines += ["", f"[{table}]", *body]
        for pattern, own in self.per_backend.items():
            lines += ["", f"[{PER_BACKEND}.{_toml_value(pattern)}]", *_toml_lines(own)]
        return "\n".join(lines) + "\n"


KEYS: Mapping[str, Mapping[str, Key]] = {
    "": {
        "name": Key(str, pattern=r"[A-Za-z0-9][A-Za-z0-9_.+-]*"),  # it becomes part of a directory's name
        "description": Key(str),
        "dataset": Key(str),
        "architectures": Key(str, many=True),
        "backends": Key(str, many=True),
        "devices": Key(str, many=True),
        "dtypes": Key(str, many=True, allowed=DTYPES),
        "batch_sizes": Key(int, many=True, least=1, most=MANY),
        "memory_formats": Key(str, many=True, allowed=MEMORY_FORMATS),
        "modes": Key(str, many=True, allowed=MODES),
        "seeds": Key(int, many=True, least=0, most=2**63 - 1),
        "kinds": Key(str, many=True, allowed=KINDS),
        "test_translation_px": Key(int, least=1, most=MANY),
        "fuse": Key(bool),
    },
    "recipe": {
        "lr": Key(float, above=0),
        "epochs": Key(int, least=1, most=MANY),
        "resize": Key(int, many=True, least=1, most=MANY, length=2),
        "init": Key(str, allowed=INITS),
    },
    "budget": {
        "train_seconds": Key(float, above=0),
        "timeout_seconds": Key(float, above=0),
        "total_seconds": Key(float, above=0),
        "memory_mb": Key(int, least=1, most=10**12),
    },
    "timing": {
        "rounds": Key(int, least=1, most=MOST_ROUNDS),
        "max_rounds": Key(int, least=1, most=MOST_ROUNDS),
        "warmup_steps": Key(int, least=0, most=MANY),
        "steps": Key(int, least=1, most=MANY),
        "max_steps": Key(int, least=1, most=MANY),
        "precision": Key(float, above=0, below=1),
        "max_seconds": Key(float, above=0),
        "cold_steps": Key(int, least=0, most=MANY),
        "cudnn": Key(str, allowed=CUDNN),
        "threads": Key(int, least=1, most=MANY),
        "quiet_seconds": Key(float, least=0),
    },
}


PER_BACKEND = "per_backend"
PER_BACKEND_KEYS = {each.name: KEYS[""][each.name] for each in fields(PerBackend)}


def backends_of(table: str) -> str:
    """The glob over backends of a table such as `per_backend.winograd*`; nothing for other tables."""
    return table.removeprefix(f"{PER_BACKEND}.") if table.startswith(f"{PER_BACKEND}.") else ""


def keys_of(table: str) -> Mapping[str, Key]:
    """The keys that a table may have; none where there is no such table."""
    return PER_BACKEND_KEYS if backends_of(table) else KEYS.get(table, {})


DOTTED_KEYS = tuple(f"{table}.{name}" if table else name for table, keys in KEYS.items() for name in keys)


def _meant(table: str) -> tuple[str, ...]:
    """The dotted keys that one of a table may have been meant as."""
    own = tuple(
        f"{table if backends_of(table) else f'{PER_BACKEND}.GLOB'}.{name}" for name in PER_BACKEND_KEYS
    )
    return own if backends_of(table) else (*DOTTED_KEYS, *own)


def _toml_lines(record: Any) -> list[str]:
    lines = []
    for each in fields(record):
        value = getattr(record, each.name)
        if value in (None, ()) or each.name in ("recipe", "budget", "timing", PER_BACKEND):
            continue
        lines.append(f"{each.name} = {_toml_value(list(value) if isinstance(value, tuple) else value)}")
    return lines


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers and lists are TOML's too, but for this one character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
