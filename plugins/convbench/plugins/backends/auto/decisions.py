"""What was decided about calls, and where it is kept: a file for each, named by a digest of call and conditions.

A file is written beside its place and then moved there, so that a reader sees all of it or nothing; if two
processes decide the same call, the later file stays. A file that cannot be read is decided again and overwritten.
Where nothing can be written, nothing is stored, and that is no error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convbench.registry.caching import cache_directory, write_whole

VARIABLE = "CONVBENCH_AUTO"
SUFFIX = ".json"
WHOLE, FINAL = "whole", "final"
FORWARD, OF_INPUT, OF_WEIGHT = "forward", "input gradient", "weight gradient"
PARTS = (FORWARD, OF_INPUT, OF_WEIGHT)


@dataclass(frozen=True)
class Decision:
    """Which backends compute a call.

    Attributes:
        winner: the backend for `whole`, or one for each part that is needed.
        seconds: the times it is based on, by comparison and backend: lower quartiles over rounds.
        rounds: of the last comparison.
        left_out: why a backend did not take part, by its name.
        rule: why nothing was timed; empty if something was.
        steady: rounds took about the same time. If not, other programs ran, and the decision is not stored.
    """

    winner: Mapping[str, str]
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rounds: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    rule: str = ""
    steady: bool = True

    def __str__(self) -> str:
        return self.winner.get(WHOLE) or "/".join(self.winner.get(part, "-") for part in PARTS)

    @property
    def last(self) -> Mapping[str, float]:
        """The times of the last comparison, the fastest first."""
        times = self.seconds.get(FINAL) or self.seconds.get(WHOLE) or {}
        return dict(sorted(times.items(), key=lambda each: each[1]))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def whole(name: str, **rest: Any) -> Decision:
    """One backend computes the whole call."""
    return Decision({WHOLE: name}, **rest)


def from_json(record: Any) -> Decision:
    """The decision that `as_json` was called on.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the record is not one of a decision.
    """
    decision = Decision(
        {str(part): str(name) for part, name in record["winner"].items()},
        {
            str(comparison): {str(name): float(seconds) for name, seconds in times.items()}
            for comparison, times in record["seconds"].items()
        },
        int(record["rounds"]),
        {str(name): str(why) for name, why in record["left_out"].items()},
        str(record["rule"]),
    )
    if not decision.winner or not set(decision.winner) <= {WHOLE, *PARTS}:
        raise ValueError(f"no winner in {record['winner']!r}")
    if not all(math.isfinite(s) and s >= 0 for times in decision.seconds.values() for s in times.values()):
        raise ValueError("a time is negative or not finite")
    return decision


def directory() -> Path:
    """Where decisions are kept: the directory named by CONVBENCH_AUTO, or one in the user's cache."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else cache_directory() / "auto"


@dataclass(frozen=True)
class Entry:
    """A decision as it was written: the call in words, what it holds for, and when it was made."""

    call: str
    needs: tuple[str, ...]
    key: Mapping[str, Any]
    decision: Decision
    made_at: str
    path: Path


def key_of(call: Any, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """What a decision holds for, as JSON would have it."""
    key: dict[str, Any] = json.loads(
        json.dumps({"call": vars(call) | {"work": None}, "conditions": conditions}, default=vars)
    )
    return key


def load(root: Path, key: Mapping[str, Any]) -> Decision | None:
    """The decision for this key; None where there is none that can be read."""
    entry = _read(_path(root, key))
    return entry.decision if entry is not None and entry.key == key else None


def save(root: Path, key: Mapping[str, Any], call: Any, decision: Decision) -> None:
    """Write a decision; a directory that cannot be written is no error."""
    record = {
        "call": str(call),
        "needs": list(call.needs),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "decision": decision.as_json(),
        "key": key,
    }
    with suppress(OSError):
        write_whole(_path(root, key), json.dumps(record, indent=1).encode())


def entries(root: Path) -> Iterator[Entry]:
    """Every decision there is, in the order they were made; what cannot be read is passed over."""
    found = [entry for path in _files(root, SUFFIX) if (entry := _read(path)) is not None]
    yield from sorted(found, key=lambda entry: (entry.made_at, entry.call, entry.needs))


def clear(root: Path) -> int:
    """Delete every decision; returns how many there were."""
    count = 0
    for path in _files(root, SUFFIX):
        with suppress(FileNotFoundError):  # another process deleted it
            path.unlink()
            count += 1
    for path in _files(root, ".part"):  # of a process that was ended while it wrote
        path.unlink(missing_ok=True)
    return count


def _files(root: Path, suffix: str) -> list[Path]:
    return sorted(root.glob(f"*{suffix}")) if root.is_dir() else []


def _path(root: Path, key: Mapping[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return root / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"


def _read(path: Path) -> Entry | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
        key = {**record["key"], "conditions": dict(record["key"]["conditions"])}
        return Entry(
            str(record["call"]),
            tuple(map(str, record["needs"])),
            key,
            from_json(record["decision"]),
            str(record["made_at"]),
            path,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
