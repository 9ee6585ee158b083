"""Where kernels run: a CUDA device, through the driver's plain C interface.

`Machine` is all that convolutions and pools know of it, and the tests have another one, which runs the same
kernels on the CPU. Launches go to torch's current stream, in torch's context, so that they keep their order with
torch's own and are captured into CUDA graphs with them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from convbench.plugins.backends.cuda.compile_cache import cubin
from convbench.plugins.backends.cuda.programs import Program
from convbench.registry import ConvbenchError, Unsupported

Argument = Tensor | ctypes.Structure | int | None
Grid = tuple[int, int, int]

OLDEST = (8, 0)  # the compute capability that has bfloat16, cp.async and m16n8k16
SHARED_WITHOUT_ASKING = 48 * 1024  # bytes
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # a CUfunction_attribute


class LaunchFailed(ConvbenchError):
    """The driver refused a kernel; the text is what it said."""


class Machine(Protocol):
    """What runs kernels."""

    @property
    def device_type(self) -> str:
        """Of the tensors it takes."""

    def processors(self, device: torch.device) -> int:
        """How many blocks run at once, at least."""

    def launch(
        self,
        device: torch.device,
        program: Program,
        kernel: str,
        grid: Grid,
        threads: int,
        shared: int,
        arguments: Sequence[Argument],
    ) -> None:
        """Run a kernel on `grid` blocks of `threads` threads, each block with `shared` bytes of shared memory."""


class Gpu:
    """NVIDIA's, of compute capability 8.0 and newer."""

    device_type = "cuda"

    def processors(self, device: torch.device) -> int:
        return _processors(device.index)

    def launch(
        self,
        device: torch.device,
        program: Program,
        kernel: str,
        grid: Grid,
        threads: int,
        shared: int,
        arguments: Sequence[Argument],
    ) -> None:
        kept = parameters(arguments)
        pointers = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
        with torch.cuda.device(device):
            _have_context(device.index)
            function = _function(device.index, program, kernel, shared)
            stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
            launch = _driver().cuLaunchKernel
            _check(
                launch(function, *grid, threads, 1, 1, shared, stream, pointers, None),
                f"{kernel} ({program})",
            )


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
    current = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(current)), "the current context")
    if not current:
        _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(current), index), "the primary context")
        _check(_driver().cuCtxSetCurrent(current), "the primary context")


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
def _module(index: int, program: Program) -> ctypes.c_void_p:
    """The program, loaded into the context of a device for as long as the process lasts."""
    image, module = cubin(program, _architecture(index), _driver_version()), ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), image), f"loading {program}")
    return module


@cache
def _function(index: int, program: Program, kernel: str, shared: int) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    find = _driver().cuModuleGetFunction
    _check(find(ctypes.byref(function), _module(index, program), kernel.encode()), f"{kernel} ({program})")
    if shared > SHARED_WITHOUT_ASKING:
        ask = _driver().cuFuncSetAttribute
        _check(
            ask(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared), f"{shared} bytes for {kernel} ({program})"
        )
    return function


@cache
def _driver() -> Any:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuLaunchKernel.argtypes = [
        ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    return driver


@cache
def _driver_version() -> str:
    version = ctypes.c_int()
    _check(_driver().cuDriverGetVersion(ctypes.byref(version)), "the driver's version")
    return str(version.value)


def _check(result: int, what: str) -> None:
    if result:
        words = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(words))
        raise LaunchFailed(f"{what}: {(words.value or b'unknown error').decode()} (CUDA error {result})")
