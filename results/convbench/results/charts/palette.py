"""The colours of a run: a competitor has the same one in every chart."""

from __future__ import annotations

from collections.abc import Mapping

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.standings import BASELINE


def hues(contents: Contents) -> Mapping[str, int]:
    """The number of each competitor's colour: the baseline has the first, the others follow by their names."""
    everybody = {line.name for group in contents.table.groups for line in group.lines}
    return {name: at for at, name in enumerate(sorted(everybody, key=lambda each: (each != BASELINE, each)))}
