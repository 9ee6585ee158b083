"""Known faults of torch and of the libraries beneath it: which calls go wrong where, and the way around them.

`known_faults.toml` beside this module has them. A failing case that one of them explains is reported under its
name (`convbench.registry.conformance.verify`). A call that convbench leaves to torch is computed in another dtype
where torch is known to get it wrong (`safe_torch_op`). On a machine without such a fault, none of this takes time.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convbench.registry.conformance.cases import Case
from convbench.registry.errors import Unsupported
from convbench.registry.ops.call_arguments import is_observed, unobserved
from convbench.registry.ops.contract import OPS
from convbench.registry.ops.op import Op
from convbench.registry.ops.window import conv2d_window, pair, pool2d_window

FILE = Path(__file__).with_suffix(".toml")
Route = Callable[..., Any]


@dataclass(frozen=True)
class KnownFault:
    """One fault; the head of `known_faults.toml` explains the fields."""

    name: str
    library: str
    versions: str
    reference: str
    summary: str
    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    when: str
    compute_in: str
    avoid: str
    since: str
    threads: tuple[str, ...]
    found: str
    example: str
    instruction_set: str = ""

    def __str__(self) -> str:
        """The name it is reported under, such as `known fault of oneDNN <3.13, oneDNN 5494`."""
        return f"known fault of {self.library} {self.versions}, {self.reference}"

    @property
    def is_here(self) -> bool:
        """Whether this process has the library in an affected version, on an affected processor."""
        version = library_version(self.library)
        return (
            version is not None
            and in_versions(version, self.versions)
            and (not self.instruction_set or uses(self.library, self.instruction_set))
        )

    @cached_property
    def _condition(self) -> Callable[[Mapping[str, int]], bool]:
        code = compile(" ".join(self.when.split()), f"{FILE.name}, {self.name}", "eval")
        return lambda sizes: bool(eval(code, {"__builtins__": {}}, dict(sizes)))

    def affects(self, op: str, dtype: str, device: str, sizes: Mapping[str, int]) -> bool:
        """Whether a call of these sizes (see `sizes_of`) goes wrong, on a machine that has the fault."""
        return op in self.ops and dtype in self.dtypes and device in self.devices and self._condition(sizes)


@cache
def known_faults() -> tuple[KnownFault, ...]:
    """All of the file."""
    faults = []
    for name, table in tomllib.loads(FILE.read_text(encoding="utf-8")).items():
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        faults.append(KnownFault(name, **values))
    return tuple(faults)


@cache
def faults_here() -> tuple[KnownFault, ...]:
    """Those that concern this process."""
    return tuple(fault for fault in known_faults() if fault.is_here)


def forget_known_faults() -> None:
    """Forget what was read and decided, after `FILE` was replaced."""
    for cached in (known_faults, faults_here, _looked_up):
        cached.cache_clear()


# --- which calls ----------------------------------------------------------------------------------------------


def fault_of_case(case: Case, dtype: str, device: str) -> KnownFault | None:
    """The fault that a case runs into on this machine where torch computes it."""
    if OPS[case.op].chain:
        return None  # it is computed as its layers, whose faults are known
    key = _key((*case.shapes, *case.options))
    op = OPS[case.op].base or OPS[case.op]
    name = _fault_of(op.name, dtype, device.partition(":")[0], key)
    return next((fault for fault in faults_here() if fault.name == name), None)


Key = tuple[tuple[str, Any], ...]


def _key(arguments: Iterable[tuple[str, Any]]) -> Key:
    """Shapes and options of a call by name, to look it up by: what no fault is about, the batch, as 1.

    Sizes that the compiler holds for variable become constants, all but the batch.
    """
    return tuple((name, _hashable(value, name)) for name, value in arguments)


def _hashable(value: Any, name: str) -> Any:
    shape = value.shape if isinstance(value, Tensor) else value
    if name == "input":
        return (1, *map(index, shape[1:]))
    if isinstance(value, Tensor):
        return tuple(map(index, shape))
    return tuple(value) if isinstance(value, list) else value


def _fault_of(op: str, dtype: str, device: str, key: Key) -> str:
    """The name of the fault that such a call runs into, or nothing. It runs as it is while the compiler traces."""
    return _looked_up(op, dtype, device, key)


# what `torch.compiler.assume_constant_result` does, which would import the whole compiler, for two seconds
_fault_of.__dict__["_dynamo_marked_constant"] = True


@lru_cache(4096)
def _looked_up(op: str, dtype: str, device: str, key: Key) -> str:
    candidates = [fault for fault in faults_here() if op in fault.ops]
    if not candidates:
        return ""
    given = dict(key)
    call: dict[str, Any] = {
        name: given.get(name, None if parameter.default is parameter.empty else parameter.default)
        for name, parameter in OPS[op].signature.parameters.items()
    }
    call |= {
        name: torch.empty(call[name], device="meta") for name in OPS[op].tensors if call[name] is not None
    }
    sizes = sizes_of(op, call)
    if sizes is None:  # torch refuses it
        return ""
    return next((fault.name for fault in candidates if fault.affects(op, dtype, device, sizes)), "")


def sizes_of(op: str, arguments: Mapping[str, Any]) -> dict[str, int] | None:
    """The numbers that `when` is about, from the arguments of a call; None where torch refuses the call."""
    try:
        if op == "conv2d":
            window = conv2d_window(**arguments)
        else:
            window = pool2d_window(
                arguments["input"],
                arguments["kernel_size"],
                arguments["stride"],
                arguments["padding"],
                arguments.get("dilation", 1),
                arguments["ceil_mode"],
            )
    except (ValueError, TypeError, RuntimeError, Unsupported):
        return None
    _, channels, height, width = arguments["input"].shape
    weight = arguments.get("weight")
    sizes = {
        "channels": channels,
        "filters": channels if weight is None else weight.shape[0],
        "groups": arguments.get("groups", channels),
        "height": height,
        "width": width,
    }
    extent = tuple(d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel_size, strict=True))
    # as the call has them: a window's are 1 where they make no difference, and to a kernel of others they do
    stride = arguments.get("stride") or (1 if op == "conv2d" else arguments["kernel_size"])
    pairs = {
        "kernel": window.kernel_size,
        "extent": extent,
        "stride": pair(stride, "stride"),
        "dilation": pair(arguments.get("dilation", 1), "dilation"),
        "padding": tuple(map(max, window.before, window.after)),
        "output": window.output_size,
    }
    for name, (down, across) in pairs.items():
        sizes |= {f"{name}_height": down, f"{name}_width": across}
    return sizes


# --- another way ----------------------------------------------------------------------------------------------


def safe_torch_op(op: Op, on_fault: Callable[[KnownFault], object] | None = None) -> Route:
    """torch's own function of an op, but for calls that it is known to get wrong.

    `on_fault` is called with the fault of each of these. On a machine that no fault of the op concerns it is
    `op.reference` itself.
    """
    base = (op.base or op).name
    faults = {fault.name: fault for fault in faults_here() if base in fault.ops}
    if not faults:
        return op.reference
    ways = {name: in_wider_dtype(op, fault) for name, fault in faults.items()}
    concerned = {
        (device, getattr(torch, dtype)): dtype
        for fault in faults.values()
        for device in fault.devices
        for dtype in fault.dtypes
    }
    names = tuple(op.signature.parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        input = args[0] if args else kwargs["input"]
        device, dtype = input.device.type, input.dtype
        if (
            op.multiplies
            and torch._C._is_any_autocast_enabled()
            and torch.is_autocast_enabled(device)
            and dtype != torch.float64
        ):
            dtype = torch.get_autocast_dtype(device)
        nested = isinstance(input, Tensor) and input.is_nested  # has no shape to look at
        known = None if nested else concerned.get((device, dtype))
        if known is not None:
            seen = not torch.compiler.is_compiling() and is_observed()
            with unobserved() if seen else nullcontext():
                key = _key((*zip(names, args, strict=False), *kwargs.items()))
                name = _fault_of(base, known, device, key)
            if name:
                if on_fault is not None:
                    on_fault(faults[name])
                return ways[name](*args, **kwargs)
        return op.reference(*args, **kwargs)

    return call


def in_wider_dtype(op: Op, fault: KnownFault) -> Route:
    """The op computed in a dtype that the fault does not concern, and rounded to the one that was asked for."""
    from convbench.registry.routing.autocast import autocasting

    wide: torch.dtype = getattr(torch, fault.compute_in)

    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = (args[0] if args else kwargs["input"]).dtype
        args = tuple(_cast(value, wide) for value in args)
        kwargs = {name: _cast(value, wide) for name, value in kwargs.items()}
        return op.reference(*args, **kwargs).to(dtype)

    return autocasting(op, call)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value


@contextmanager
def disabled(library: str) -> Iterator[None]:
    """Have torch compute without a library that `can_disable`."""
    read, write = _SWITCHES[library]
    before = read()
    write(False)
    try:
        yield
    finally:
        write(before)


def can_disable(library: str) -> bool:
    """Whether torch can compute without a library."""
    return library in _SWITCHES


_SWITCHES: Mapping[str, tuple[Callable[[], bool], Callable[[bool], object]]] = {
    "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "cuDNN": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
}


# --- what is here ---------------------------------------------------------------------------------------------


def library_version(library: str) -> tuple[int, ...] | None:
    """The version that this torch has of a library; None where it has none."""
    if library == "torch":
        return _numbers(torch.__version__)
    if library == "oneDNN":
        found = re.search(r"(?:MKL-DNN|oneDNN) v?([\d.]+)", torch.__config__.show())
        return _numbers(found[1]) if found and torch.backends.mkldnn.is_available() else None
    if library == "cuDNN":
        number = torch.backends.cudnn.version()
        return None if number is None else (number // 10000, number // 100 % 100, number % 100)
    return None


def in_versions(version: tuple[int, ...], versions: str) -> bool:
    """Whether a version meets all of `>=2.3, <3.13`.

    Raises:
        ValueError: not such conditions.
    """
    return all(_meets(version, condition.strip()) for condition in versions.split(","))


def _meets(version: tuple[int, ...], condition: str) -> bool:
    parts = re.fullmatch(r"(<=|>=|<|>|==)\s*([\d.]+)", condition)
    if parts is None:
        raise ValueError(f"{condition!r} is no condition on a version, such as '<3.13'")
    length = max(len(version), len(_numbers(parts[2])))
    ours, theirs = (each + (0,) * (length - len(each)) for each in (version, _numbers(parts[2])))
    return {
        "<": ours < theirs,
        "<=": ours <= theirs,
        ">": ours > theirs,
        ">=": ours >= theirs,
        "==": ours == theirs,
    }[parts[1]]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"[\d.]*\d", version)[0].split("."))  # type: ignore[index]


def uses(library: str, instruction_set: str) -> bool:
    """Whether the processor has an instruction set, and the library is allowed to use it."""
    wanted = instruction_set.replace("_", "")
    if wanted not in _instruction_sets():
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if library != "oneDNN" or limit in ("", "ALL", "DEFAULT"):
        return True
    needed = ("AMX",) if wanted.startswith("amx") else ("AVX512", "AVX10", "AMX")
    return wanted[:3] not in ("amx", "avx") or any(word in limit for word in needed)


@cache
def _instruction_sets() -> frozenset[str]:
    """What the processor has, without underscores, which systems spell differently."""
    try:
        found = {name for name, present in torch.cpu.get_capabilities().items() if present is True}
    except (AttributeError, RuntimeError):  # older
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
        found = set(listed[1].split()) if listed else set()
    return frozenset(name.replace("_", "") for name in found)
