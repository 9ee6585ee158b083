"""What `make gpu` does where a CUDA device is, in pieces of at most nine minutes: `make gpu-lenet` does one.

A piece whose time is up is interrupted as by Ctrl-C: what it has measured is kept, and the same piece, run again,
goes on from there. Results go to `results/reference/PIECE-GPU/`, with CSV files, tables, environment and plots.
Backends and suites that are not registered here are left out, with a sentence.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from convbench.registry import Registry, discover

SECONDS = 530  # of a piece
GRACE_SECONDS = 10  # to end after an interruption
ATTEMPTS = 4  # of a piece by `make gpu`, each going on where the last was interrupted
INTERRUPTED = 130  # convbench's exit code

OURS = ("torch", "cuda", "cuda_naive", "triton", "auto")  # those that a GPU is here for
Command = list[str]


@dataclass(frozen=True)
class Piece:
    """One part: what it is for, and its commands. A second call completes a `run` that was cut off."""

    summary: str
    commands: Callable[[Plan], Iterator[Command]]


@dataclass(frozen=True)
class Plan:
    """What the commands of a piece depend on."""

    registry: Registry
    gpu: str
    out: Path
    arguments: Sequence[str]

    def backends(self, *patterns: str) -> list[str]:
        """The registered backends that run on CUDA and match one of these globs, in the order of the globs."""
        names = [name for name, each in self.registry.backends.items() if "cuda" in each.devices]
        return list(dict.fromkeys(n for pattern in patterns for n in names if fnmatchcase(n, pattern)))

    def run(self, piece: str, suite: str, *options: str, backends: Sequence[str] = OURS) -> Iterator[Command]:
        """A run of a suite into the directory of a piece, or its completion."""
        if suite not in self.registry.suites:
            print(f"make gpu: suite {suite!r} is not registered here, and is left out", file=sys.stderr)
            return
        target = self.out / f"{piece}-{self.gpu}"
        command = [*CONVBENCH, "run", "--suite", suite, "--device", "cuda"]
        command += ["--backend", ",".join(self.backends(*backends)), *options, *self.arguments]
        there = (target / "results.csv").exists()
        yield [*command, "--resume" if there else "--out", str(target)]


Commands = Callable[[Plan], Iterator[Command]]
CONVBENCH = [sys.executable, "-m", "convbench.registry"]
TESTING = ("pytest", "pytest_timeout", "pytest_benchmark")
PYTEST = [sys.executable, "-m", "pytest"]


def _verify(*patterns: str, but: Sequence[str] = ()) -> Commands:
    def commands(plan: Plan) -> Iterator[Command]:
        for name in plan.backends(*patterns):
            if name not in but:
                yield [*CONVBENCH, "verify", name, "--device", "cuda", "--timeout", str(SECONDS // 2)]

    return commands


def _run(piece: str, suite: str, *options: str, backends: Sequence[str] = OURS) -> Commands:
    return lambda plan: plan.run(piece, suite, *options, backends=backends)


def _tests(plan: Plan) -> Iterator[Command]:
    yield [*PYTEST, "-m", "gpu", "-q"]


def _figures(plan: Plan) -> Iterator[Command]:
    benchmarks = ["-o", "addopts=--strict-markers --benchmark-only -s"]
    yield [*PYTEST, "tests/benchmarks/test_gpu_figures.py", *benchmarks]


HALF = ("--dtype", "bfloat16", "--memory-format", "channels_last")
QUICK = ("--rounds", "2", "--set", "timing.cudnn=trial")
PIECES = {
    "verify": Piece("conformance of torch and of the backends made for GPUs", _verify(*OURS)),
    "verify-others": Piece("conformance of the other backends that run on CUDA", _verify("*", but=OURS)),
    "tests": Piece("the tests that need a GPU", _tests),
    "ops": Piece(
        "layers alone, float32, caches hot and cold",
        _run("ops", "ops", *QUICK, "--set", "timing.cold_steps=20"),
    ),
    "ops-bfloat16": Piece(
        "layers alone, bfloat16, caches hot and cold",
        _run("ops-bfloat16", "ops", *QUICK, *HALF, "--set", "timing.cold_steps=20",
             backends=("torch", "cuda", "triton", "auto")),
    ),
    "lenet": Piece(
        "LeNet at batch 128: eager, compiled, and as a graph",
        _run("lenet", "lenet", "--mode", "eager,compile,graph", "--batch-size", "128", "--epochs", "2"),
    ),
    "lenet-1024": Piece(
        "LeNet at batch 1024: eager, and as a graph",
        _run("lenet-1024", "lenet", "--mode", "eager,graph", "--batch-size", "1024", "--epochs", "2"),
    ),
    "lenet-dtypes": Piece(
        "LeNet as a graph in every dtype",
        _run("lenet-dtypes", "lenet", "--mode", "graph", "--dtype", "float32,tf32,bfloat16,float16",
             "--epochs", "2", backends=("torch", "triton", "auto")),
    ),
    "lenet-recipe": Piece(
        "the full ten epochs of LeNet as a graph: the time to its final accuracy",
        _run("lenet-recipe", "lenet", "--mode", "graph", "--epochs", "10", "--no-time", "--seed", "0,1,2",
             backends=("torch", "auto")),
    ),
    "vgg": Piece(
        "VGG-11 at 224x224, bfloat16, channels_last, compiled",
        _run("vgg", "vgg", *QUICK, *HALF, "--mode", "compile", "--budget", "60", backends=("torch", "auto")),
    ),
    "resnet": Piece(
        "ResNet-18 at 96x96, bfloat16, channels_last, compiled",
        _run("resnet", "resnet", *QUICK, *HALF, "--mode", "compile", "--budget", "60",
             backends=("torch", "auto", "triton")),
    ),
    "resnext": Piece(
        "ResNeXt at 96x96, bfloat16, channels_last, compiled",
        _run("resnext", "resnext", *QUICK, *HALF, "--mode", "compile", "--budget", "60",
             backends=("torch", "auto", "triton")),
    ),
    "family": Piece(
        "every network of the book, tf32",
        _run("family", "family", *QUICK, "--dtype", "tf32", "--budget", "15", backends=("torch",)),
    ),
    "ladder": Piece("the ladder, on the GPU", _run("ladder", "ladder", backends=("*",))),
    "figures": Piece("the figures that are asked of an H200", _figures),
}  # fmt: skip


def main() -> int:
    """Run the pieces that are named, all of them without a name; 0 where every one ended well."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=", ".join(PIECES))
    parser.add_argument("--out", type=Path, default=Path("results/reference"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands of each piece")
    parser.add_argument("--arguments", default="", help="further arguments of every `convbench run`")
    options = parser.parse_args()
    for name in options.pieces:
        if name not in PIECES:
            parser.error(f"unknown piece {name!r}; there are {', '.join(PIECES)}")
    gpu = "GPU" if options.dry_run else gpu_name()
    if gpu is None:
        print("make gpu: torch sees no CUDA device", file=sys.stderr)
        return 1
    plan = Plan(discover(), gpu, options.out, shlex.split(options.arguments))
    failed = []
    for name in options.pieces or PIECES:
        print(f"make gpu-{name}: {PIECES[name].summary}", file=sys.stderr)
        if options.dry_run:
            for command in PIECES[name].commands(plan):
                program = ["convbench"] if command[:3] == CONVBENCH else ["python", "-m", "pytest"]
                print(shlex.join([*program, *command[3:]]))
            continue
        ended = attempt(PIECES[name], plan, 1 if options.pieces else ATTEMPTS)
        if ended:
            failed.append(f"{name} ({ended})")
    if failed:
        print(f"make gpu: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def attempt(piece: Piece, plan: Plan, attempts: int, seconds: float = SECONDS) -> str:
    """Run a piece, again as long as its time was up before it was done; what is wrong, or nothing."""
    for _ in range(attempts):
        codes = list(within(piece.commands(plan), seconds))
        if INTERRUPTED not in codes:
            return ", ".join(f"exit code {code}" for code in codes if code)
    return f"not done within {seconds:g} s: run it again, and it goes on"


def within(commands: Iterator[Command], seconds: float) -> Iterator[int]:
    """Run commands until the time of all is up; the exit code of each, 130 for one that was interrupted."""
    deadline = time.monotonic() + seconds
    for command in commands:
        if time.monotonic() >= deadline:
            yield INTERRUPTED
            return
        if command[:3] == PYTEST and any(importlib.util.find_spec(each) is None for each in TESTING):
            print(f"make gpu: {' or '.join(TESTING)} is missing, so no test was run", file=sys.stderr)
            yield 1
            continue
        process = subprocess.Popen(command)
        try:
            yield process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            yield interrupted(process)


def interrupted(process: subprocess.Popen[bytes]) -> int:
    """End a process whose time is up, as Ctrl-C does, and by force where it does not end by itself."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return INTERRUPTED


def gpu_name() -> str | None:
    """What the first GPU is called, as part of a directory's name: `nvidia-h200`; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
