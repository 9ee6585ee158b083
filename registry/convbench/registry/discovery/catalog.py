"""Records of one kind by name, with the plugin each came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Generic, TypeVar

from convbench.registry.errors import AmbiguousName, PluginError, UnknownName, UsageError
from convbench.registry.notebook import Displayed, plain_fields

if TYPE_CHECKING:
    import pandas as pd

    from convbench.registry.discovery.plugins import Plugin

R = TypeVar("R")
NAMED = 12  # records in the text of a catalog


class Catalog(Displayed, Mapping[str, R], Generic[R]):
    """A mapping from name to record, sorted by name.

    A name that several plugins offer is listed once for each, as `package:name`; that form finds a record
    in any case.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.explain_missing: Callable[[str], str] = lambda name: ""  # why a name may be unknown
        self._entries: dict[str, dict[str, tuple[R, Plugin]]] = {}  # name -> distribution -> record, plugin

    def check(self, plugin: Plugin, records: Sequence[tuple[str, R]]) -> None:
        """Refuse records that `add` could not take.

        Raises:
            PluginError: one distribution offers two records of the same name.
        """
        names = [name for name, _ in records]
        for name, count in Counter(names).items():
            if count > 1 or plugin.distribution in self._entries.get(name, {}):
                raise PluginError(f"{self.kind} {name!r} is offered twice by {plugin.distribution}")

    def add(self, plugin: Plugin, records: Sequence[tuple[str, R]]) -> None:
        """Take the records of one plugin, all or none; raises as `check` does."""
        self.check(plugin, records)
        for name, record in records:
            self._entries.setdefault(name, {})[plugin.distribution] = (record, plugin)

    def find(self, name: str) -> R:
        """The record of that name, or of `package:name`.

        Raises:
            UnknownName: nothing of that name; the message has the nearest match and what exists.
            AmbiguousName: several plugins offer it; the message names them.
        """
        return self._find(name)[0]

    def plugin(self, name: str) -> Plugin:
        """The plugin that offers the record of that name; raises as `find` does."""
        return self._find(name)[1]

    def distributions(self, *names: str) -> tuple[str, ...]:
        """Those that offer the records of these names, each once; raises as `find` does."""
        return tuple(dict.fromkeys(self.plugin(name).distribution for name in names))

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """The names that match any of the patterns, each as it is listed, in the catalog's order.

        A pattern after a `!` leaves out what matches it, wherever it stands; with no other pattern, of `*`.

        Raises:
            UnknownName: a pattern that matches nothing.
            AmbiguousName: a plain name that several plugins offer.
            UsageError: every name that matches is left out.
        """
        patterns = list(patterns)
        wanted = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"] * bool(patterns)
        left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
        chosen = self._matching(wanted) - self._matching(left_out)
        if patterns and not chosen:
            raise UsageError(f"{', '.join(patterns)} leaves no {self.kind}; available: {', '.join(self)}")
        return sorted(chosen)

    def _matching(self, patterns: Iterable[str]) -> set[str]:
        chosen: set[str] = set()
        for pattern in patterns:
            chosen.update(self.glob(pattern) or [self._listed(pattern)])
        return chosen

    def glob(self, pattern: str) -> list[str]:
        """The names that match a pattern such as `resnet*`, with or without their package; none is no error.

        As with files, `*` does not cross a `/`: `resnet*` is not `torchvision/resnet18`, `torchvision/*` is.
        """
        wild = any(character in pattern for character in "*?[")
        return [
            name
            for name in self
            if _matches(name, pattern) or (wild and _matches(name.rpartition(":")[2], pattern))
        ]

    def _listed(self, name: str) -> str:
        """A name as iteration has it: `package:name` only where two packages offer it; raises as `find` does."""
        self.find(name)
        short = name.rpartition(":")[2]
        return short if len(self._entries[short]) == 1 else name

    def _find(self, name: str, explain: bool = True) -> tuple[R, Plugin]:
        distribution, colon, short = name.rpartition(":")
        offers = self._entries.get(short if colon else name, {})
        if colon and distribution in offers:
            return offers[distribution]
        if colon or not offers:
            raise UnknownName(self.kind, name, self, self.explain_missing(name) if explain else "")
        if len(offers) > 1:
            raise AmbiguousName(self.kind, name, offers)
        return next(iter(offers.values()))

    def __getitem__(self, name: str) -> R:
        try:
            return self._find(name, explain=False)[0]
        except (UnknownName, AmbiguousName) as error:  # a Mapping's `in` and `get` expect KeyError
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        names = [
            name if len(offers) == 1 else f"{distribution}:{name}"
            for name, offers in self._entries.items()
            for distribution in offers
        ]
        return iter(sorted(names))

    def __len__(self) -> int:
        return sum(len(offers) for offers in self._entries.values())

    def __repr__(self) -> str:
        shown = list(self)[:NAMED]
        return f"{len(self)} {self.kind}s: {', '.join(shown)}{', ...' * (len(self) > NAMED)}"

    def table(self) -> pd.DataFrame:
        """A row for each record: its name, its fields, and the plugin that it comes from."""
        import pandas as pd

        rows = []
        for name in self:
            record, plugin = self._find(name)
            origin = {"name": name, "plugin": plugin.distribution, "version": plugin.version}
            rows.append({"name": name} | plain_fields(record) | origin)
        return pd.DataFrame(rows)


def _matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a name part by part, as it would a path."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
