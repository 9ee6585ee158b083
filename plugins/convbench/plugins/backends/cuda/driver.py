"""Launch kernels on a CUDA device, through the driver API of `cuda.bindings`.

Convolutions and pools see it as a `Machine`; the tests have another one, which runs the same kernels on the CPU.
Launches go to torch's current stream, in torch's context: they keep their order with torch's own, and CUDA graphs
capture them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.compiler import Program, cubin
from convbench.registry import ConvbenchError, Unsupported

Argument = Tensor | ctypes.Structure | int | None
Grid = tuple[int, int, int]

OLDEST = (8, 0)  # the compute capability that has bfloat16, cp.async and m16n8k16
SHARED_BY_DEFAULT = 48 * 1024  # bytes that a block may have without a function attribute


class Launch(NamedTuple):
    """A kernel on `grid` blocks of `threads` threads, each block with `shared` bytes of shared memory."""

    program: Program
    kernel: str
    grid: Grid
    threads: int
    shared: int
    arguments: Sequence[Argument]


class LaunchFailed(ConvbenchError):
    """The driver refused a call; the message has its words."""


class Machine(Protocol):
    """What runs kernels."""

    @property
    def device_type(self) -> str:
        """Of the tensors it takes."""

    def processors(self, device: torch.device) -> int:
        """How many blocks run at once, at least."""

    def launch(self, device: torch.device, launch: Launch) -> None:
        """Run a kernel."""


class Gpu:
    """NVIDIA's, of compute capability 8.0 and newer."""

    device_type = "cuda"

    def processors(self, device: torch.device) -> int:
        return _processors(device.index)

    def launch(self, device: torch.device, launch: Launch) -> None:
        program, kernel, grid, threads, shared, arguments = launch
        kept = parameters(arguments)
        pointers = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
        with torch.cuda.device(device):
            _have_context(device.index)
            function = _function(device.index, program, kernel, shared)
            stream = torch.cuda.current_stream(device).cuda_stream
            launched = _driver().cuLaunchKernel(
                function, *grid, threads, 1, 1, shared, stream, ctypes.addressof(pointers), 0
            )
            _check(launched, f"{kernel} ({program})")


def parameters(arguments: Sequence[Argument]) -> list[Any]:
    """The arguments as a kernel takes them: addresses of tensors, structures, and ints of 32 bits."""
    return [
        ctypes.c_void_p(argument.data_ptr() if isinstance(argument, Tensor) else None)
        if argument is None or isinstance(argument, Tensor)
        else ctypes.c_int32(argument)
        if isinstance(argument, int)
        else argument
        for argument in arguments
    ]


def _have_context(index: int) -> None:
    """A thread that has called nothing of CUDA has no context yet; torch uses the primary one of the device."""
    driver = _driver()
    if not int(_check(driver.cuCtxGetCurrent(), "the current context")):
        context = _check(driver.cuDevicePrimaryCtxRetain(index), "the primary context")
        _check(driver.cuCtxSetCurrent(context), "the primary context")


@cache
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@cache
def _architecture(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        raise Unsupported(f"compute capability {capability[0]}.{capability[1]}; it needs 8.0 or newer")
    return f"sm_{capability[0]}{capability[1]}"


@cache
def _module(index: int, program: Program) -> Any:
    """The program, loaded into the context of a device for as long as the process lasts."""
    version = str(_check(_driver().cuDriverGetVersion(), "the driver's version"))
    image = cubin(program, _architecture(index), version)
    return _check(_driver().cuModuleLoadData(image), f"loading {program}")


@cache
def _function(index: int, program: Program, kernel: str, shared: int) -> Any:
    driver = _driver()
    found = driver.cuModuleGetFunction(_module(index, program), kernel.encode())
    function = _check(found, f"{kernel} ({program})")
    if shared > SHARED_BY_DEFAULT:
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        allowed = driver.cuFuncSetAttribute(function, limit, shared)
        _check(allowed, f"{shared} bytes of shared memory for {kernel} ({program})")
    return function


@cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _check(answer: tuple[Any, ...], what: str) -> Any:
    """What a call returned beside its status.

    Raises:
        LaunchFailed: its status is an error.
    """
    status, *found = answer
    if int(status):
        _, words = _driver().cuGetErrorString(status)
        raise LaunchFailed(f"{what}: {(words or b'unknown error').decode()} (CUDA error {int(status)})")
    return found[0] if found else None
