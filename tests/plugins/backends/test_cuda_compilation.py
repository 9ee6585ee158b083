"""Every kernel that representative layers take, compiled by NVRTC without a GPU: registers, spills and memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import exhaustive
from convbench.plugins.backends.cuda import DTYPES, compiler, launch_config, pooling
from convbench.plugins.backends.cuda.compiler import Program, program
from convbench.plugins.backends.cuda.driver import Launch
from convbench.plugins.backends.cuda.kernel_arguments import Shape
from convbench.plugins.backends.cuda_naive.convolution import naive_program
from convbench.registry import discover

needs_nvrtc = pytest.mark.skipif(compiler.unavailable() is not None, reason=str(compiler.unavailable()))

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
REGISTERS = 65536  # of a processor, on all of them
SHARED = 163 * 1024  # bytes that a block may have on sm_80; the newer ones have more

LAYERS = {  # images, channels, size, filters, kernel, stride, padding, dilation, groups, output
    "lenet-conv1": Shape(128, 1, (28, 28), 6, (5, 5), (1, 1), (2, 2), (1, 1), 1, (28, 28)),
    "lenet-conv2": Shape(128, 6, (14, 14), 16, (5, 5), (1, 1), (0, 0), (1, 1), 1, (10, 10)),
    "resnet-stem": Shape(32, 3, (224, 224), 64, (7, 7), (2, 2), (3, 3), (1, 1), 1, (112, 112)),
    "resnet-block": Shape(32, 64, (24, 24), 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (24, 24)),
    "resnet-shortcut": Shape(128, 256, (24, 24), 512, (1, 1), (2, 2), (0, 0), (1, 1), 1, (12, 12)),
    "resnext-group": Shape(32, 128, (12, 12), 128, (3, 3), (1, 1), (1, 1), (1, 1), 16, (12, 12)),
    "depthwise": Shape(32, 64, (24, 24), 64, (3, 3), (1, 1), (1, 1), (1, 1), 64, (24, 24)),
}
H200 = 132  # processors


@dataclass
class Recorder:
    """A machine that takes note of launches and runs nothing."""

    device_type: str = "meta"
    launches: dict[tuple[Program, str], tuple[int, int]] = field(default_factory=dict)

    def processors(self, device: torch.device) -> int:
        return H200

    def launch(self, device: torch.device, launch: Launch) -> None:
        program, kernel, grid, threads, shared, _ = launch
        assert 0 < grid[0] < 2**31
        assert all(0 < extent < 65536 for extent in grid[1:])
        assert threads % 32 == 0
        previous = self.launches.get((program, kernel), (0, 0))
        self.launches[program, kernel] = max(previous[0], threads), max(previous[1], shared)


def launches(dtype: str, tf32: bool = False) -> dict[tuple[Program, str], tuple[int, int]]:
    """What the layers and pools of a dtype launch, forward and backward: threads and bytes of shared memory."""
    recorder, kind = Recorder(), getattr(torch, dtype)
    kernels, pools = launch_config.Convolution(recorder), pooling.Pooling(recorder, fixed=True)
    patched = pytest.MonkeyPatch()
    patched.setattr(launch_config, "float32_on_tensor_cores", lambda: tf32)
    with patched.context():
        for shape in LAYERS.values():
            input = torch.empty((shape.images, shape.channels, *shape.size), dtype=kind, device="meta")
            sizes = (shape.filters, shape.channels // shape.groups, *shape.kernel)
            weight = torch.empty(sizes, dtype=kind, device="meta")
            output = kernels.forward(input, weight, None, shape)
            kernels.input_gradient(output, weight, shape)
            kernels.weight_gradient(output, input, shape, with_bias=True)
    patched.undo()
    input = torch.empty((2, 3, 12, 12), dtype=kind, device="meta")
    window = (2, 2), (2, 2), (0, 0)
    pools.largest_gradient(*pools.largest(input, (6, 6), *window, (1, 1)), (12, 12), False, *window, (1, 1))
    pools.mean_gradient(pools.mean(input, (6, 6), *window, True, 0), (12, 12), False, *window, True, 0)
    return recorder.launches


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a processor, as ptxas has it."""

    registers: int
    stack: int
    spilled: int


def usages(log: str) -> Iterator[tuple[str, Usage]]:
    """By kernel, from the compiler's log."""
    for part in log.split("Compiling entry function ")[1:]:
        numbers = [
            re.search(pattern, part)
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill stores")
        ]
        yield part.split("'")[1], Usage(*(int(found[1]) for found in numbers if found))


KINDS = [*((dtype, False) for dtype in DTYPES), ("float32", True)]


@needs_nvrtc
@pytest.mark.parametrize(
    ("dtype", "tf32", "architectures"),
    [
        ("bfloat16", False, ARCHITECTURES[1:2]),
        exhaustive("bfloat16", False, (ARCHITECTURES[0], ARCHITECTURES[2])),
        # float16 differs from bfloat16 in one instruction: one architecture of the three will do
        exhaustive("float16", False, ARCHITECTURES[1:2]),
        *(exhaustive(*kind, ARCHITECTURES) for kind in KINDS if kind[0] not in ("float16", "bfloat16")),
    ],
    ids=str,
)
def test_every_kernel_of_the_layers_compiles_and_spills_nothing(
    dtype: str, tf32: bool, architectures: tuple[str, ...]
) -> None:
    wanted = launches(dtype, tf32)
    programs = {made for made, _ in wanted}
    jobs = [(made, architecture) for made in programs for architecture in architectures]
    with ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(lambda job: job[0].compiled(job[1]), jobs))
    seen = set()
    for (made, architecture), result in zip(jobs, compiled, strict=True):
        assert result.cubin.startswith(b"\x7fELF")
        for kernel, usage in usages(result.log):
            what = f"{kernel} ({made}) on {architecture}"
            assert usage.spilled == 0, what
            assert usage.stack == 0, what
            if (made, kernel) in wanted:
                seen.add((made, kernel))
                threads, shared = wanted[made, kernel]
                assert usage.registers <= (168 if threads <= 128 else 240), (
                    what
                )  # three small blocks, or a large one
                assert -(-usage.registers // 8) * 8 * threads <= REGISTERS, what
                assert shared <= SHARED, what
    assert seen == set(wanted)


@needs_nvrtc
@pytest.mark.parametrize("dtype", ["float32", exhaustive("float64"), "bfloat16", exhaustive("float16")])
def test_the_naive_kernels_compile_and_spill_nothing(dtype: str) -> None:
    for made in (naive_program(getattr(torch, dtype)), pooling.pooling_program(getattr(torch, dtype))):
        for architecture in ARCHITECTURES:
            found = dict(usages(made.compiled(architecture).log))
            assert len(found) == 4
            for kernel, usage in found.items():
                assert usage.spilled == usage.stack == 0, f"{kernel} on {architecture}: {usage}"
                assert usage.registers <= 64


@needs_nvrtc
def test_a_refused_kernel_says_what_the_compiler_said() -> None:
    with pytest.raises(compiler.CompilationFailed, match="THIS_IS_NOT_A_TYPE"):
        program("sums.cu", ELEMENT="THIS_IS_NOT_A_TYPE").compiled("sm_90")
    with pytest.raises(compiler.CompilationFailed, match="sm_1"):
        program("sums.cu", ELEMENT="float").compiled("sm_1")


# --- the cache --------------------------------------------------------------------------------------------------

SUMS = program("sums.cu", ELEMENT="float")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were compiled, by a compiler that is fast; what it makes depends on what it was given."""
    made: list[str] = []

    def compiled(name: str, source: str, headers: Any, options: Sequence[str]) -> compiler.Compiled:
        made.append(name)
        return compiler.Compiled(hashlib.sha256(repr((source, headers, options)).encode()).digest() * 100, "")

    monkeypatch.setattr(compiler, "compiled", compiled)
    monkeypatch.setattr(compiler, "version", lambda: (13, 0))
    return made


def test_a_program_is_compiled_once(compilations: list[str], tmp_path: Path) -> None:
    first = compiler.cubin(SUMS, "sm_90", "13000", tmp_path / "new" / "folder")
    assert compiler.cubin(SUMS, "sm_90", "13000", tmp_path / "new" / "folder") == first
    assert compilations == ["sums.cu"]
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [
        ".cubin"
    ]  # and nothing beside it


def test_what_it_depends_on_asks_for_another(
    compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(made: Program = SUMS, architecture: str = "sm_90", driver: str = "13000") -> Path:
        return compiler.entry(made, architecture, driver, tmp_path)

    entries = [
        entry(),
        entry(program("sums.cu", ELEMENT="bf16")),
        entry(architecture="sm_80"),
        entry(driver="13010"),
    ]
    monkeypatch.setattr(compiler, "version", lambda: (13, 1))
    entries.append(entry())
    monkeypatch.setattr(Program, "source", "changed")
    entries.append(entry())
    monkeypatch.setattr(Program, "headers", {"primitives.cuh": "changed too"})
    entries.append(entry())
    assert len(set(entries)) == len(entries)


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 4000])
def test_a_damaged_entry_is_made_again(compilations: list[str], tmp_path: Path, damage: bytes) -> None:
    first = compiler.cubin(SUMS, "sm_90", "13000", tmp_path)
    compiler.entry(SUMS, "sm_90", "13000", tmp_path).write_bytes(damage)
    assert compiler.cubin(SUMS, "sm_90", "13000", tmp_path) == first
    assert compiler.cubin(SUMS, "sm_90", "13000", tmp_path) == first
    assert len(compilations) == 2


def test_a_folder_that_cannot_be_written_costs_compilations_only(
    compilations: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert compiler.cubin(SUMS, "sm_90", "13000", tmp_path / "file" / "cubins")
    assert len(compilations) == 2


def test_processes_at_once_see_whole_entries(compilations: list[str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: compiler.cubin(SUMS, "sm_90", "13000", tmp_path), range(50)))
    assert len(set(answers)) == 1
    assert len(list(tmp_path.iterdir())) == 1


# --- where it cannot run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "cuda_naive"])
def test_without_a_device_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert (discover().backend(name).unavailable() or "").startswith("no CUDA device")


def test_without_nvrtc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.unavailable.cache_clear()
    monkeypatch.setattr(compiler, "find", lambda: None)
    try:
        assert compiler.unavailable() == compiler.MISSING
        assert "convbench[cuda]" in compiler.MISSING
    finally:
        compiler.unavailable.cache_clear()
