"""Pairs the combinations that both sides of a comparison measured alike, and says why others are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import NamedTuple

from convbench.registry.errors import listed
from convbench.results.analysis.significance import machines_of
from convbench.results.comparison.sides import LATER, Measured, Side
from convbench.results.schema import COMBINATION, CONDITIONS, Combination
from convbench.results.wording import count

OF_A_MACHINE = ("machine_id", "device_name")  # conditions
UNKNOWN = frozenset({""})
PARTS = "; "  # between the notes on a pair
SHARED = 5  # conditions that a combination's name ends with, before its seed
SEED = re.compile(r"s\d+")


def name(combination: Combination) -> str:
    """A combination's label, or the name of a pytest-benchmark benchmark, which has no conditions."""
    return combination.label if combination.backend else combination.architecture


class Match(NamedTuple):
    """One combination, measured by both sides; `note` says what differs or failed.

    `kinds` has what each kind of machine measured of it, where there are several. `machine_kind` is the one that
    this match is of, and empty where it is of all.
    """

    file: str
    combination: Combination
    base: Measured
    new: Measured
    note: str
    kinds: Mapping[str, tuple[Measured, Measured]] = MappingProxyType({})
    machine_kind: str = ""


@dataclass(frozen=True)
class Left:
    """A combination that was left out of the comparison, and why.

    `lost` marks a combination that the base measured, and that the new side planned and could not measure.
    """

    combination: Combination
    file: str
    reason: str
    lost: bool = False


def match(base: Side, new: Side, *, force: bool) -> tuple[list[Match], list[Left]]:
    """Pair the combinations of two sides; those of unlike conditions are left out unless `force`."""
    matches, left = [], []
    for combination, old in base.combinations.items():
        fresh = new.combinations.get(combination)
        if fresh is None:
            left.append(Left(combination, new.name, f"only in {base.name}"))
            continue
        if fresh.failure is not None and losses(old, fresh):
            left.append(Left(combination, new.name, failed(new.name, fresh), lost=True))
        elif not comparable(old, fresh):
            missing = [failed(side.name, each) for side, each in ((base, old), (new, fresh))]
            if old.failure and old.failure == fresh.failure:
                missing = [f"on both sides: {old.failure}"]
            left.append(Left(combination, new.name, joined(*missing) or "not measured on both sides"))
        if not comparable(old, fresh):
            continue
        unlike = joined(*differences(old, fresh))
        if unlike and not force:
            left.append(Left(combination, new.name, f"unlike {unlike}"))
        else:
            note = joined("unlike " * bool(unlike) + unlike, failed(base.name, old), failed(new.name, fresh))
            kinds = {
                kind: (of_base[combination], new.kinds[kind][combination])
                for kind, of_base in base.kinds.items()
                if combination in of_base and combination in new.kinds.get(kind, ())
            }
            matches.append(Match(new.name, combination, old, fresh, note, kinds))
    only_new = (each for each in new.combinations if each not in base.combinations)
    left += [Left(combination, new.name, f"only in {new.name}") for combination in only_new]
    return matches, left


def losses(base: Measured, new: Measured) -> bool:
    """Whether the new side lacks something that the base has."""
    return bool((base.step_ms and not new.step_ms) or (base.accuracies and not new.accuracies))


def comparable(base: Measured, new: Measured) -> bool:
    """Whether both sides measured the same thing."""
    return bool((base.step_ms and new.step_ms) or (base.accuracies and new.accuracies))


def failed(name: str, measured: Measured) -> str:
    """A note on what failed on a side; empty where nothing did."""
    return f"in {name}: {measured.failure}" if measured.failure else ""


def joined(*notes: str) -> str:
    """The notes that are not empty, as one."""
    return PARTS.join(note for note in notes if note)


def differences(base: Measured, new: Measured) -> Iterator[str]:
    """The conditions that differ between the sides, or within one."""
    in_blocks = machines_of(base.times, new.times) > 1 and base.times.keys() == new.times.keys()
    for condition in CONDITIONS:
        old, fresh = base.conditions.get(condition, UNKNOWN), new.conditions.get(condition, UNKNOWN)
        if condition in LATER and UNKNOWN in (old, fresh):
            continue  # a file of an earlier version does not say
        if in_blocks and condition in OF_A_MACHINE and old == fresh:
            continue  # each pair of processes was on one
        if old != fresh or len(old) > 1:
            yield f"{condition} ({words(old)} and {words(fresh)})"


def flags_of_both(base: Measured, new: Measured) -> str:
    """How many processes of each side have each flag, and whether the shares are alike."""
    counts = [len(side.step_ms) for side in (base, new)]
    struck = {flag: [side.flags.get(flag, 0) for side in (base, new)] for flag in {**base.flags, **new.flags}}
    listing = ", ".join(
        f"{flag} in {old} of {counts[0]} processes of the base and {fresh} of {counts[1]} of the new"
        for flag, (old, fresh) in struck.items()
    )
    unlike = any(old * counts[1] != fresh * counts[0] for old, fresh in struck.values())
    return f"flagged {'unlike' if unlike else 'alike'}: {listing}" if struck else ""


def words(values: frozenset[str]) -> str:
    """The values of a condition as text."""
    return " or ".join(value or "unknown" for value in sorted(values))


def reasons(left: Sequence[Left]) -> str:
    """Why nothing is left to compare, the commonest reasons first."""
    if not left:
        return "there are no rows"
    counted = Counter(each.reason for each in left).most_common(3)
    text = "; ".join(f"{times} {'is' if times == 1 else 'are'} {reason}" for reason, times in counted)
    unlike = any(each.reason.startswith("unlike") for each in left)
    hint = " (--force compares unlike conditions)" if unlike else nothing_shared(left)
    return f"of {count(len(left), 'combination')} {text}{hint}"


def nothing_shared(left: Sequence[Left]) -> str:
    """In what two files with no combination in common differ throughout, such as the architecture."""
    sides: dict[str, list[Combination]] = {}
    for each in left:
        sides.setdefault(each.reason, []).append(each.combination)
    if len(sides) != 2 or not all(reason.startswith("only in ") for reason in sides):
        return ""
    differences = []
    for part in COMBINATION:
        first, second = ({str(getattr(each, part)) for each in those} for those in sides.values())
        if first.isdisjoint(second):
            of_first, of_second = (listed(sorted(each), 1, last=", ") for each in (first, second))
            differences.append(f"{part} ({of_first}; {of_second})")
    return f"; they differ in {', '.join(differences)}" if differences else ""


def without_shared(names: Sequence[str]) -> tuple[Sequence[str], str]:
    """The names of combinations without the conditions that all of them share, and those shared conditions."""
    parts = [name.split("/") for name in names]
    if len(names) < 2 or len({len(each) for each in parts}) > 1:
        return names, ""
    first = len(parts[0]) - (SHARED + bool(SEED.fullmatch(parts[0][-1])))  # before it: what was measured
    alike = [
        at >= max(first, 1) and len(set(column)) == 1 for at, column in enumerate(zip(*parts, strict=True))
    ]
    kept = ["/".join(part for part, same in zip(own, alike, strict=True) if not same) for own in parts]
    return kept, ", ".join(part for part, same in zip(parts[0], alike, strict=True) if same)


def time_apart(base: Side, new: Side) -> str:
    """How far apart in time two sides were measured; empty where they were interleaved, or the time is unknown."""
    if base.period is None or new.period is None:
        return ""
    (_, earlier_end), (later_start, _) = sorted([base.period, new.period])
    sides = f"{new.name} and {base.name} are not interleaved"
    if later_start > earlier_end:
        return f"{sides}: measured {duration(later_start - earlier_end)} apart"
    return "" if base.runs & new.runs else f"{sides}: measured at the same time by separate runs"


def duration(gap: timedelta) -> str:
    """A time in minutes, a long one in hours or days."""
    minutes = gap.total_seconds() / 60
    for unit, size in (("day", 24 * 60), ("hour", 60)):
        if minutes >= 2 * size:
            return count(round(minutes / size), unit)
    return count(round(minutes), "minute") if minutes >= 1 else "less than a minute"
