"""A suite: what to run and how; each key's type, default and bounds; reading and writing its TOML file."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from convbench.registry import UsageError
from convbench.registry.errors import choices, shown
from convbench.registry.models.factory import INITS
from convbench.registry.ops.dtypes import DTYPES
from convbench.results.schema import KINDS
from convbench.results.storage.files import read_text

MODES = ("eager", "compile", "graph")
MEMORY_FORMATS = ("contiguous", "channels_last")
CUDNN = ("heuristic", "trial")

MOST_ROUNDS, MANY = 10_000, 10**9  # what is larger is a slip of the hand
TABLES, PER_BACKEND = ("recipe", "budget", "timing"), "per_backend"
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


def _key(default: Any = MISSING, **bounds: Any) -> Any:
    """A field that a suite file may set, with the bounds of a `Key`; its annotation says the rest."""
    return field(default=default, metadata=bounds)


def _keys_in(record: type) -> dict[str, Key]:
    """The keys that stand for the fields of a record made by `_key`."""
    hints = get_type_hints(record)
    keys = {}
    for each in fields(record):
        if each.name in (*TABLES, PER_BACKEND):
            continue
        hint = hints[each.name]
        if isinstance(hint, UnionType):  # with None
            hint = get_args(hint)[0]
        items = get_args(hint)
        length = len(items) if items and items[-1] is not Ellipsis else None
        keys[each.name] = Key(items[0] if items else hint, bool(items), length=length, **each.metadata)
    return keys


@dataclass(frozen=True)
class RecipeOverrides:
    """What replaces the architecture's own recipe; None keeps it."""

    lr: float | None = _key(None, above=0)
    epochs: int | None = _key(None, least=1, most=MANY)
    resize: tuple[int, int] | None = _key(None, least=1, most=MANY)
    init: str | None = _key(None, allowed=INITS)


@dataclass(frozen=True)
class Budget:
    """How much one combination may take, and with `total_seconds` the whole run.

    Memory in MB (10^6 bytes); None takes what the machine can give.
    """

    train_seconds: float = _key(60.0, above=0)
    timeout_seconds: float = _key(600.0, above=0)
    total_seconds: float | None = _key(None, above=0)
    memory_mb: int | None = _key(None, least=1, most=10**12)


@dataclass(frozen=True)
class Timing:
    """How steps are timed: `rounds` fresh processes of `steps` steps each after `warmup_steps`.

    With `max_rounds`, more rounds follow for a combination whose 95% interval over processes is wider than
    `precision` to either side, as a share of the median; with `max_steps`, likewise more steps in a process.
    A round ends early, and says so, once its steps have taken `max_seconds`. `cold_steps` more are timed with the
    device's caches flushed before each. cuDNN chooses its algorithms by `heuristic`, or by `trial` at first use.
    `threads` is torch's intra-op thread count in every worker; None takes every core this process may use.
    While other programs keep the CPUs busy no process is started, until the run has waited `quiet_seconds` in all.
    """

    rounds: int = _key(3, least=1, most=MOST_ROUNDS)
    max_rounds: int | None = _key(None, least=1, most=MOST_ROUNDS)
    warmup_steps: int = _key(5, least=0, most=MANY)
    steps: int = _key(30, least=1, most=MANY)
    max_steps: int | None = _key(None, least=1, most=MANY)
    precision: float = _key(0.05, above=0, below=1)
    max_seconds: float = _key(20.0, above=0)
    cold_steps: int = _key(0, least=0, most=MANY)
    cudnn: str = _key("heuristic", allowed=CUDNN)
    threads: int | None = _key(None, least=1, most=MANY)
    quiet_seconds: float = _key(30.0, least=0)


@dataclass(frozen=True)
class PerBackend:
    """What replaces the suite's own values for some backends; None keeps those."""

    batch_sizes: tuple[int, ...] | None = None
    modes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Suite:
    """What to run: every combination of the listed values. Names are globs over what is registered.

    An empty `batch_sizes` takes each architecture's own. `kinds` says what is done with a combination; it is
    verified in any case. With `test_translation_px`, a trained network is also tested on images that are moved by
    up to so many pixels. `world_sizes` are numbers of processes that train together, each on its share of a batch.
    With `fuse`, neighbouring layers are one op where a backend has one for them.
    `per_backend` replaces values for the backends that match its globs, such as the batch size of a slow one. A
    glob that matches no backend is no error; where several match, the last one holds.
    """

    name: str = _key(pattern=r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # it becomes part of a directory's name
    description: str = _key("")
    dataset: str = _key("fashion-mnist")
    architectures: tuple[str, ...] = _key(("*",))
    backends: tuple[str, ...] = _key(("*",))
    devices: tuple[str, ...] = _key(("*",))
    dtypes: tuple[str, ...] = _key(("float32",), allowed=tuple(DTYPES))
    batch_sizes: tuple[int, ...] = _key((), least=1, most=MANY)
    memory_formats: tuple[str, ...] = _key(("contiguous",), allowed=MEMORY_FORMATS)
    modes: tuple[str, ...] = _key(("eager",), allowed=MODES)
    seeds: tuple[int, ...] = _key((0,), least=0, most=2**63 - 1)
    world_sizes: tuple[int, ...] = _key((1,), least=1, most=1024)
    kinds: tuple[str, ...] = _key(KINDS, allowed=KINDS)
    test_translation_px: int | None = _key(None, least=1, most=MANY)
    fuse: bool = _key(False)
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
        for table in TABLES:
            body = _toml_lines(getattr(self, table))
            if body:
                lines += ["", f"[{table}]", *body]
        for pattern, own in self.per_backend.items():
            lines += ["", f"[{PER_BACKEND}.{_toml_value(pattern)}]", *_toml_lines(own)]
        return "\n".join(lines) + "\n"


KEYS: Mapping[str, Mapping[str, Key]] = {  # of a suite file, by table
    "": _keys_in(Suite),
    "recipe": _keys_in(RecipeOverrides),
    "budget": _keys_in(Budget),
    "timing": _keys_in(Timing),
}
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
        if value in (None, ()) or each.name in (*TABLES, PER_BACKEND):
            continue
        lines.append(f"{each.name} = {_toml_value(list(value) if isinstance(value, tuple) else value)}")
    return lines


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers and lists are TOML's too, but for this one character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def load_suite(path: Path | str) -> Suite:
    """Read and check a suite file.

    Raises:
        UsageError: no such file, or one that cannot be used; with the line, the key and what is allowed.
    """
    path = Path(path)
    text = read_text(path, "suite")
    try:
        content = tomllib.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: not a TOML file: its brackets are nested too deeply") from None

    values: dict[str, Any] = {}
    for name, value in content.items():
        if name == PER_BACKEND:
            values |= _per_backend(path, text, value)
        elif name in KEYS and name:
            if not isinstance(value, dict):
                raise UsageError(f"{path}, line {_line(text, '', name)}: {name} must be a table, [{name}]")
            for key, inner in value.items():
                _check(path, text, name, key, inner)
                values[f"{name}.{key}"] = inner
        else:
            _check(path, text, "", name, value)
            values[name] = value
    if "name" not in values:
        raise UsageError(f"{path}: the key 'name' is missing")
    suite = Suite(name=values["name"]).override(values)
    try:
        suite.check()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return suite


def _per_backend(path: Path, text: str, content: object) -> dict[str, Any]:
    """The values of `[per_backend.GLOB]`, by dotted key."""
    values: dict[str, Any] = {}
    line = _line(text, "", PER_BACKEND)
    for pattern, table in content.items() if isinstance(content, dict) else [("GLOB", content)]:
        if not isinstance(table, dict) or not pattern:
            raise UsageError(f"{path}, line {line}: {PER_BACKEND} must be tables, [{PER_BACKEND}.GLOB] each")
        for key, value in table.items():
            _check(path, text, f"{PER_BACKEND}.{pattern}", key, value)
            values[f"{PER_BACKEND}.{pattern}.{key}"] = value
    return values


def _check(path: Path, text: str, table: str, key: str, value: object) -> None:
    where = f"{path}, line {_line(text, table, key)}"
    known = keys_of(table)
    label = f"{table}.{key}" if table else key
    if key not in known:
        names = [*known, *(name for name in (*KEYS, PER_BACKEND) if name and not table)]
        raise UsageError(f"{where}: unknown key {label!r}; {choices(key, names)}")
    wrong = known[key].wrong(value)
    if wrong:
        raise UsageError(f"{where}: {label} {wrong}")


def _line(text: str, table: str, key: str) -> int:
    """The line on which a key is set, counted from 1; that of its table where it is written in it."""
    parents = table.split(".") if table else []
    wanted = [*parents, key]
    current: list[str] = []
    nearest = 1
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?([^\[\]]+)\]", line)
        if header:
            current = _parts(header[1])
            path = current
        elif assignment := re.match(r"([^=#]+)=", line):
            path = [*current, *_parts(assignment[1])]
        else:
            continue
        if path[: len(wanted)] == wanted:
            return number
        if table and path == parents:
            nearest = number
    return nearest


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
