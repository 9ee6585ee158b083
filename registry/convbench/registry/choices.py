"""What a backend that chooses among others has chosen, for rows to tell.

The op implementations of such a backend have a method `choices`: the calls that were made, as text, each with who
computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from convbench.registry.records import Backend


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
