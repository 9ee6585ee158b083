"""Compare convbench's training of LeNet with d2l 1.0.3's `Trainer` and with JAX, side by side on this machine.

    python scripts/compare_with_peers.py [--rounds 5] [--data-dir DIR] [--out results/reference/peers-NAME.md]
    python scripts/compare_with_peers.py --accuracy [--rounds 5] ...
    python scripts/compare_with_peers.py --sides torch native native+fuse+compile d2l jax ...

The first compares speeds, over the second epoch. The second compares what the book's ten epochs come to, a round
for each seed. Ours is a backend, `+fuse` with its fused ops, `+compile` under `torch.compile`; the first side is
what the others are compared with. In JAX a whole step is one jitted function. d2l and JAX, with what they import,
are installed into a directory each under build/; d2l shares this interpreter's torch, so that it trains with the
same one as ours. Every round is a fresh process of each, in turn, and all read the same files of FashionMNIST.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
D2L, JAX = "d2l", "jax"
# d2l pins years-old numpy, pandas and matplotlib; what it needs of them today's releases still have
PACKAGES = {D2L: ("ipython", "matplotlib", "matplotlib-inline", "requests", "scipy"), JAX: ("jax",)}
SPEED_EPOCHS = 2  # the first warms up
ACCURACY_EPOCHS = 10  # the book's
SIDES = ("torch", "native", "native+fuse", "auto", "auto+fuse", "torch+compile", D2L, JAX)


def label(side: str) -> str:
    """A side as the tables have it."""
    if side == JAX:
        return "JAX, whole step jitted"
    backend, *options = side.split("+")
    return "d2l `Trainer`" if side == D2L else ", ".join([f"convbench, `{backend}` backend", *options])


@dataclass(frozen=True)
class Outcome:
    """What one process came to: the speed of its last epoch, evaluation apart, and accuracy on the test images."""

    images_per_second: float
    accuracy: float

    def __str__(self) -> str:
        return f"{self.images_per_second:,.0f} images/s, accuracy {self.accuracy:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accuracy", action="store_true", help="train ten epochs and compare accuracies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sides", nargs="+", default=SIDES, metavar="BACKEND[+fuse][+compile]|d2l|jax")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        epochs = ACCURACY_EPOCHS if options.accuracy else SPEED_EPOCHS
        arguments = options.data_dir, epochs, options.seed
        if theirs := {D2L: train_d2l, JAX: train_jax}.get(options.side):
            outcome = theirs(*arguments)
        else:
            outcome = train_convbench(*arguments, *options.side.split("+"))
        print(json.dumps(asdict(outcome)))
        return
    for name in PACKAGES:
        if name in options.sides:
            install(name)
    data = torchvision_layout(options.data_dir)
    outcomes: dict[str, list[Outcome]] = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side, values in outcomes.items():
            values.append(measure(side, data, number, accuracy=options.accuracy))
            print(f"round {number + 1} {side}: {values[-1]}", file=sys.stderr)
    text = (report_accuracy if options.accuracy else report_speed)(outcomes)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def overlay(name: str) -> Path:
    """Where d2l or JAX is installed."""
    return ROOT / "build" / name


def install(name: str) -> None:
    """Set d2l or JAX up, once."""
    if (overlay(name) / name).is_dir():
        return
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(overlay(name))]
    if name == D2L:
        subprocess.run([*pip, "--no-deps", "d2l==1.0.3"], check=True)
    subprocess.run([*pip, *PACKAGES[name]], check=True)
    if name == D2L:  # numpy and its like came along; the ones of this environment are to be used
        for other in ("numpy", "pandas", "torch", "torchvision"):
            for path in overlay(name).glob(f"{other}*"):
                shutil.rmtree(path)


def torchvision_layout(data_dir: Path | None) -> Path:
    """FashionMNIST as torchvision lays it out, uncompressed, written from what convbench finds."""
    import torch

    from convbench.registry import discover

    root = ROOT / "build" / "data"
    raw = root / "FashionMNIST" / "raw"
    if not (raw / "t10k-labels-idx1-ubyte").exists():
        images = discover().dataset("fashion-mnist").load(data_dir)
        raw.mkdir(parents=True, exist_ok=True)
        for split, name in (("train", "train"), ("test", "t10k")):
            for kind, magic, label in (("images", 0x803, "images-idx3"), ("labels", 0x801, "labels-idx1")):
                part = getattr(images, f"{split}_{kind}").to(torch.uint8)
                part = part.squeeze(1) if kind == "images" else part
                header = b"".join(number.to_bytes(4, "big") for number in (magic, *part.shape))
                (raw / f"{name}-{label}-ubyte").write_bytes(header + part.numpy().tobytes())
    return root


def measure(side: str, data: Path, seed: int, *, accuracy: bool) -> Outcome:
    """One process of one side."""
    path = str(overlay(side)) if side in PACKAGES else os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": path}
    if side not in PACKAGES:
        environment["OMP_PROC_BIND"] = "true"  # as in a worker
    beside = data.parent / "d2l"  # d2l looks for its data in ../data
    beside.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--side", side, "--data-dir", str(data), "--seed", str(seed)]
    command += ["--accuracy"] if accuracy else []
    done = subprocess.run(command, cwd=beside, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def train_d2l(root: Path, epochs: int, seed: int) -> Outcome:
    """The book's LeNet, trained by d2l's Trainer."""
    import torch
    from d2l import torch as d2l
    from torch import nn

    class LeNet(d2l.Classifier):  # the book's, 7.6
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(
                nn.LazyConv2d(6, kernel_size=5, padding=2), nn.Sigmoid(),
                nn.AvgPool2d(kernel_size=2, stride=2),
                nn.LazyConv2d(16, kernel_size=5), nn.Sigmoid(),
                nn.AvgPool2d(kernel_size=2, stride=2),
                nn.Flatten(),
                nn.LazyLinear(120), nn.Sigmoid(),
                nn.LazyLinear(84), nn.Sigmoid(),
                nn.LazyLinear(10),
            )  # fmt: skip

    def init_cnn(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)

    class Timed(d2l.Trainer):
        seconds: list[float] = []  # noqa: RUF012 - one trainer per process

        def fit_epoch(self) -> None:
            validation, self.val_dataloader = self.val_dataloader, None
            start = time.perf_counter()
            super().fit_epoch()
            self.seconds.append(time.perf_counter() - start)
            self.val_dataloader = validation

    torch.manual_seed(seed)
    data = d2l.FashionMNIST(batch_size=128)
    model = LeNet()
    model.apply_init([next(iter(data.get_dataloader(True)))[0]], init_cnn)
    trainer = Timed(max_epochs=epochs, num_gpus=1)
    trainer.fit(model, data)
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.get_dataloader(False))
    return Outcome(len(data.train) / trainer.seconds[-1], right / len(data.val))


def train_jax(root: Path, epochs: int, seed: int) -> Outcome:
    """The same in JAX: the network, its gradients and the update are one function, compiled for a batch."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    def read(name: str, header: int) -> Any:
        return np.frombuffer((root / "FashionMNIST" / "raw" / name).read_bytes(), np.uint8, offset=header)

    def split(name: str) -> tuple[Any, Any]:
        images = read(f"{name}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)
        return jnp.asarray(images, jnp.float32) / 255, jnp.asarray(
            read(f"{name}-labels-idx1-ubyte", 8), jnp.int32
        )

    # channels last and windows summed up: of the ways to write it, the one that is fastest on a CPU
    shapes = [(5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)]
    keys = jax.random.split(jax.random.PRNGKey(seed), len(shapes))
    xavier = jax.nn.initializers.glorot_uniform()
    parameters = [(xavier(key, shape), jnp.zeros(shape[-1])) for key, shape in zip(keys, shapes, strict=True)]

    def stage(images: Any, layer: Any, padding: str) -> Any:
        weight, bias = layer
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.nn.sigmoid(
            lax.conv_general_dilated(images, weight, (1, 1), padding, dimension_numbers=layout) + bias
        )
        return lax.reduce_window(out, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4

    def scores(parameters: Any, images: Any) -> Any:
        first, second, *linear = parameters
        out = stage(stage(images, first, "SAME"), second, "VALID").reshape(len(images), -1)
        for weight, bias in linear[:-1]:
            out = jax.nn.sigmoid(out @ weight + bias)
        weight, bias = linear[-1]
        return out @ weight + bias

    def loss(parameters: Any, images: Any, labels: Any) -> Any:
        rows = jax.nn.log_softmax(scores(parameters, images))
        return -jnp.take_along_axis(rows, labels[:, None], 1).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(parameters: Any, images: Any, labels: Any, chosen: Any) -> Any:
        gradients = jax.grad(loss)(parameters, images[chosen], labels[chosen])
        return jax.tree.map(lambda one, gradient: one - 0.1 * gradient, parameters, gradients)

    images, labels = split("train")
    order, seconds = np.random.default_rng(seed), 0.0
    for _ in range(epochs):
        batches = [
            jnp.asarray(each)
            for each in np.split(order.permutation(len(images)), range(128, len(images), 128))
        ]
        start = time.perf_counter()
        for chosen in batches:
            parameters = step(parameters, images, labels, chosen)
        jax.block_until_ready(parameters)
        seconds = time.perf_counter() - start
    test_images, test_labels = split("t10k")
    right = (jax.jit(scores)(parameters, test_images).argmax(1) == test_labels).mean()
    return Outcome(len(images) / seconds, float(right))


def train_convbench(root: Path, epochs: int, seed: int, backend: str, *options: str) -> Outcome:
    """The same by convbench's loop, on a backend of ours."""
    import torch

    from convbench.registry import create_model, discover, use_backend
    from convbench.suites.measure.data import image_batches
    from convbench.suites.measure.training import train
    from convbench.suites.worker.setup import set_process

    set_process(torch.get_num_threads())  # as in a worker
    images = discover().dataset("fashion-mnist").load(root)
    torch.manual_seed(seed)
    model: Any = use_backend(create_model("lenet"), backend, fuse="fuse" in options)
    if "compile" in options:
        model = torch.compile(model)
    where = (torch.device("cpu"), torch.float32, "contiguous", None)
    data = image_batches(images.train_images, images.train_labels, *where)
    validation = image_batches(images.test_images, images.test_labels, *where)
    *_, before, last = train(model, data, validation, lr=0.1, epochs=epochs, batch_size=128, seed=seed)
    speed = (last.images - before.images) / (last.train_seconds - before.train_seconds)
    return Outcome(speed, last.val_accuracy)


def report_speed(outcomes: dict[str, list[Outcome]]) -> str:
    """Speeds, as Markdown."""
    speeds = {side: [each.images_per_second for each in values] for side, values in outcomes.items()}
    against = {
        other: speeds[other] for other in dict.fromkeys((next(iter(speeds)), D2L, JAX)) if other in speeds
    }
    headings = [f"times {other if other in PACKAGES else f'`{other}`'}" for other in against]
    lines = [
        "# Training LeNet: convbench and its peers",
        "",
        f"LeNet on FashionMNIST, batch 128, second epoch without evaluation, {len(next(iter(speeds.values())))} "
        "fresh processes each",
        f"in turn on {circumstances()}; made by `python scripts/compare_with_peers.py`.",
        "A ratio is the median over the rounds, with the least and the most.",
        "",
        "| | images/s, median | least | most | " + " | ".join(headings) + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(against),
    ]
    for side, values in speeds.items():
        figures = [f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"]
        for base in against.values():
            ratios = [a / b for a, b in zip(values, base, strict=True)]
            figures.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {label(side)} | " + " | ".join(figures) + " |")
    return "\n".join([*lines, ""])


def report_accuracy(outcomes: dict[str, list[Outcome]]) -> str:
    """Accuracies, as Markdown."""
    rounds = len(next(iter(outcomes.values())))
    lines = [
        "# What LeNet learns: convbench and its peers",
        "",
        f"LeNet on the whole of FashionMNIST, the book's {ACCURACY_EPOCHS} epochs, batch 128, learning rate 0.1; "
        "accuracy on the 10,000 test",
        "images after the last, a seed and a fresh process for each, on",
        f"{circumstances()}; made by `python scripts/compare_with_peers.py --accuracy`.",
        "",
        "| | mean | deviation | " + " | ".join(f"seed {seed}" for seed in range(rounds)) + " |",
        "| --- | ---: | ---: |" + " ---: |" * rounds,
    ]
    found = []
    for side, outcomes_of_side in outcomes.items():
        values = [each.accuracy for each in outcomes_of_side]
        found.append((statistics.mean(values), statistics.stdev(values) / rounds**0.5))
        each = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {label(side)} | {found[-1][0]:.4f} | {statistics.stdev(values):.4f} | {each} |")
    (mean, error), *others = found
    lines.append("")
    for side, (other_mean, other_error) in zip(list(outcomes)[1:], others, strict=True):
        lines.append(
            f"- {label(side)}: {other_mean - mean:+.4f} against {label(next(iter(outcomes)))}, standard error of "
            f"the difference {math.hypot(error, other_error):.4f}."
        )
    lines += [
        "",
        "Backends of ours start from the same weights and see the same order of images for a seed; d2l and JAX",
        "draw their own.",
        "",
    ]
    return "\n".join(lines)


def circumstances() -> str:
    """The machine, torch and the day."""
    import torch

    from convbench.results.storage.environment import device_name

    threads = f"{torch.get_num_threads()} threads"
    return f"{device_name('cpu')}, torch {torch.__version__}, {threads}, {datetime.now(UTC):%Y-%m-%d}"


if __name__ == "__main__":
    main()
