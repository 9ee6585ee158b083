"""Coverage: which share of a network's ops the backend computed itself, and which torch computed.

A backend may refuse calls of an op that it implements, or implement only some ops. torch then computes the rest,
so the measured speed is partly torch's. A backend that left calls of its own ops to torch is marked in every
table, and one that left convolutions to torch is not ranked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from convbench.results.schema import Row

Rank = Literal["served", "all"]  # which backends are ranked: those that computed all convolutions, or all

COMPARED_OPS = ("conv2d", "conv2d_activation")  # where a network has none of these: all its ops
CALLS = re.compile(r"(\w+) (\d+)/(\d+)")
SAME = 1e-6  # shares of FLOPs that differ by less are alike: they are counted, and written with nine digits
FLOPS = re.compile(r"(\w+) ([0-9.e+-]+)")


@dataclass(frozen=True)
class Share:
    """How many of one op's calls a backend computed, and which share of their FLOPs if that is known."""

    op: str
    served: int
    calls: int
    flops: float | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing was left to torch."""
        return self.served == self.calls

    @property
    def fraction(self) -> float:
        """The share of the FLOPs, or of the calls in its place."""
        return self.served / self.calls if self.flops is None else self.flops


@dataclass(frozen=True)
class Attribution:
    """What a backend computed, op by op, and the ops it implements; `flops` is the share over all ops."""

    shares: tuple[Share, ...] = ()
    supported: frozenset[str] = frozenset()
    flops: float | None = None
    derived: tuple[str, ...] = ()

    @property
    def partial(self) -> tuple[Share, ...]:
        """The ops that it implements and left to torch all the same, in part or wholly."""
        return tuple(share for share in self.shares if not share.whole and share.op in self.supported)

    @property
    def missing(self) -> tuple[Share, ...]:
        """What it left to torch of the ops that backends are compared on."""
        compared = [share for share in self.shares if share.op in COMPARED_OPS] or self.shares
        return tuple(share for share in compared if not share.whole)

    @property
    def whole(self) -> bool:
        """Whether it computed all the ops that backends are compared on, as far as is known."""
        if not self.shares:
            return self.flops is None or self.flops == 1.0
        return not self.missing


def attribution(rows: Iterable[Row]) -> Attribution:
    """The coverage of one backend from its rows; where they differ, the smallest share counts."""
    least: dict[str, Share] = {}
    supported: set[str] = set()
    derived: dict[str, None] = {}
    fractions = []
    for row in rows:
        own = shares(row)
        # Rows of earlier versions do not list the ops that a backend implements: take those it computed.
        supported.update(
            names(row.supported_ops) if row.supported_ops else [share.op for share in own if share.served]
        )
        derived |= dict.fromkeys(names(row.derived_backward))
        if row.served_flops_fraction is not None:
            fractions.append(row.served_flops_fraction)
        for share in own:
            least[share.op] = min(least.get(share.op, share), share, key=lambda each: each.fraction)
    return Attribution(
        tuple(least.values()), frozenset(supported), min(fractions, default=None), tuple(derived)
    )


def shares(row: Row) -> Sequence[Share]:
    """The share of each op that was called, from one row."""
    flops = {op: float(share) for op, share in FLOPS.findall(row.served_flops or "")}
    return [
        Share(op, int(served), int(calls), flops.get(op))
        for op, served, calls in CALLS.findall(row.served or "")
        if int(calls)
    ]


def names(text: str | None) -> list[str]:
    """The ops that a cell lists."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def remarks(found: Attribution, ranked: bool) -> list[str]:
    """Notes on a backend that left some of the work to torch, or found backward was derived."""
    left = [left_over(share) for share in found.partial]
    if not found.whole:
        left = list(dict.fromkeys([*left_to_torch(found), *left]))
    said = [f"{'' if ranked else 'not ranked: '}torch computed {' and '.join(left)}"] if left else []
    if found.derived:
        said.append(
            f"the backward of {' and '.join(found.derived)} is derived from the forward, as convolutions of "
            "other sizes: backward and step times are those of the derivation"
        )
    return said


def left_to_torch(found: Attribution) -> list[str]:
    """What a backend left to torch of the ops that it is compared on."""
    if not found.shares and found.flops is not None:
        return [f"{100 * (1 - found.flops):.3g} % of the FLOPs"]
    return [left_over(share) for share in found.missing]


def left_over(share: Share) -> str:
    """What torch computed of an op, in words."""
    calls = f"{share.calls - share.served} of {share.calls} calls"
    if share.flops is None or not 0 < share.flops < 1:
        return f"{calls} of {share.op}"
    return f"{100 * (1 - share.flops):.3g} % of the FLOPs of {share.op} ({calls})"


def served_change(base: float | None, new: float | None) -> float:
    """The change of the share of FLOPs that the backend computed; zero where a side does not tell."""
    if base is None or new is None or abs(new - base) <= SAME:
        return 0.0
    return new - base


def unlike_shares(base: float | None, new: float | None) -> str:
    """A note on a backend that computed unlike shares of the FLOPs on both sides; empty where they are alike."""
    if base is None or new is None or not served_change(base, new):
        return ""
    return f"unlike share of the FLOPs served by the backend ({100 * base:.6g} % and {100 * new:.6g} %)"
