"""What plugins change while they are loaded: found at once, put back, and told."""

from __future__ import annotations

import sys
from collections.abc import Callable

from convbench.registry.integrity.fingerprint import Change, Fingerprint, loaded
from convbench.registry.integrity.foundations import ROOMS, foundations


def watch_loading() -> Callable[[], tuple[str, ...]]:
    """What says, as sentences, what was changed since this call or the last one, and undoes it.

    Of torch only where it is imported already: importing it for this would take seconds.
    """
    settings: Callable[[], list[str]] = list
    if "torch" in sys.modules:
        from convbench.registry.integrity.global_state import GlobalState
        from convbench.registry.integrity.monkeypatch_guard import originals

        changes, settings = originals().changes, GlobalState().restore
    else:
        own = [module.__name__ for module in loaded(ROOMS)]
        changes = Fingerprint(foundations(), own).changes

    known = {change.text for change in changes()}  # what a test has replaced, say

    def undo() -> tuple[str, ...]:
        found: list[Change] = [change for change in changes() if change.text not in known]
        for change in found:
            change.undo()
        return (*(change.text for change in found), *settings())

    return undo
