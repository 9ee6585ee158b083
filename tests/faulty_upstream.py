"""A torch that is wrong, or crashes, for some calls as long as oneDNN is on; and the entry that says so.

The tests of known faults need no processor that has one: `torch.nn.functional.conv2d`, which the references and
the backend `torch` call, is replaced by one with a fault of this kind, before anybody notes torch's own functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from convbench.registry import known_faults

LABEL = "known fault of oneDNN >=1, example 1"
ENTRY = """
[for-these-tests]
library = "oneDNN"
versions = ">=1"
reference = "example 1"
summary = "float32 convolutions whose stride exceeds the kernel are wrong"
ops = ["conv2d"]
dtypes = ["float32"]
devices = ["cpu"]
when = "stride_height > kernel_height or stride_width > kernel_width"
compute_in = "float64"
avoid = "wait"
since = "the beginning"
threads = ["https://example.org/1"]
found = "elsewhere"
example = "print(1)"
"""

_right = F.conv2d


def is_affected(input: Any, weight: Any, stride: Any) -> bool:
    """Whether the planted fault shows."""
    down, across = (stride, stride) if isinstance(stride, int) else stride
    exceeds = down > weight.shape[2] or across > weight.shape[3]
    return exceeds and input.dtype == torch.float32 and torch._C._get_mkldnn_enabled()


def wrong(input: Any, weight: Any, bias: Any = None, stride: Any = 1, *rest: Any, **options: Any) -> Any:
    output = _right(input, weight, bias, stride, *rest, **options)
    return output + 1 if is_affected(input, weight, stride) else output


def crashing(input: Any, weight: Any, bias: Any = None, stride: Any = 1, *rest: Any, **options: Any) -> Any:
    if is_affected(input, weight, stride) and input.device.type == "cpu":
        ctypes.string_at(0)
    return _right(input, weight, bias, stride, *rest, **options)


def declare(directory: Path, entry: str = ENTRY) -> None:
    """Have this process know that fault and no other."""
    known_faults.FILE = directory / "faults.toml"
    known_faults.FILE.write_text(entry, encoding="utf-8")
    known_faults.forget_known_faults()


@contextmanager
def declared(directory: Path, entry: str = ENTRY) -> Iterator[None]:
    """Know that fault and no other for a while."""
    before = known_faults.FILE
    try:
        declare(directory, entry)
        yield
    finally:
        known_faults.FILE = before
        known_faults.forget_known_faults()
