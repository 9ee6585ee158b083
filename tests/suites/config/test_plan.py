"""Which combinations a suite stands for, and what keeps one from running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import misbehaving
from convbench.registry import Recipe, Registry, UnknownName, UsageError, discover
from convbench.suites.config.plan import check_batch_sizes, check_translation, plan, resolve_recipe
from convbench.suites.config.suite import PerBackend, RecipeOverrides, Suite

MACHINE = ("cpu", "cuda:0", "cuda:1")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with misbehaving.on_path(misbehaving.install(tmp_path / "site")):
        yield discover()


def fakes(**keys: object) -> Suite:
    keys = {"architectures": ("tiny",), "backends": ("right",), "devices": ("cpu",)} | keys
    return Suite(name="fakes", **keys)  # type: ignore[arg-type]


def test_every_combination_is_planned_once(registry: Registry) -> None:
    suite = fakes(
        backends=("right", "wrong-*"),
        dtypes=("float32", "float64"),
        batch_sizes=(8, 16),
        memory_formats=("contiguous", "channels_last"),
        modes=("eager", "compile"),
        seeds=(0, 1),
    )
    planned = [entry.combination for entry in plan(suite, registry, ["cpu"], {})]

    assert len(set(planned)) == len(planned) == 3 * 2**5
    assert {combination.backend for combination in planned} == {"right", "wrong-shape", "wrong-dtype"}


def test_without_batch_sizes_the_architecture_has_its_own(registry: Registry) -> None:
    (entry,) = plan(fakes(), registry, ["cpu"], {})
    assert entry.combination.batch_size == registry.architecture("tiny").recipe.batch_size


def test_a_backend_may_have_batches_and_modes_of_its_own(registry: Registry) -> None:
    own = {
        "r*": PerBackend(batch_sizes=(1,), modes=("eager", "compile")),
        "slow": PerBackend(batch_sizes=(2,)),
    }
    suite = fakes(backends=("right", "wrong-shape"), batch_sizes=(8, 16), per_backend=own)
    planned = [entry.combination for entry in plan(suite, registry, ["cpu"], {})]

    assert [(each.backend, each.mode, each.batch_size) for each in planned] == [
        ("right", "eager", 1),
        ("right", "compile", 1),
        ("wrong-shape", "eager", 8),
        ("wrong-shape", "eager", 16),
    ]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (("*",), ["cpu", "cuda:0", "cuda:1"]),
        (("cuda",), ["cuda:0"]),
        (("cuda:*",), ["cuda:0", "cuda:1"]),
        (("cuda:1", "cuda", "*"), ["cuda:1", "cuda:0", "cpu"]),
    ],
)
def test_devices_are_chosen_by_name_or_glob(
    registry: Registry, patterns: tuple[str, ...], chosen: list[str]
) -> None:
    planned = plan(fakes(devices=patterns), registry, MACHINE, {})
    assert [entry.combination.device for entry in planned] == chosen


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"devices": ("cudo:0",)}, "unknown device 'cudo:0'; did you mean 'cuda:0'?"),
        ({"devices": ("mps",)}, "unknown device 'mps'; available: cpu, cuda:0, cuda:1"),
        ({"backends": ("rihgt",)}, "unknown backend 'rihgt'; did you mean 'right'?"),
        ({"architectures": ("tony",)}, "unknown architecture 'tony'; did you mean 'tiny'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    registry: Registry, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(UnknownName) as refusal:
        plan(fakes(**keys), registry, MACHINE, {})
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("keys", "status", "reason"),
    [
        ({"devices": ("cuda:0",)}, "unsupported", "device cpu, not cuda"),
        ({"dtypes": ("float64",)}, "unsupported", "dtype float32, not float64"),
        ({"modes": ("graph",)}, "unsupported", "cpu has none"),
        ({"backends": ("absent",)}, "unavailable", "no such card"),
    ],
)
def test_what_cannot_run_is_planned_with_its_reason(
    registry: Registry, keys: dict[str, object], status: str, reason: str
) -> None:
    (entry,) = plan(fakes(**keys), registry, MACHINE, {"absent": "no such card"})
    assert entry.obstacle is not None
    assert entry.obstacle[0] == status
    assert reason in entry.obstacle[1]


def test_the_suite_overrides_the_recipe_key_by_key() -> None:
    own = Recipe(lr=0.3, epochs=4, batch_size=8, resize=(9, 9), init="default")
    suite = fakes(recipe=RecipeOverrides(epochs=2, resize=(5, 5)))
    assert resolve_recipe(own, suite) == Recipe(lr=0.3, epochs=2, batch_size=8, resize=(5, 5), init="default")
    assert resolve_recipe(own, fakes()) == own


def test_a_batch_larger_than_the_data_is_refused(registry: Registry) -> None:
    planned = plan(fakes(batch_sizes=(90, 91)), registry, ["cpu"], {})
    check_batch_sizes(planned[:1], 90, "tiny")
    with pytest.raises(UsageError, match="batch size 91 is larger than the training set of tiny, 90 images"):
        check_batch_sizes(planned, 90, "tiny")


def test_a_translation_leaves_something_of_the_image() -> None:
    check_translation(None, (28, 28), "tiny")
    check_translation(5, (6, 8), "tiny")
    with pytest.raises(
        UsageError,
        match=r"test_translation_px is 6; it must be less than the height and width .* of tiny, 6x8",
    ):
        check_translation(6, (6, 8), "tiny")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, None),
        (
            {"world_sizes": (1, 3), "batch_sizes": (16,)},
            "world size 3: a batch of 16 images cannot be shared out equally",
        ),
        ({"world_sizes": (8,)}, "world size 8: each process needs a thread, and there are 4"),
        (
            {"modes": ("graph",), "devices": ("cuda:0",)},
            "world size 2: mode 'graph' captures the steps of one process",
        ),
        ({"devices": ("cuda:0",)}, None),
        ({"devices": ("cuda:1",)}, "world size 2: each process needs a GPU, and from cuda:1 on there are 1"),
        ({"devices": ("mps",)}, "backend 'torch' runs on device"),
        (
            {"architectures": ("edge_detector",)},
            "world size 2: edge_detector has no images that could be shared out",
        ),
    ],
)
def test_ranks_need_devices_and_equal_shares(keys: dict[str, Any], words: str | None) -> None:
    values = {"architectures": ("lenet",), "backends": ("torch",), "batch_sizes": (128,), "world_sizes": (2,)}
    suite = fakes(**values | keys).override({"timing.threads": 4})
    planned = plan(suite, discover(installed=()), [*MACHINE, "mps"], {})
    reasons = [entry.obstacle for entry in planned if entry.combination.world_size > 1]
    if words is None:
        assert reasons == [None]
    else:
        assert [(status, words in reason) for status, reason in filter(None, reasons)] == [
            ("unsupported", True)
        ]
    assert [entry.obstacle for entry in planned if entry.combination.world_size == 1] in ([], [None])


def test_one_process_leaves_labels_and_keys_as_they_were(registry: Registry) -> None:
    one, two = (
        entry.combination
        for entry in plan(fakes(batch_sizes=(8,), world_sizes=(1, 2)), registry, ["cpu"], {})
    )
    assert one.label == "tiny/right/cpu/float32/b8/contiguous/eager/s0"
    assert two.label == "tiny/right/cpu/float32/b8w2/contiguous/eager/s0"
    assert "world_size" not in one.identity
    assert two.identity["world_size"] == 2
