"""What plugins change while they are loaded: found at once, put back, and told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

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
        changes = Fingerprint(foundations(), own, _replaced_by_imports()).changes

    known = {change.text for change in changes()}  # what a test has replaced, say

    def undo() -> tuple[str, ...]:
        found: list[Change] = [change for change in changes() if change.text not in known]
        for change in found:
            change.undo()
        return (*(change.text for change in found), *settings())

    return undo


def _replaced_by_imports() -> tuple[str, ...]:
    """Where torch and typing_extensions keep the functions that they put into Python when they are imported.

    A plugin that is the first to import torch has changed nothing itself.
    """
    torch, extensions = (
        spec.origin if spec else None for spec in map(find_spec, ("torch", "typing_extensions"))
    )
    folder = os.path.join(os.path.dirname(torch), "package", "") if torch else None
    return tuple(path for path in (folder, extensions) if path)
