"""Minimizes a failing case: finds the smallest case that fails in the same way, and writes it as Python.

The search is greedy. Of the candidates that are simpler in one respect, the largest simplification first, the
first that still fails replaces the case, until none fails or the limit of tries or seconds is reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from convbench.registry.conformance.cases import Case
from convbench.registry.conformance.report import Outcome
from convbench.registry.ops.contract import OPS, Op
from convbench.registry.ops.sequential import PARAMETERS

TRIES = 300
SECONDS = 10.0


def shrink(
    outcome: Outcome,
    case: Case,
    check: Callable[[Case], Outcome],
    *,
    tries: int = TRIES,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """The outcome of the smallest case found that ends as `outcome`, that of `case`, does.

    Args:
        check: runs a case.
        tries: of cases, at most.
        seconds: after which no further case is tried; one that runs is not ended.
    """
    deadline, first = clock() + seconds, str(case)
    op = OPS[case.op]
    smallest, tried = outcome, {case}
    progress = True
    while progress:
        progress = False
        for candidate in simpler(case):
            if len(tried) > tries or clock() > deadline:
                return smallest
            if candidate in tried or not _is_a_call(op, candidate):
                continue
            tried.add(candidate)
            found = check(candidate)
            if found.fails_as(outcome):
                case, smallest, progress = candidate, replace(found, shrunk_from=first), True
                break
    return smallest


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler than this one in one thing each; not all of them are calls that torch takes."""
    usual = Case(case.op, case.shapes, case.options)
    for field in ("special", "order", "needs", "layout", "weight_layout", "grad_output_layout"):
        change: dict[str, Any] = {field: getattr(usual, field)}
        if replace(case, **change) != case:
            yield replace(case, **change)
    if OPS[case.op].chain:
        yield from _shorter(case)
        return
    for index, (name, value) in enumerate(case.options):
        before, after = case.options[:index], case.options[index + 1 :]
        if name not in ("kernel_size", "groups"):
            yield replace(case, options=before + after)
        for less in _less(value, 0 if name == "padding" else 1):
            if name != "groups":  # a dimension
                yield replace(case, options=(*before, (name, less), *after))
    for smaller in _Dimensions.of(case).smaller():
        yield smaller.case(case)


def _shorter(case: Case) -> Iterator[Case]:
    """Chains without the last layers, of fewer images, or without biases."""
    (name, (images, *rest)), *others = case.shapes
    layers = dict(case.options)["layers"]
    for count in range(1, len(layers)):
        parameters = PARAMETERS[: 2 * sum(each != ("flatten",) for each in layers[:count])]
        kept = tuple(each for each in others if each[0] in parameters)
        needs = case.needs and tuple(each for each in case.needs if each in dict((case.shapes[0], *kept)))
        yield replace(
            case, shapes=(case.shapes[0], *kept), options=(("layers", layers[:count]),), needs=needs
        )
    for fewer in _smaller(images):
        yield replace(case, shapes=((name, (fewer, *rest)), *others))
    without = tuple(each for each in others if not each[0].startswith("bias"))
    if without != tuple(others) and case.needs is None:
        yield replace(case, shapes=(case.shapes[0], *without))


def _less(value: Any, least: int) -> Iterator[Any]:
    """Simpler values of an option."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int):
        yield from _smaller(value, least)
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        down, across = value
        yield from dict.fromkeys((min(value), max(value)))
        for number in _smaller(down, least):
            yield (number, across)
        for number in _smaller(across, least):
            yield (down, number)


def _smaller(number: int, least: int = 1) -> Iterator[int]:
    """Smaller numbers, the smallest first."""
    yield from (
        each for each in dict.fromkeys((least, number // 2, number - 2, number - 1)) if least <= each < number
    )


@dataclass(frozen=True)
class _Dimensions:
    """The numbers that the shapes of a case are made of; filters and kernel are 0 where there is no weight."""

    batch: int
    groups: int
    channels: int  # of a group
    filters: int  # of a group
    height: int
    width: int
    kernel_height: int
    kernel_width: int
    bias: bool

    @classmethod
    def of(cls, case: Case) -> _Dimensions:
        shapes = dict(case.shapes)
        batch, channels, height, width = shapes["input"]
        if "weight" not in shapes:
            return cls(batch, 1, channels, 0, height, width, 0, 0, False)
        groups = max(1, dict(case.options).get("groups", 1))
        filters, channels, high, wide = shapes["weight"]
        biased = "bias" in shapes
        return cls(batch, groups, channels, filters // groups, height, width, high, wide, biased)

    def smaller(self) -> Iterator[_Dimensions]:
        if self.bias:
            yield replace(self, bias=False)
        for name in (
            "groups",
            "batch",
            "channels",
            "filters",
            "kernel_height",
            "kernel_width",
            "height",
            "width",
        ):
            for number in _smaller(getattr(self, name)):
                change: dict[str, Any] = {name: number}
                yield replace(self, **change)
        for number in _smaller(min(self.height, self.width)):  # together, where neither can go alone
            yield replace(self, height=min(self.height, number), width=min(self.width, number))

    def case(self, like: Case) -> Case:
        """A case of these dimensions."""
        shapes: dict[str, tuple[int, ...]] = {
            "input": (self.batch, self.groups * self.channels, self.height, self.width)
        }
        options = dict(like.options)
        needs = like.needs
        if self.filters:
            filters = self.groups * self.filters
            shapes["weight"] = (filters, self.channels, self.kernel_height, self.kernel_width)
            if self.bias:
                shapes["bias"] = (filters,)
            elif needs is not None:
                needs = tuple(name for name in needs if name != "bias")
            if self.groups > 1:
                options["groups"] = self.groups
            else:
                options.pop("groups", None)
        return replace(like, shapes=tuple(shapes.items()), options=tuple(options.items()), needs=needs)


def _is_a_call(op: Op, case: Case) -> bool:
    """Whether torch takes it."""
    try:
        op.reference(**case.arguments(torch.float64, torch.device("cpu"), seed=0))
    except (RuntimeError, ValueError, TypeError):
        return False
    return True


def python_of(backend: str, case: Case, dtype: str, device: str, seed: int = 0, refused: bool = False) -> str:
    """Python that runs one case of a registered backend again, on its own, and prints its outcome."""
    if refused:
        return (
            "from convbench.registry import OPS, discover\n"
            "from convbench.registry.conformance.cases import Case\n"
            "from convbench.registry.conformance.verify import check_refusal\n\n"
            f"case = {literal(case)}\n"
            f"print(check_refusal(discover().backend({backend!r}), OPS[case.op], case, {dtype!r}, {device!r}))"
        )
    return (
        "from convbench.registry import verify\n"
        "from convbench.registry.conformance.cases import Case\n\n"
        f"case = {literal(case)}\n"
        f"report = verify({backend!r}, device={device!r}, dtypes=[{dtype!r}], cases={{case.op: [case]}}, "
        f"seed={seed})\n"
        "print(report.outcomes[0])"
    )


def literal(case: Case) -> str:
    """The case as it is constructed, without what is as usual."""
    usual = Case(case.op, case.shapes)
    parts = [repr(case.op), repr(case.shapes)]
    for field in fields(case)[2:]:
        value = getattr(case, field.name)
        if value != getattr(usual, field.name):
            parts.append(f"{field.name}={value!r}")
    return f"Case({', '.join(parts)})"
