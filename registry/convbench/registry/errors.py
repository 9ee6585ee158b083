"""What can go wrong, and the exit code each kind of wrong ends the command line with.

ConvbenchError                2   anything a user or a plugin author can put right
├── UsageError                2   an argument, a file or a value that cannot be used
│   ├── UnknownName           2   no record of that name is registered
│   └── AmbiguousName         2   several plugins register that name
├── PluginError               2   a plugin that breaks the contract
├── DataError                 2   a dataset file that is damaged, partial or unreachable
├── GateFailed                1   a check that was asked to be a gate did not pass
├── NothingRan                3   nothing was measured, or nothing could be compared
└── Unsupported               2   an op call that a backend does not implement (routing falls back to torch)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MANY = 40  # names in one message
LONG = 200  # characters of one value in a message


class ConvbenchError(Exception):
    """Base of every error convbench raises on purpose; its text is one clear sentence."""

    exit_code = 2
    stuck = False  # whether a library hangs in a thread, with which Python cannot end as usual


class UsageError(ConvbenchError):
    """An argument, a file or a value that cannot be used."""


class UnknownName(UsageError):
    """No record of that name is registered; `reason` is what may explain that, such as a broken plugin."""

    def __init__(self, kind: str, name: str, available: Iterable[str], reason: str = "") -> None:
        self.kind, self.name, self.available = kind, name, sorted(available)
        because = f"; {reason}" if reason else ""
        super().__init__(f"unknown {kind} {name!r}{because}; {choices(name, self.available)}")


class AmbiguousName(UsageError):
    """Several plugins register that name."""

    def __init__(self, kind: str, name: str, packages: Iterable[str]) -> None:
        self.kind, self.name, self.packages = kind, name, sorted(packages)
        origins = " and ".join(self.packages)
        qualified = " or ".join(repr(f"{package}:{name}") for package in self.packages)
        super().__init__(f"{kind} {name!r} is registered by {origins}; choose {qualified}")


class PluginError(ConvbenchError):
    """A plugin that breaks the contract."""


class DataError(ConvbenchError):
    """A dataset file that is damaged, partial or unreachable."""


class GateFailed(ConvbenchError):
    """A check that was asked to be a gate did not pass."""

    exit_code = 1


class NothingRan(ConvbenchError):
    """Nothing was measured, or nothing could be compared."""

    exit_code = 3


class Unsupported(ConvbenchError):
    """An op call that a backend does not implement; raise it from the op, and routing falls back to torch."""


MEANT = {  # what others call the names here; a device that is like `cpu` by letters alone is none of them
    "gpu": "cuda", "xpu": "", "npu": "", "tpu": "",
    "fp64": "float64", "double": "float64", "fp32": "float32", "float": "float32", "single": "float32",
    "fp16": "float16", "half": "float16", "bf16": "bfloat16",
    "nhwc": "channels_last", "nchw": "contiguous",
}  # fmt: skip


def choices(name: str, available: Iterable[str]) -> str:
    """Say what is allowed instead of `name`, nearest match first; of a long list only names without a `/`."""
    names = sorted(available)
    by_lower = {candidate.lower(): candidate for candidate in names}
    meant = MEANT.get(name.lower(), name.lower())
    near = difflib.get_close_matches(meant, by_lower, n=1)
    hint = f"did you mean {by_lower[near[0]]!r}? " if near else ""
    shown = names if len(names) <= MANY else [each for each in names if "/" not in each][:MANY]
    rest = len(names) - len(shown)
    return f"{hint}available: {listed([*shown, f'{rest} more']) if rest else ', '.join(shown) or 'none'}"


def listed(words: Sequence[str], most: int | None = None, last: str = " and ") -> str:
    """Words as a list of a sentence: "a, b and c", and where more than one is above `most`, "a and 2 more"."""
    if most is not None and len(words) > most + 1:
        words, last = [*words[:most], f"{len(words) - most:,} more"], " and "
    return last.join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def shown(value: object) -> str:
    """A value as a message names it: its `repr`, of a long one the beginning."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python prints no integer of more than 4300 digits
        return f"of type {type(value).__name__} and too large to be shown"
    return text if len(text) <= LONG else f"{text[:LONG]}... ({len(text):,} characters)"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)  # the CPU's allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
