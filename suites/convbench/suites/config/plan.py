"""The combinations of a suite on this machine, and why some of them cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from convbench.registry import NothingRan, Problem, Recipe, Registry, UnknownName, UsageError
from convbench.results.schema import Combination, Status
from convbench.suites.config.suite import Suite
from convbench.suites.machine.resources import usable_cores


@dataclass(frozen=True)
class Planned:
    """A combination with its recipe, its architecture's own problem, and the reason why it cannot run here."""

    combination: Combination
    recipe: Recipe
    obstacle: tuple[Status, str] | None = None
    problem: Problem | None = None

    @property
    def trains(self) -> bool:
        """Whether there is anything to learn."""
        return self.problem is None or self.problem.loss is not None


def plan(
    suite: Suite, registry: Registry, devices: Sequence[str], unavailable: Mapping[str, str]
) -> list[Planned]:
    """Every combination of the suite on these torch devices, in the order of its lists.

    Args:
        unavailable: why backends cannot run here, by name.

    Raises:
        UnknownName: a pattern that matches nothing; with the nearest match.
    """
    combinations = []
    for architecture_name, backend_name in product(
        registry.architectures.matching(suite.architectures), registry.backends.matching(suite.backends)
    ):
        architecture = registry.architecture(architecture_name)
        recipe = resolve_recipe(architecture.recipe, suite)
        own = suite.of_backend(backend_name)
        for device, dtype, memory_format, mode, seed, world_size, batch_size in product(
            _matching_devices(own.devices, devices),
            own.dtypes,
            own.memory_formats,
            own.modes,
            own.seeds,
            own.world_sizes,
            own.batch_sizes or (recipe.batch_size,),
        ):
            combination = Combination(
                architecture=architecture_name,
                backend=backend_name,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                memory_format=memory_format,
                mode=mode,
                seed=seed,
                world_size=world_size,
            )
            obstacle = _obstacle(combination, registry, unavailable) or _obstacle_to_ranks(
                combination, architecture.problem, devices, suite.timing.threads or usable_cores()
            )
            combinations.append(Planned(combination, recipe, obstacle, architecture.problem))
    return combinations


def resolve_recipe(recipe: Recipe, suite: Suite) -> Recipe:
    """The architecture's recipe with what the suite overrides."""
    overrides: dict[str, Any] = {
        name: value for name, value in vars(suite.recipe).items() if value is not None
    }
    return replace(recipe, **overrides)


def check_batch_sizes(planned: Sequence[Planned], train_images: int, dataset: str) -> None:
    """Refuse a batch larger than the training set; raises UsageError."""
    for entry in planned:
        if entry.problem is None and entry.combination.batch_size > train_images:
            raise UsageError(
                f"batch size {entry.combination.batch_size} is larger than the training set of {dataset}, "
                f"{train_images} images"
            )


def check_translation(pixels: int | None, size: tuple[int, int], dataset: str) -> None:
    """Refuse a translation that could move a whole image, of size (H, W), out of the frame; raises UsageError."""
    if pixels is not None and pixels >= min(size):
        raise UsageError(
            f"test_translation_px is {pixels}; it must be less than the height and width of the images of "
            f"{dataset}, {size[0]}x{size[1]}"
        )


def unlike_images(
    planned: Sequence[Planned], registry: Registry, image: tuple[int, int, int]
) -> dict[str, tuple[int, int, int]]:
    """Networks that would get images of another shape than they were made for; that shape (C, H, W), by name.

    `image` is the shape of the dataset's images, before the recipe's resize.
    """
    found = {}
    for entry in planned:
        name = entry.combination.architecture
        given = (image[0], *(entry.recipe.resize or image[1:]))
        if (
            entry.obstacle is None
            and entry.problem is None
            and given != registry.architecture(name).input_shape
        ):
            found[name] = given
    return found


def with_misfits(
    planned: Sequence[Planned],
    registry: Registry,
    misfits: Mapping[str, str],
    dataset: str,
    image: tuple[int, int, int],
) -> list[Planned]:
    """The combinations; those of networks that cannot take the dataset's images get that as their obstacle."""
    fitted = []
    for entry in planned:
        name = entry.combination.architecture
        if name in misfits and entry.obstacle is None:
            entry = replace(
                entry, obstacle=("unsupported", _misfit(entry, registry, misfits[name], dataset, image))
            )
        fitted.append(entry)
    return fitted


def _misfit(entry: Planned, registry: Registry, error: str, dataset: str, image: tuple[int, int, int]) -> str:
    architecture = registry.architecture(entry.combination.architecture)
    resize = entry.recipe.resize
    resized = f", resized to {resize[0]}x{resize[1]}" if resize else ""
    height, width = architecture.input_shape[-2:]
    hint = (
        f"; --set recipe.resize=[{height},{width}] gives it images of its size"
        if (height, width) != (resize or image[1:])
        else ""
    )
    return (
        f"architecture {architecture.name!r} is made for images of {by(architecture.input_shape)}, and cannot "
        f"take those of {dataset}, {by(image)}{resized} ({error}){hint}"
    )


def by(shape: Sequence[int]) -> str:
    """A shape as `1x28x28`."""
    return "x".join(map(str, shape))


def check_possible(planned: Sequence[Planned]) -> None:
    """Refuse a run if no combination can run here; raises NothingRan, with each reason once."""
    if any(entry.obstacle is None for entry in planned):
        return
    words = [f"{', '.join(names)}: {reason}" for reason, names in obstacles(planned).items()]
    raise NothingRan(f"nothing can run here: {'; '.join(words)}")


def obstacles(planned: Iterable[Planned]) -> dict[str, list[str]]:
    """Why combinations cannot run here: each reason once, with its backends."""
    found: dict[str, list[str]] = {}
    for entry in planned:
        if entry.obstacle is not None:
            names = found.setdefault(entry.obstacle[1], [])
            if entry.combination.backend not in names:
                names.append(entry.combination.backend)
    return found


def _matching_devices(patterns: Sequence[str], devices: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for pattern in patterns:
        matches = [device for device in devices if fnmatchcase(device, pattern)]
        if not matches and f"{pattern}:0" in devices:  # `cuda` is torch's name for the first one
            matches = [f"{pattern}:0"]
        if not matches:
            raise UnknownName("device", pattern, devices)
        chosen += [device for device in matches if device not in chosen]
    return chosen


def _obstacle(
    combination: Combination, registry: Registry, unavailable: Mapping[str, str]
) -> tuple[Status, str] | None:
    backend = registry.backend(combination.backend)
    if combination.backend in unavailable:
        return "unavailable", unavailable[combination.backend]
    device_type = combination.device.partition(":")[0]
    for kind, value, claimed in (
        ("device", device_type, backend.devices),
        ("dtype", combination.dtype, backend.dtypes),
    ):
        if value not in claimed:
            return "unsupported", f"backend {backend.name!r} runs on {kind} {', '.join(claimed)}, not {value}"
    if combination.dtype not in backend.dtypes_on(device_type):
        places = ", ".join(backend.dtype_devices[combination.dtype])
        return "unsupported", (
            f"backend {backend.name!r} supports dtype {combination.dtype} on {places}, not on {device_type}"
        )
    if combination.mode == "graph" and device_type != "cuda":
        return "unsupported", f"mode 'graph' captures CUDA graphs; {combination.device} has none"
    return None


def _obstacle_to_ranks(
    combination: Combination, problem: Problem | None, devices: Sequence[str], threads: int
) -> tuple[Status, str] | None:
    """Why so many processes cannot train a combination together on these devices."""
    size, (kind, _, first) = combination.world_size, combination.device.partition(":")
    if size == 1:
        return None
    why = ""
    if problem is not None:
        why = f"{combination.architecture} has no images that could be shared out"
    elif combination.batch_size % size:
        why = f"a batch of {combination.batch_size} images cannot be shared out equally"
    elif combination.mode == "graph":
        why = "mode 'graph' captures the steps of one process"
    elif kind not in ("cpu", "cuda"):
        why = f"processes train together on cpu and cuda, not on {kind}"
    elif kind == "cpu" and size > threads:
        why = f"each process needs a thread, and there are {threads}"
    elif kind == "cuda" and any(f"cuda:{int(first) + rank}" not in devices for rank in range(size)):
        there = sum(device.startswith("cuda:") for device in devices)
        why = f"each process needs a GPU, and from {combination.device} on there are {there - int(first)}"
    return ("unsupported", f"world size {size}: {why}") if why else None
