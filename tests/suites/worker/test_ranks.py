"""Several processes that train together: the same training as of one, its times, and what a bad rank costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import misbehaving
from convbench.registry import discover
from convbench.registry.models.factory import create_model
from convbench.registry.routing.dispatch import use_backend
from convbench.results.schema import Row
from convbench.suites import run
from convbench.suites.measure.data import ImageBatches
from convbench.suites.measure.ranks import (
    Ranks,
    ShareOfBatches,
    together,
    trained_images,
    with_norms_of_ranks,
)
from convbench.suites.measure.training import train
from convbench.suites.processes.protocol import Failed, Samples, Waited
from convbench.suites.worker.ranks import _failure, obstacle_to_ranks, slowest

pytestmark = pytest.mark.usefixtures("preloaded_servers")


# --- the same training ---


def data(images: int, size: int) -> ImageBatches:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 10, (images,), generator=generator)
    pixels = torch.randint(0, 256, (images, 1, size, size), generator=generator, dtype=torch.uint8)
    return ImageBatches(pixels, labels, torch.float32, torch.contiguous_format)


def small_resnet() -> nn.Module:
    """ResNet-18's blocks at a fraction of their width: batch norm in every one, strides, and 1x1 shortcuts.

    In float64: in float32 one process alone, with weights changed by 1e-7, is 1e-2 away after 50 steps.
    """

    class Block(nn.Module):
        def __init__(self, channels: int, out: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(channels, out, 3, stride, 1),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.Conv2d(out, out, 3, 1, 1),
                nn.BatchNorm2d(out),
            )
            self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    widths = [(4, 4, 1), (4, 4, 1), (4, 8, 2), (8, 8, 1), (8, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1)]
    stem = [nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()]
    blocks = [Block(*width) for width in widths]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def made(network: str) -> nn.Module:
    torch.manual_seed(0)
    if network == "lenet":
        return create_model(discover(installed=()).architecture("lenet_relu"))
    return small_resnet().double()


def losses(network: str, steps: int, ranks: Ranks, batch: int = 16) -> list[float]:
    """The mean loss of each epoch of five steps, of which the last has a smaller batch, and of the validation."""
    model = made(network)
    routed: nn.Module = use_backend(model, discover(installed=()).backend("im2col"))
    batches: Any = data(5 * batch - 3, 28 if network == "lenet" else 16)
    batches = replace(batches, dtype=next(model.parameters()).dtype)
    validation = replace(batches, images=batches.images[:31], labels=batches.labels[:31])
    if not ranks.alone:
        with_norms_of_ranks(model)
        routed = together(routed, ranks, torch.device("cpu"))
        batches = ShareOfBatches(batches, ranks)
    found = []
    for progress in train(
        routed, batches, validation, lr=0.05, epochs=steps // 5, batch_size=batch, seed=0, ranks=ranks
    ):
        found += [progress.train_loss, progress.val_loss]
        assert progress.evaluated == 31
    return found


def as_rank(rank: int, world_size: int, directory: str, network: str, steps: int) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, dist.new_group(), dist.new_group())
    torch.save(losses(network, steps, ranks), f"{directory}/losses{rank}")
    dist.destroy_process_group()


def of_ranks(world_size: int, network: str, steps: int, directory: Path) -> list[list[float]]:
    code = "import sys; sys.path[:] = {!r}; from test_ranks import as_rank; as_rank({}, {}, {!r}, {!r}, {})"
    path = [str(Path(__file__).parent), *sys.path]
    ended = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(path, rank, world_size, str(directory), network, steps)],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(world_size)
    ]
    assert [each.wait(timeout=200) for each in ended] == [0] * world_size
    return [torch.load(directory / f"losses{rank}") for rank in range(world_size)]


@pytest.mark.parametrize(
    ("network", "steps"),
    [("lenet", 50), pytest.param("resnet", 50, marks=pytest.mark.exhaustive)],
)
def test_two_ranks_train_as_one_process_does(network: str, steps: int, tmp_path: Path) -> None:
    expected = losses(network, steps, Ranks())
    for found in of_ranks(2, network, steps, tmp_path):
        assert len(found) == 2 * steps // 5
        for own, right in zip(found, expected, strict=True):
            assert abs(own - right) < 1e-4 * right


@pytest.mark.parametrize(("images", "batch"), [(100, 18), (97, 18), (7, 6), (1, 6), (2, 6)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shares_of_ranks_are_all_images(images: int, batch: int, world_size: int) -> None:
    whole = data(images, 2)
    seen = []
    for rank in range(world_size):
        share = ShareOfBatches(whole, Ranks(rank, world_size))
        own, weight = [], 0.0
        for index in torch.arange(images).split(batch):
            _, labels = share.batch(index)
            objective = share.objective(torch.zeros(len(labels), 10), labels)
            weight = float(objective) / float(torch.tensor(10.0).log())
            own += [weight * len(index) / world_size]
        seen.append(round(sum(own)))
        assert seen[-1] == trained_images(images, batch, Ranks(rank, world_size))
    assert sum(seen) == images


# --- a run ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = misbehaving.install(tmp_path_factory.mktemp("ranks") / "site")
    with misbehaving.on_path(site):
        yield site


def rows_of(site: Path, *backends: str, timeout: float = 120.0, **changes: Any) -> list[Row]:
    suite = replace(misbehaving.suite(*backends, timeout=timeout, threads=2), world_sizes=(2,), **changes)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    result = run(suite, out=site.with_name(f"run-{time.monotonic_ns()}"))
    deadline = time.monotonic() + 5
    while left := [each for each in psutil.Process().children(recursive=True) if each.pid not in before]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    return [row for row in result.rows if row.kind != "verify"]


def test_a_run_of_two_ranks_has_the_times_of_the_slowest_and_no_false_alarm(site: Path) -> None:
    timed, trained = rows_of(site, "right")
    assert (timed.status, trained.status) == ("ok", "ok"), (timed.error, trained.error)
    assert {(row.world_size, row.threads) for row in (timed, trained)} == {(2, 1)}
    assert timed.allreduce_ms is not None
    assert timed.setup_seconds is not None
    assert timed.step_ms_median is not None
    assert timed.images_per_second == pytest.approx(16 / timed.step_ms_median * 1000)
    assert trained.epochs == 2
    assert trained.steps == 12
    assert trained.val_accuracy is not None
    assert timed.combination.label == "tiny/right/cpu/float32/b16w2/contiguous/eager/s0"


def test_a_rank_that_dies_costs_one_row_with_its_error(site: Path) -> None:
    timed = rows_of(site, "segfaults-in-rank", kinds=("time",))
    assert [row.status for row in timed] == ["crashed"]
    assert timed[0].error == "rank 1: its process was killed by signal 11 (SIGSEGV) without a result"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("backend", "status", "error"),
    [
        ("quits-in-rank", "crashed", "rank 1: its process ended without a result"),
        ("raises-in-rank", "error", "rank 1: RuntimeError: it fell over"),
        ("grows-in-rank", "oom", "rank 1: "),
        ("nan-in-rank", "incorrect", "rank 1: "),
        ("sleeps-in-rank", "timeout", "rank 1: no end after 40 s, while the others waited for it"),
    ],
)
def test_a_bad_rank_is_named(site: Path, backend: str, status: str, error: str) -> None:
    began = time.monotonic()
    timed = rows_of(site, backend, timeout=40.0, kinds=("time",))
    assert time.monotonic() < began + 100
    assert [row.status for row in timed] == [status], timed[0].error
    assert (timed[0].error or "").startswith(error), timed[0].error


# --- what the ranks' results come to ---


def test_each_step_is_that_of_the_slowest_rank() -> None:
    first = Samples((1.0, 5.0), {"forward_ms": (0.5, 3.0), "backward_ms": (0.5, 2.0)})
    second = Samples((2.0, 4.0), {"forward_ms": (0.25, 1.0), "backward_ms": (1.75, 3.0)})
    assert slowest([first, second]) == Samples(
        (2.0, 5.0), {"forward_ms": (0.25, 3.0), "backward_ms": (1.75, 2.0)}
    )


def test_a_torch_without_gloo_is_unavailable_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    assert obstacle_to_ranks("cpu") is None
    monkeypatch.setattr(dist, "is_backend_available", lambda name: name != "gloo")
    missing = "this torch is built without gloo, by which processes train together"
    assert obstacle_to_ranks("cpu") == missing
    monkeypatch.setattr(dist, "is_available", lambda: False)
    assert obstacle_to_ranks("cuda:0") == "this torch is built without torch.distributed"


@pytest.mark.parametrize(
    ("waited", "died", "error"),
    [
        (
            {0: Waited(7, "gloo")},
            {1: -11},
            "rank 1: its process was killed by signal 11 (SIGSEGV) without a result",
        ),
        ({0: Waited(7, "gloo")}, {}, "rank 1: its process ended without a result"),
        ({0: Waited(7)}, {}, "rank 1: no end after 9 s, while the others waited for it; all were killed"),
        (
            {0: Waited(7), 1: Waited(6)},
            {},
            "rank 1: no end after 9 s, while the others waited for it; all were killed",
        ),
        ({0: Waited(7), 1: Waited(7)}, {0: 1}, "no end after 9 s; its processes were killed"),
        ({0: Waited(7, "gloo"), 1: Waited(7, "gloo")}, {0: 1}, "the ranks lost each other: gloo"),
    ],
)
def test_who_is_behind_is_named(waited: dict[int, Waited], died: dict[int, int], error: str) -> None:
    failed = _failure(waited, died, [0, 1], 9.0)
    assert isinstance(failed, Failed)
    assert failed.error == error
