"""Compile the kernels that a call would launch, for GPUs that need not be there, and read what the cubin takes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convbench.plugins.backends.triton import convolution, pooling

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int16: "*i16"}


@dataclass(frozen=True)
class Launch:
    """A kernel with one of its configurations, and the arguments of a call."""

    kernel: Any
    config: Any
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel takes of a multiprocessor, and its assembly."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    ptx: str


def launches(monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], *given: Any) -> Iterator[Launch]:
    """What a call launches, each kernel once for every configuration that the autotuner could choose."""
    recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(kernel: Any, grid: Any, target: Tensor, *arguments: Any, **options: Any) -> None:
        recorded.append((kernel, arguments, options))

    with monkeypatch.context() as patch:
        patch.setattr(convolution, "launch", record)
        patch.setattr(pooling, "launch", record)
        call(*given)
    for kernel, arguments, options in recorded:
        jitted = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
        for config in getattr(kernel, "configs", [triton.Config({})]):
            values = dict(zip(jitted.arg_names, arguments, strict=False)) | options | config.kwargs
            yield Launch(jitted, config, values)


def compiled(launch: Launch, architecture: int, folder: Path) -> Compiled:
    """Compile as Triton does at a launch on that architecture, such as 90: with ones and multiples of 16 known."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        pointer = isinstance(value, Tensor)
        if parameter.is_constexpr or not (pointer or parameter.do_not_specialize or value != 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = POINTERS[value.dtype] if pointer else "i32"
        if not parameter.do_not_specialize and (pointer or value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.check_output(command, text=True)
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK", "LOCAL")
    )
    return Compiled(registers, stack + local, kernel.metadata.shared, kernel.asm["ptx"])
