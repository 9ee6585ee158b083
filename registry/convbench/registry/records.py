"""The records a plugin hands over: frozen, and light until they are used."""

from __future__ import annotations

import os
import reprlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from convbench.registry.errors import ConvbenchError, PluginError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Implementation = Callable[..., Any]
# One thread at a time loads ops. Where a plugin defines an op of torch a second time, torch destroys the first
# one, and a thread that is calling it meanwhile ends the process.
_loading = threading.RLock()
if hasattr(
    os, "register_at_fork"
):  # the thread that loads is not in a child process, which would wait forever
    os.register_at_fork(after_in_child=lambda: globals().update(_loading=threading.RLock()))


def always_available() -> str | None:
    """The `unavailable` of a backend that runs wherever torch does."""
    return None


@dataclass(frozen=True)
class Accuracy:
    """How the rounding errors of an op are bounded; it is declared by the backend, and shown by the report.

    Direct sums are `elementwise`: each output has errors in proportion to its own terms. Algorithms that
    transform whole images or tiles are `normwise`: an error is in proportion to the norms of the images and
    kernels, whichever output it lands in. `growth` says how many times larger errors are than those of direct
    sums; `convbench.registry.conformance.tolerances` has the bounds.

    Raises:
        PluginError: a growth below 1, or one so large that an answer of zeros would pass.
    """

    model: Literal["elementwise", "normwise"] = "elementwise"
    growth: float = 1.0

    def __post_init__(self) -> None:
        if self.model not in ("elementwise", "normwise"):
            raise PluginError(f"accuracy must be 'elementwise' or 'normwise', not {self.model!r}")
        if not 1.0 <= self.growth <= 1000.0:
            raise PluginError(f"the growth of rounding errors must be from 1 to 1000, not {self.growth}")

    def __str__(self) -> str:
        return f"{self.model}, growth {self.growth:.3g}"


@dataclass(frozen=True)
class Backend:
    """A named set of op implementations.

    `load` imports what is needed and returns `{op name: callable}`; the callables take and return what
    `torch.nn.functional` does (see `convbench.registry.ops.contract`). An op raises `Unsupported` for a call that
    it does not implement. Everything else is a claim, and verified.

    Attributes:
        devices: torch device types.
        dtypes: by name, as torch has them, and `tf32` (see `convbench.registry.ops.dtypes`).
        dtype_devices: the device types of a dtype that it does not take on all of its devices.
        unavailable: why it cannot run on this machine, in one line; None where it can.
        deterministic: the same arguments have the same answer, to the last bit.
        accuracy: of the ops whose rounding errors are not those of direct sums.
        second_order: the ops whose gradients can be differentiated in turn.
        compiles: `torch.compile` takes a model routed to it whole, without a break in the graph.
    """

    name: str
    summary: str
    load: Callable[[], Mapping[str, Implementation]]
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    unavailable: Callable[[], str | None] = always_available
    deterministic: bool = True
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict, hash=False)
    second_order: tuple[str, ...] = ()
    compiles: bool = True
    dtype_devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def dtypes_on(self, device: str) -> tuple[str, ...]:
        """The dtypes that it claims on a torch device, such as `cuda:1`."""
        kind = device.partition(":")[0]
        return tuple(dtype for dtype in self.dtypes if kind in self.dtype_devices.get(dtype, (kind,)))

    @property  # a `cached_property` has a lock of its own before Python 3.12, which a fork would copy as well
    def ops(self) -> Mapping[str, Implementation]:
        """The implementations by op name, loaded at first use.

        Raises:
            PluginError: `load` raised, or returned something other than a mapping of names to callables.
        """
        if "ops" not in self.__dict__:
            with _loading:
                if "ops" not in self.__dict__:  # another thread may have loaded them meanwhile
                    self.__dict__["ops"] = self._loaded()
        loaded: Mapping[str, Implementation] = self.__dict__["ops"]
        return loaded

    def _loaded(self) -> Mapping[str, Implementation]:
        try:
            ops = self.load()
        except ConvbenchError:
            raise
        except Exception as error:
            from convbench.registry.discovery.plugin_errors import error_location
            from convbench.registry.discovery.plugins import describe

            place = error_location(error, getattr(self.load, "__module__", None) or "")
            where = f" ({place})" if place else ""
            raise PluginError(f"backend {self.name!r} cannot be loaded: {describe(error)}{where}") from error
        wanted = f"backend {self.name!r}: load() must return a mapping of op names to callables"
        if not isinstance(ops, Mapping):
            raise PluginError(f"{wanted}, such as {{'conv2d': conv2d}}, not {reprlib.repr(ops)}")
        for name, op in ops.items():
            if not isinstance(name, str) or not callable(op):
                raise PluginError(f"{wanted}; it has {reprlib.repr(name)}: {reprlib.repr(op)}")
        return dict(ops)


@dataclass(frozen=True)
class Recipe:
    """How an architecture is trained: plain SGD on the cross-entropy, as in the book.

    `resize` is (height, width) in pixels, None for the dataset's own size; `init` names the initialiser of
    convolution and linear weights (`xavier_uniform`, or `default` for torch's own).
    """

    lr: float = 0.1
    epochs: int = 10
    batch_size: int = 128
    resize: tuple[int, int] | None = None
    init: str = "xavier_uniform"


@dataclass(frozen=True)
class Problem:
    """What a network works on where that is not the classification of a dataset's images.

    `data(batch_size, generator)` returns inputs and targets, drawn on the CPU. `loss(outputs, targets)` is
    what training makes small, its whole data one batch and a step an epoch. Without a loss nothing is trained:
    a step is a forward pass and a backward pass from a random gradient of the output, to the inputs as well.
    """

    name: str
    data: Callable[[int, Generator], tuple[Tensor, Tensor | None]]
    loss: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Architecture:
    """A network of plain torch layers: `build(num_classes=10, in_channels=1, **options)` returns the module.

    It is trained on a suite's dataset, or on its own `problem` where it has one.
    """

    name: str
    summary: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int] = (1, 28, 28)
    recipe: Recipe = field(default_factory=Recipe)
    source: str = ""
    problem: Problem | None = None


class Images(NamedTuple):
    """Train and test images, uint8 (N, C, H, W), with labels, int64 (N,).

    `name` says what was really found, such as `fashion-mnist-sample`; rows carry it, so that results on
    unlike data are never compared.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """A labelled set of images: `load(root)` finds it under `root`, or where it usually is when `root` is None."""

    name: str
    summary: str
    load: Callable[[Path | None], Images]
    num_classes: int = 10
    source: str = ""


def chooses(backend: Backend) -> bool:
    """Whether the backend chooses who computes a call, which it finds out at the first one."""
    return any(True for _ in _choices(backend))


def choices_of(backend: Backend) -> str | None:
    """Every call since the backend was loaded with who computes it, such as `conv2d ...: native; ...`."""
    told = [f"{call}: {who}" for choices in _choices(backend) for call, who in choices().items()]
    return "; ".join(told) or None


def _choices(backend: Backend) -> Iterator[Callable[[], Mapping[str, str]]]:
    for op in backend.ops.values():
        choices = getattr(op, "choices", None)
        if callable(choices):
            yield choices
